"""The headers of an invocation: which caller it names, and which trace it is part of.

    NATS/1.0 CRLF  source-id: component CRLF  link-name: default CRLF  traceparent: 00-... CRLF  CRLF

The direct path reads the block itself. On the plain path nats-py has read it. Both find the same: a line that has no colon is ignored,
white space around a name and a value does not count, and the last of equal names does. A block that lacks its end is read up to its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller

__all__ = [
    "CALLERS_MAX",
    "CRLF",
    "TRACEPARENT_LINE",
    "CallerCache",
    "Headers",
    "headers_of",
    "read_headers",
    "read_lines",
]

CALLERS_MAX = 1024
#: A longer block is not kept: its sender decides how long it is.
BLOCK_BYTES_MAX = 1024
CRLF = b"\r\n"
#: Where the trace begins in a block as every known client writes it. Each header has a line's end before it.
TRACEPARENT_LINE = b"\r\ntraceparent:"
#: "NATS/1.0" and a line's end, which every block begins with.
FIRST_LINE_BYTES = 10
SOURCE_ID, LINK_NAME, TRACEPARENT = "source-id", "link-name", "traceparent"


class Headers(NamedTuple):
    """What is read of an invocation's headers."""

    caller: Caller
    traceparent: str | None


#: No headers.
NONE = Headers(ANONYMOUS, None)


def headers_of(read: Mapping[str, str] | None) -> Headers:
    """Return what the headers say that nats-py has read."""
    if not read:
        return NONE
    return Headers(Caller(read.get(SOURCE_ID), read.get(LINK_NAME)), read.get(TRACEPARENT))


def read_headers(block: bytes) -> Headers:
    """Return what a header block says.

    >>> read_headers(b"NATS/1.0\\r\\nsource-id: a\\r\\n\\r\\n")
    Headers(caller=Caller(source_id='a', link_name=None), traceparent=None)
    """
    return headers_of(read_lines(block))


def read_lines(block: bytes) -> dict[str, str]:
    """Return the values of a header block by their names."""
    read: dict[str, str] = {}
    for line in block[FIRST_LINE_BYTES:].split(CRLF):
        name, colon, value = line.partition(b":")
        if colon:
            read[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return read


class CallerCache:
    """Callers by their header block, which repeats. The blocks of traced calls do not, and are not kept."""

    __slots__ = ("callers",)

    def __init__(self) -> None:
        self.callers: dict[bytes, Caller] = {}

    def find(self, block: bytes) -> Caller:
        """Return the caller of a block that is not in `callers`. The rest of a traced block is looked up, since it repeats."""
        at = block.find(
            TRACEPARENT_LINE, FIRST_LINE_BYTES - 2
        )  # without an earlier one, all that follows would be shifted
        if at < 0:
            caller = read_headers(block).caller
            if len(block) <= BLOCK_BYTES_MAX:
                if len(self.callers) >= CALLERS_MAX:
                    self.callers.clear()
                self.callers[block] = caller
            return caller
        rest_at = block.find(CRLF, at + len(TRACEPARENT_LINE))
        rest = block[:at] + block[rest_at:]
        if rest_at < 0 or TRACEPARENT_LINE in rest:
            return read_headers(block).caller
        return self.callers.get(rest) or self.find(rest)
