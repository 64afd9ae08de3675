"""The commands about keys: whether they exist, when they expire, and walks over all keys."""

from __future__ import annotations

from functools import partial
from random import getrandbits
from typing import Any

from keyvalue_transport.redis import revisions
from keyvalue_transport.redis.answers import ONE, ZERO, CommandError, encode
from keyvalue_transport.redis.deadlines import NS_PER_MS, SYNTAX, lifetime_of
from keyvalue_transport.redis.effects import Awaited
from keyvalue_transport.redis.glob import PATTERN_BYTES_MAX, matcher
from keyvalue_transport.redis.requests import Request
from keyvalue_transport.redis.revisions import Entry, deadline_of, parse_integer
from keyvalue_transport.redis.session import RedisSession
from keyvalue_transport.redis.strings import check_keys, number

Answer = bytes | Awaited

CURSOR_MAX = 2**64 - 1
#: The number of keys of a page, and the limit for COUNT.
PAGE_KEYS = 1_000
#: A page has fewer bytes of keys in any case: the store has a limit too.
PAGE_BYTES_MAX = 2**63
COUNT_MAX = 10_000
#: The limit for the bytes of a page's keys, times the length of the pattern, which matching may take: about 50 ms.
MATCH_WORK_MAX = 2**24
MISSING, WITHOUT_DEADLINE = b":-2\r\n", b":-1\r\n"
CONDITIONS = frozenset({b"NX", b"XX", b"GT", b"LT"})


def delete(session: RedisSession, request: Request) -> Answer:
    """Remove keys, and answer with the number of those that existed."""
    keys = request[1:]
    check_keys(session, len(keys))
    return Awaited.of(session.calls.remove(session.caller, session.bucket, keys), number)


def exists(session: RedisSession, request: Request) -> Answer:
    """Answer with the number of keys that exist. A key that occurs twice counts twice."""
    if len(request) == 2:
        return Awaited.of(session.calls.exists(session.caller, session.bucket, request[1]), number)
    keys = request[1:]
    check_keys(session, len(keys))
    return Awaited.of(
        session.calls.get_many(session.caller, session.bucket, keys),
        lambda values: number(len(values) - values.count(None)),
    )


def type_(session: RedisSession, request: Request) -> Answer:
    """Answer with the type of a key. All values are strings."""
    answer = session.calls.exists(session.caller, session.bucket, request[1])
    return Awaited.of(answer, lambda is_there: b"+string\r\n" if is_there else b"+none\r\n")


def expire(session: RedisSession, request: Request) -> Answer:
    """Give a key a deadline."""
    return _expire(session, request, 1000, True)


def pexpire(session: RedisSession, request: Request) -> Answer:
    """Give a key a deadline in milliseconds."""
    return _expire(session, request, 1, True)


def expireat(session: RedisSession, request: Request) -> Answer:
    """Give a key a deadline in seconds since 1970."""
    return _expire(session, request, 1000, False)


def pexpireat(session: RedisSession, request: Request) -> Answer:
    """Give a key a deadline in milliseconds since 1970."""
    return _expire(session, request, 1, False)


def _expire(session: RedisSession, request: Request, unit_ms: int, is_relative: bool) -> Answer:
    name, key, text, *words = request
    conditions = frozenset(word.upper() for word in words)
    for word in words:
        if word.upper() not in CONDITIONS:
            raise CommandError(f"ERR Unsupported option {word.decode(errors='replace')}")
    if b"NX" in conditions and len(conditions) > 1:
        raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
    if {b"GT", b"LT"} <= conditions:
        raise CommandError("ERR GT and LT options at the same time are not compatible")
    lifetime = lifetime_of(session, name.decode().lower(), text, unit_ms, is_relative)
    revise = revisions.expire(lifetime.deadline, conditions)
    return Awaited.of(
        session.calls.update(session.caller, session.bucket, key, revise),
        lambda revision: ZERO if revision[0] is None or revision[1] is revision[0] else ONE,
    )


def persist(session: RedisSession, request: Request) -> Answer:
    """Remove the deadline of a key."""
    return Awaited.of(
        session.calls.update(session.caller, session.bucket, request[1], revisions.persist),
        lambda revision: ZERO if deadline_of(revision[0]) is None else ONE,
    )


