"""Runs: the requests of one read that are all `GET key`, or all `SET key value`. Clients pipeline such requests.

    *3 CRLF $3 CRLF SET CRLF $16 CRLF    key    CRLF $64 CRLF    value    CRLF    *3 CRLF $3 CRLF SET ...
    head                                        middle                            head

A run takes one call of the service and one update of the tally, in place of one for each request. If its keys have one
length, and its values too, it needs no parser: `struct` splits the read into requests, and a comparison of all heads
and middles shows that a parser would find the same requests (`scripts/bench redis`, pipeline of 16).

A run is executed only if the store answers at once, and if the values that it reads are short. The session executes all
other requests one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

from keyvalue_transport.keyvalue.outcomes import NONE, OK
from keyvalue_transport.redis.answers import OK as STORED
from keyvalue_transport.redis.answers import short_bulks
from keyvalue_transport.redis.requests import Request
from keyvalue_transport.redis.session import OUTPUT_BYTES_MAX, RedisSession
from keyvalue_transport.redis.short_calls import MIDDLES, ONE_DIGIT, REST_BYTES_MAX, TWO_DIGITS, head_of
from keyvalue_transport.wrpc.handler import Again

__all__ = ["RUN_BYTES_MIN", "RUN_REQUESTS_MIN", "RequestRun", "execute", "run_of", "split_run"]

#: A shorter run does not save time.
RUN_REQUESTS_MIN = 4
#: The least size of such a run.
RUN_BYTES_MIN = RUN_REQUESTS_MIN * len(b"*2\r\n$3\r\nGET\r\n$0\r\n\r\n")
#: A run is executed in parts of at most this number. The answers of a part take a quarter of OUTPUT_BYTES_MAX at most.
PART_REQUESTS_MAX = 512
GETS, SETS = frozenset({b"GET", b"get"}), frozenset({b"SET", b"set"})


class RequestRun(NamedTuple):
    """A run of GETs, or of SETs if there are values.

    :ivar word: the command as the client writes it
    """

    word: bytes
    keys: Sequence[bytes]
    values: Sequence[bytes] | None = None


def split_run(read: bytes) -> RequestRun | None:
    """Return the run that a read consists of, if its requests have the same lengths."""
    head = head_of(read[TWO_DIGITS]) or head_of(read[ONE_DIGIT])
    if head is None:
        return None
    size, key, end = head
    head_bytes = key.start
    prefix = read[:head_bytes]
    if size:
        if len(read) % size:
            return None
        heads, keys = zip(*_struct(head_bytes, end - head_bytes, 0, 0).iter_unpack(read), strict=True)
        return RequestRun(read[8:11], keys) if heads.count(prefix) == len(heads) else None
    size = read.find(prefix, end, end + REST_BYTES_MAX)
    if size < 0 or len(read) % size:
        return None
    middle, middle_bytes = MIDDLES[size - end]
    if not middle_bytes or not read.startswith(middle, end):
        return None
    frames = _struct(head_bytes, end - head_bytes, middle_bytes, size - end - middle_bytes - 2)
    heads, keys, middles, values = zip(*frames.iter_unpack(read), strict=True)
    if heads.count(prefix) == middles.count(middle) == len(heads):
        return RequestRun(read[8:11], keys, values)
    return None


@lru_cache(256)
def _struct(head_bytes: int, key_bytes: int, middle_bytes: int, value_bytes: int) -> Struct:
    """Return a Struct for a GET, or for a SET if it has a middle. It leaves out the last two bytes."""
    rest = f"{middle_bytes}s{value_bytes}s" if middle_bytes else ""
    return Struct(f"{head_bytes}s{key_bytes}s{rest}2x")


def run_of(requests: Sequence[Request]) -> RequestRun | None:
    """Return the run that requests are, or None."""
    first, last = requests[0], requests[-1]
    size = len(first)
    if len(last) != size or not size or last[0] != first[0]:  # the usual case of requests that are no run
        return None
    if not ((size == 2 and first[0] in GETS) or (size == 3 and first[0] in SETS)):
        return None
    try:
        words, *columns = zip(*requests, strict=True)
    except ValueError:  # another number of parts
        return None
    return RequestRun(first[0], *columns) if words.count(first[0]) == len(words) else None


def execute(session: RedisSession, run: RequestRun) -> int:
    """Execute a run as far as possible. Return the number of requests that are done.

    Ask `session.may_run` before.
    """
    _, keys, values = run
    done = 0
    while done < len(keys) and session.out_bytes < OUTPUT_BYTES_MAX:
        part = slice(done, done + PART_REQUESTS_MAX)
        more = _get(session, keys[part]) if values is None else _set(session, keys[part], values[part])
        if not more:
            break
        done += more
    return done


def _get(session: RedisSession, keys: Sequence[bytes]) -> int:
    """Answer with the values of keys, if all of them are short."""
    try:
        values = session.calls.get_each(session.caller, session.bucket, keys)
    except Exception:  # each `get` raises it again
        return 0
    if values is None or isinstance(values, Again):
        return 0
    answers = short_bulks(values, session.nil)
    if not answers:
        return 0
    number, missing = len(values), values.count(None)
    tally = session.get.tally
    tally[NONE] += missing
    tally[OK] += number - missing
    session.give(answers)
    return number


def _set(session: RedisSession, keys: Sequence[bytes], values: Sequence[bytes]) -> int:
    """Store values one after the other, up to the first one that is refused."""
    number, refusal = len(keys), b""
    entries = zip(keys, values, strict=True)
    try:
        if not session.calls.set_at_once(session.caller, session.bucket, entries):
            return 0
    except Exception as failure:
        refusal = session.refuse(session.set, failure)
        number -= min(number, sum(1 for _ in entries) + 1)  # no entry was taken if the bucket was refused
    session.set.tally[OK] += number
    session.give(STORED * number + refusal)
    return number + bool(refusal)
