"""The commands that read and write values."""

from __future__ import annotations

from functools import partial
from typing import Any

from keyvalue_transport.redis import revisions
from keyvalue_transport.redis.answers import CRLF, HEADS, OK, ONE, SHORT, ZERO, CommandError, short_bulks
from keyvalue_transport.redis.deadlines import SYNTAX, Lifetime, parse_lifetime
from keyvalue_transport.redis.effects import Awaited, Effect
from keyvalue_transport.redis.requests import Request
from keyvalue_transport.redis.revisions import Entry, Revise, parse_integer, value_of
from keyvalue_transport.redis.session import RedisSession
from keyvalue_transport.wrpc.handler import Again

Answer = bytes | Awaited

#: The longest time that the store takes as a number of milliseconds, about 292 years.
TTL_MS_MAX = 2**63 // 1_000_000
#: Times of this length are below TTL_MS_MAX, in seconds too.
TIME_DIGITS_MAX = 9
Revision = tuple[Entry | None, Entry | None]


def get(session: RedisSession, request: Request) -> Answer:
    """Answer with the value of a key."""
    value = session.calls.get(session.caller, session.bucket, request[1])
    if type(value) is bytes:
        length = len(value)
        return HEADS[length] + value + CRLF if length < SHORT else b"$%d\r\n%b\r\n" % (length, value)
    if value is None:
        return session.nil
    return value_later(session, request[1], value)


def value_later(session: RedisSession, key: bytes, value: Any) -> Awaited:
    """Return the answer of GET for a value that is not known yet."""
    if value.__class__ is Again:
        return Awaited(value, lambda _: get(session, [b"GET", key]))
    return Awaited(value, partial(_bulk, session))


def set_(session: RedisSession, request: Request) -> Answer:
    """Store a value."""
    if len(request) == 3:
        answer = session.calls.set(session.caller, session.bucket, request[1], request[2])
        return OK if answer is None else Awaited(answer, ok)
    _, key, value, *words = request
    lifetime, rest = parse_lifetime(session, "set", words, {b"NX", b"XX", b"GET", b"KEEPTTL"})
    if rest or lifetime is None:
        is_present = False if b"NX" in rest else True if b"XX" in rest else None
        deadline = lifetime.deadline if lifetime is not None else revisions.default_deadline
        if b"KEEPTTL" in rest:
            deadline = revisions.same_deadline
        revise = revisions.set_value(value, is_present, deadline)
        if b"GET" in rest:
            return _update(session, key, revise, lambda revision: _bulk(session, value_of(revision[0])))
        return _update(
            session,
            key,
            revise,
            lambda revision: OK if is_present in (None, revision[0] is not None) else session.nil,
        )
    return _set_for(session, key, value, lifetime)


def effect_of_set(request: Request) -> Effect:
    """Return the effect of SET with its options."""
    words = [word.upper() for word in request[3:]]
    is_write = not words or (len(words) == 2 and words[0] in {b"EX", b"PX"} and len(words[1]) <= TIME_DIGITS_MAX)
    return Effect.WRITE if is_write else Effect.UPDATE


def effect_of_setex(request: Request) -> Effect:
    """Return the effect of SETEX or PSETEX with this time."""
    return Effect.WRITE if len(request) > 2 and len(request[2]) <= TIME_DIGITS_MAX else Effect.UPDATE


def setnx(session: RedisSession, request: Request) -> Answer:
    """Store a value if the key is missing."""
    _, key, value = request
    revise = revisions.set_value(value, False, revisions.default_deadline)
    return _update(session, key, revise, lambda revision: ONE if revision[0] is None else ZERO)


def setex(session: RedisSession, request: Request, unit: bytes = b"EX", name: str = "setex") -> Answer:
    """Store a value with a deadline."""
    _, key, time, value = request
    lifetime, _ = parse_lifetime(session, name, [unit, time], set())
    assert lifetime is not None
    return _set_for(session, key, value, lifetime)


def psetex(session: RedisSession, request: Request) -> Answer:
    """Store a value with a deadline in milliseconds."""
    return setex(session, request, b"PX", "psetex")


def getset(session: RedisSession, request: Request) -> Answer:
    """Store a value, and answer with the one before."""
    revise = revisions.set_value(request[2], None, revisions.default_deadline)
    return _update(session, request[1], revise, lambda revision: _bulk(session, value_of(revision[0])))


def getdel(session: RedisSession, request: Request) -> Answer:
    """Remove a key, and answer with its value."""
    return _update(session, request[1], revisions.remove, lambda revision: _bulk(session, value_of(revision[0])))


