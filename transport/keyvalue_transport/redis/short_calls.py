"""Short calls: a read that is one short GET or SET. These are the most frequent reads, and need no parser.

    *3 CRLF $3 CRLF SET CRLF $16 CRLF    key    CRLF $64 CRLF    value    CRLF
    head: gives the length of the key           middle: given by the length of the rest

The head and the length of the read determine all bytes except the key, the value, and the last CRLF, which no parser
reads. So each comparison is exact, and `RedisSession.receive` would find the same request. Every other read is left to
it. `answer_short` does the work of `strings.get` and `strings.set_` in one function, because at one request in a read,
the time goes into the number of Python's instructions (`scripts/bench redis`).
"""

from __future__ import annotations

from keyvalue_transport.keyvalue.outcomes import NONE
from keyvalue_transport.keyvalue.outcomes import OK as FOUND
from keyvalue_transport.redis.answers import CRLF, HEADS, OK, SHORT
from keyvalue_transport.redis.effects import Awaited, Effect
from keyvalue_transport.redis.session import RedisSession
from keyvalue_transport.redis.strings import ok, value_later

__all__ = ["SHORT_CALL_BYTES_MAX", "answer_short"]

#: Keys are shorter than this, so that their length has one or two digits.
KEY_BYTES_MAX = 100
#: The rest after a key is shorter than this.
REST_BYTES_MAX = 512
#: A short call is shorter than this.
SHORT_CALL_BYTES_MAX = 1024
#: The places of heads, whose key has a length of two digits or one.
TWO_DIGITS, ONE_DIGIT = slice(18), slice(17)


def _heads() -> dict[bytes, tuple[int, slice, int]]:
    """Return the size of a GET, or 0 for SET, and the place of the key and its end, by the bytes before the key."""
    found = {}
    for name in (b"GET", b"SET", b"get", b"set"):
        is_get = name.upper() == b"GET"
        for length in range(KEY_BYTES_MAX):
            head = b"*%d\r\n$3\r\n%b\r\n%b" % (2 if is_get else 3, name, HEADS[length])
            end = len(head) + length
            found[head] = end + len(CRLF) if is_get else 0, slice(len(head), end), end
    return found


def _middles() -> list[tuple[bytes, int]]:
    """Return the bytes between a key and a value, and their number, by the number of bytes after the key."""
    found = [(b"none", 0)] * REST_BYTES_MAX
    for length in range(REST_BYTES_MAX):
        middle = CRLF + HEADS[length]
        rest_bytes = len(middle) + length + len(CRLF)
        if rest_bytes < REST_BYTES_MAX:
            found[rest_bytes] = middle, len(middle)
    return found


HEADS_OF_KEYS, MIDDLES = _heads(), _middles()
head_of = HEADS_OF_KEYS.get


def answer_short(session: RedisSession, read: bytes) -> bytes | None:
    """Execute a read that is one short GET or SET. Return the answer, which is empty if the session gives it later.

    Return None for any other read, which is not executed. The session must be free, and the read must begin a request.
    """
    head = head_of(read[TWO_DIGITS]) or head_of(read[ONE_DIGIT])
    if head is None:
        return None
    size, place, end = head
    if size:
        if len(read) != size:
            return None
        try:
            value = session.calls.get(session.caller, session.bucket, read[place])
        except Exception as failure:
            return session.refuse(session.get, failure)
        if type(value) is bytes:
            session.get.tally[FOUND] += 1
            length = len(value)
            return HEADS[length] + value + CRLF if length < SHORT else b"$%d\r\n%b\r\n" % (length, value)
        if value is None:
            session.get.tally[NONE] += 1
            return session.nil
        key = read[place]
        return session.give_later(session.get, Effect.READ, [b"GET", key], value_later(session, key, value))
    rest_bytes = len(read) - end
    if not 0 <= rest_bytes < REST_BYTES_MAX:
        return None
    middle, middle_bytes = MIDDLES[rest_bytes]
    value_at = end + middle_bytes
    if read[end:value_at] != middle:
        return None
    try:
        later = session.calls.set(session.caller, session.bucket, read[place], read[value_at:-2])
    except Exception as failure:
        return session.refuse(session.set, failure)
    if later is None:
        session.set.tally[FOUND] += 1
        return OK
    request = [b"SET", read[place], read[value_at:-2]]
    return session.give_later(session.set, Effect.WRITE, request, Awaited(later, ok))