def ttl(session: RedisSession, request: Request) -> Answer:
    """Answer with the seconds until a key expires."""
    return _entry(session, request, lambda ms: (ms + 500) // 1000, is_relative=True)


def pttl(session: RedisSession, request: Request) -> Answer:
    """Answer with the milliseconds until a key expires."""
    return _entry(session, request, lambda ms: ms, is_relative=True)


def expiretime(session: RedisSession, request: Request) -> Answer:
    """Answer with the Unix time at which a key expires."""
    return _entry(session, request, lambda ms: (ms + 500) // 1000, is_relative=False)


def pexpiretime(session: RedisSession, request: Request) -> Answer:
    """Answer with the Unix time in milliseconds at which a key expires."""
    return _entry(session, request, lambda ms: ms, is_relative=False)


def _entry(session: RedisSession, request: Request, convert: Any, is_relative: bool) -> Answer:
    def answer(entry: Entry | None) -> bytes:
        if entry is None:
            return MISSING
        deadline_ns = deadline_of(entry)
        if deadline_ns is None:
            return WITHOUT_DEADLINE
        if is_relative:
            return number(convert(max(0, -((session.calls.now_ns() - deadline_ns) // NS_PER_MS))))
        return number(convert((deadline_ns + session.surroundings.unix_offset_ns() + NS_PER_MS // 2) // NS_PER_MS))

    return Awaited.of(session.calls.entry(session.caller, session.bucket, request[1]), answer)


def scan(session: RedisSession, request: Request) -> Answer:
    """Answer with a page of keys. A key that exists during the whole walk is on one page, and only on one."""
    _, text, *words = request
    if not (text.isdigit() and len(text) <= 20 and int(text) <= CURSOR_MAX):
        raise CommandError("ERR invalid cursor")
    pattern, count, is_string = b"*", 10, True
    for word, argument in zip(words[::2], words[1::2], strict=False):
        match word.upper():
            case b"COUNT":
                count = parse_integer(argument)
                if count < 1:
                    raise CommandError(SYNTAX)
            case b"MATCH":
                pattern = argument
            case b"TYPE":
                is_string = argument.lower() == b"string"
            case _:
                raise CommandError(SYNTAX)
    if len(words) & 1:
        raise CommandError(SYNTAX)
    matches = _matcher(pattern)

    def answer(page: Any) -> bytes:
        keys, cursor = page
        if not is_string:
            keys = []
        elif matches is not None:
            keys = [key for key in keys if matches(key)]
        position = b"%d" % (cursor or 0)
        parts = [b"$%d\r\n%b\r\n" % (len(key), key) for key in keys]
        return b"*2\r\n$%d\r\n%b\r\n*%d\r\n%b" % (len(position), position, len(parts), b"".join(parts))

    page = session.calls.page(
        session.caller, session.bucket, int(text), min(count, COUNT_MAX), _page_bytes(session, pattern)
    )
    return Awaited.of(page, answer)


def keys(session: RedisSession, request: Request) -> Answer:
    """Answer with all keys that match a pattern. Other requests are answered meanwhile."""
    matches, bytes_max = _matcher(request[1]), _page_bytes(session, request[1])
    return Awaited(_keys(session, matches, bytes_max), partial(encode, resp=session.resp))


async def _keys(session: RedisSession, matches: Any, bytes_max: int) -> list[bytes]:
    found: list[bytes] = []
    size, size_max = 0, session.calls.parameter_limits.answer_bytes_max
    cursor: int | None = 0
    while cursor is not None:
        page, cursor = await _page(session, cursor, bytes_max)
        matching = page if matches is None else [key for key in page if matches(key)]
        size += sum(map(len, matching)) + 16 * len(matching)
        if size > size_max:
            raise CommandError(f"ERR more than {size_max} bytes of keys match (answer_bytes_max): use SCAN")
        found += matching
    return found


async def _page(session: RedisSession, cursor: int, bytes_max: int = PAGE_BYTES_MAX) -> Any:
    """Return a page of a walk, after other connections had a turn."""
    await session.surroundings.pause()
    page = session.calls.page(session.caller, session.bucket, cursor, PAGE_KEYS, bytes_max)
    return page if isinstance(page, tuple) else await page


def randomkey(session: RedisSession, request: Request) -> Answer:
    """Answer with a key that stands after a random position."""
    return Awaited(_random_key(session), lambda key: session.nil if key is None else encode(key, 2))


async def _random_key(session: RedisSession) -> bytes | None:
    for start in (getrandbits(64), 0):
        cursor: int | None = start
        while cursor is not None:
            page = session.calls.page(session.caller, session.bucket, cursor, 1, PAGE_BYTES_MAX)
            found, cursor = page if isinstance(page, tuple) else await page
            if found:
                key: bytes = found[0]
                return key
            await session.surroundings.pause()
    return None


def dbsize(session: RedisSession, request: Request) -> Answer:
    """Answer with the number of keys."""
    return Awaited.of(session.calls.count_keys(session.caller, session.bucket), number)


def flushdb(session: RedisSession, request: Request) -> Answer:
    """Remove all keys that exist now, in steps. Other requests are answered meanwhile."""
    if [word.upper() for word in request[1:]] not in ([], [b"ASYNC"], [b"SYNC"]):
        raise CommandError(SYNTAX)
    if not session.surroundings.may_flush:
        raise CommandError("NOPERM FLUSHDB is disabled (redis_flush)")
    return Awaited(_flush(session), lambda _: b"+OK\r\n")


async def _flush(session: RedisSession) -> None:
    cursor: int | None = 0
    while cursor is not None:
        page, cursor = await _page(session, cursor)
        if page:
            removed = session.calls.remove(session.caller, session.bucket, page)
            if not isinstance(removed, int):
                await removed


def memory(session: RedisSession, request: Request) -> Answer:
    """Answer with the memory of a key."""
    words = [word.upper() for word in request[1:2] + request[3:4]]
    if words[0] != b"USAGE":
        raise CommandError(f"ERR unknown subcommand '{request[1].decode(errors='replace')[:128]}'. Try MEMORY USAGE.")
    if len(request) < 3:
        raise CommandError("ERR wrong number of arguments for 'memory|usage' command")
    if len(request) not in (3, 5) or words[1:] not in ([], [b"SAMPLES"]):
        raise CommandError(SYNTAX)
    if len(request) == 5 and parse_integer(request[4]) < 0:
        raise CommandError(SYNTAX)
    key = request[2]

    def answer(entry: Entry | None) -> bytes:
        return session.nil if entry is None else number(session.calls.entry_bytes(key, entry))

    return Awaited.of(session.calls.entry(session.caller, session.bucket, key), answer)


def _page_bytes(session: RedisSession, pattern: bytes) -> int:
    """Return the limit for the bytes of a page's keys. The longer the pattern, the longer a match takes."""
    return min(session.calls.parameter_limits.answer_bytes_max, MATCH_WORK_MAX // max(1, len(pattern)))


def _matcher(pattern: bytes) -> Any:
    if len(pattern) > PATTERN_BYTES_MAX:
        raise CommandError(f"ERR the pattern has {len(pattern)} bytes; the limit is {PATTERN_BYTES_MAX}")
    return matcher(pattern)
