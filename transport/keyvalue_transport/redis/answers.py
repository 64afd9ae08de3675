"""Answers in RESP2 and RESP3, and the texts of errors, which clients know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

__all__ = [
    *("CRLF", "HEADS", "NIL", "NIL_3", "OK", "ONE", "SHORT", "ZERO"),
    *("CommandError", "Value", "Verbatim", "encode", "error", "short_bulks"),
]

CRLF = b"\r\n"
#: The heads of bulk strings that are shorter than SHORT. Formatting one takes longer than a look-up.
SHORT = 512
HEADS = tuple(b"$%d\r\n" % length for length in range(SHORT))

OK = b"+OK\r\n"
NIL = b"$-1\r\n"
#: Nil in RESP3.
NIL_3 = b"_\r\n"
ZERO, ONE = b":0\r\n", b":1\r\n"


class CommandError(Exception):
    """The error that answers a command. The text begins with a word that clients know, such as ERR."""


class Verbatim(bytes):
    """Text for people. It is a bulk string in RESP2."""

    __slots__ = ()


#: A value that `encode` encodes. A str is a simple string. A set is an array in RESP2.
Value: TypeAlias = "int | str | bytes | Sequence[Value] | frozenset[str] | Mapping[str, Value] | None"


def error(text: str) -> bytes:
    """Return an error. Line breaks in the text become spaces, because the first one would end the answer."""
    return b"-%b\r\n" % text.replace("\r", " ").replace("\n", " ").encode(errors="replace")


def short_bulks(values: Sequence[bytes | None], nil: bytes) -> bytes:
    """Return values as bulk strings. Return nothing if a value is not shorter than SHORT.

    >>> short_bulks([b"a", None, b"bc"], NIL), short_bulks([b"a" * 512], NIL)
    (b'$1\\r\\na\\r\\n$-1\\r\\n$2\\r\\nbc\\r\\n', b'')
    """
    try:
        if (length := _common_length(values)) is not None:
            head = HEADS[length]
            return b"%b%b%b" % (head, (CRLF + head).join(values), CRLF)  # type: ignore[arg-type] # none is None
        nil = nil.removesuffix(CRLF)
        parts = [nil if value is None else HEADS[len(value)] + value for value in values]
    except IndexError:
        return b""
    parts.append(b"")
    return CRLF.join(parts)


def _common_length(values: Sequence[bytes | None]) -> int | None:
    """Return the length that all values have, or None if there is no such length."""
    try:
        lengths = set(map(len, values))  # type: ignore[arg-type] # None raises the error
    except TypeError:
        return None
    return lengths.pop() if len(lengths) == 1 else None


def encode(value: Value, resp: int) -> bytes:
    """Return the encoded value.

    >>> encode([1, None, {"a": b"b"}], 2), encode({"a": None}, 3)
    (b'*3\\r\\n:1\\r\\n$-1\\r\\n*2\\r\\n$1\\r\\na\\r\\n$1\\r\\nb\\r\\n', b'%1\\r\\n$1\\r\\na\\r\\n_\\r\\n')

    :param resp: the version of the protocol, 2 or 3
    """
    if isinstance(value, bytes):
        if resp == 3 and isinstance(value, Verbatim):
            return b"=%d\r\ntxt:%b\r\n" % (len(value) + 4, value)
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if value is None:
        return NIL if resp == 2 else NIL_3
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, str):
        return b"+%b\r\n" % value.encode()
    if isinstance(value, Mapping):
        head = b"*%d\r\n" % (2 * len(value)) if resp == 2 else b"%%%d\r\n" % len(value)
        parts = [encode(part, resp) for key, each in value.items() for part in (key.encode(), each)]
        return head + b"".join(parts)
    if isinstance(value, frozenset):
        return b"%b%d\r\n" % (b"*" if resp == 2 else b"~", len(value)) + b"".join(
            encode(text, resp) for text in sorted(value)
        )
    return b"*%d\r\n" % len(value) + b"".join([encode(each, resp) for each in value])