def getex(session: RedisSession, request: Request) -> Answer:
    """Answer with a value, and perhaps change its deadline."""
    _, key, *words = request
    if not words:
        return get(session, request)
    try:
        lifetime, _ = parse_lifetime(session, "getex", words, {b"PERSIST"})
    except CommandError as failure:
        if str(failure) == SYNTAX:
            raise
        revise = revisions.refuse(failure)  # a missing key is answered with nil, whatever the time is
    else:
        revise = revisions.persist if lifetime is None else revisions.read_and_time(lifetime.deadline)
    return _update(session, key, revise, lambda revision: _bulk(session, value_of(revision[0])))


def effect_of_getex(request: Request) -> Effect:
    """Return the effect of GETEX with its options."""
    return Effect.UPDATE if len(request) > 2 else Effect.READ


def mget(session: RedisSession, request: Request) -> Answer:
    """Answer with several values."""
    keys = request[1:]
    check_keys(session, len(keys))
    return Awaited.of(session.calls.get_many(session.caller, session.bucket, keys), partial(_bulks, session))


def mset(session: RedisSession, request: Request) -> Answer:
    """Store several values."""
    return Awaited.of(session.calls.set_many(session.caller, session.bucket, _entries(session, "mset", request)), ok)


def msetnx(session: RedisSession, request: Request) -> Answer:
    """Store several values if all keys are missing."""
    entries = _entries(session, "msetnx", request)
    return Awaited.of(session.calls.set_missing(session.caller, session.bucket, entries), number)


def incr(session: RedisSession, request: Request) -> Answer:
    """Add 1 to a counter."""
    return _add(session, request[1], 1)


def decr(session: RedisSession, request: Request) -> Answer:
    """Subtract 1 from a counter."""
    return _add(session, request[1], -1)


def incrby(session: RedisSession, request: Request) -> Answer:
    """Add to a counter."""
    return _add(session, request[1], parse_integer(request[2]))


def decrby(session: RedisSession, request: Request) -> Answer:
    """Subtract from a counter."""
    delta = parse_integer(request[2])
    if delta == revisions.I64_MIN:
        raise CommandError("ERR decrement would overflow")
    return _add(session, request[1], -delta)


def append(session: RedisSession, request: Request) -> Answer:
    """Append to a value, and answer with the length."""
    _, key, suffix = request
    return _update(session, key, revisions.append(suffix), lambda revision: number(len(value_of(revision[1]) or b"")))


def strlen(session: RedisSession, request: Request) -> Answer:
    """Answer with the length of a value."""
    answer = session.calls.entry(session.caller, session.bucket, request[1])
    return Awaited.of(answer, lambda entry: number(len(value_of(entry) or b"")))


def number(count: int) -> bytes:
    """Return the answer for a number."""
    return b":%d\r\n" % count


def check_keys(session: RedisSession, keys: int) -> None:
    """Raise CommandError if a command has too many keys."""
    keys_max = session.calls.parameter_limits.batch_keys_max
    if keys > keys_max:
        raise CommandError(f"ERR the batch has {keys} keys; the limit is {keys_max} (batch_keys_max)")


def _set_for(session: RedisSession, key: bytes, value: bytes, lifetime: Lifetime) -> Answer:
    if lifetime.is_relative and lifetime.ms <= TTL_MS_MAX:
        return Awaited.of(session.calls.set_for(session.caller, session.bucket, key, value, lifetime.ms), ok)
    return _update(session, key, revisions.set_value(value, None, lifetime.deadline), ok)


def _update(session: RedisSession, key: bytes, revise: Revise, answer_of: Any) -> Answer:
    return Awaited.of(session.calls.update(session.caller, session.bucket, key, revise), answer_of)


def _add(session: RedisSession, key: bytes, delta: int) -> Answer:
    return _update(session, key, revisions.add(delta), lambda revision: number(int(value_of(revision[1]) or b"")))


def _entries(session: RedisSession, name: str, request: Request) -> dict[bytes, bytes]:
    if not len(request) & 1:
        raise CommandError(f"ERR wrong number of arguments for '{name}' command")
    entries = dict(zip(request[1::2], request[2::2], strict=True))
    check_keys(session, len(entries))
    return entries


def _bulk(session: RedisSession, value: bytes | None) -> bytes:
    return session.nil if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def _bulks(session: RedisSession, values: list[bytes | None]) -> bytes:
    """Return the values as an array. Refuse a larger answer than the limit before it takes memory."""
    size_max, nil, number = session.calls.parameter_limits.answer_bytes_max, session.nil, len(values)
    if number * SHORT <= size_max and (bulks := short_bulks(values, nil)):
        return b"*%d\r\n%b" % (number, bulks)
    size = sum(map(len, filter(None, values)))
    if size > size_max:
        raise CommandError(f"ERR the answer has {size} bytes of values; the limit is {size_max} (answer_bytes_max)")
    parts = [b"*%d\r\n" % number]
    for value in values:
        parts += (nil,) if value is None else (b"$%d\r\n" % len(value), value, CRLF)
    return b"".join(parts)


def ok(_: object) -> bytes:
    """Return the answer of a write."""
    return OK
