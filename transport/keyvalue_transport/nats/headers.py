"""The headers of an invocation: its caller and its trace.

    NATS/1.0 CRLF  source-id: component CRLF  link-name: default CRLF  traceparent: 00-... CRLF  CRLF

The direct path parses the block itself. On the plain path, nats-py parses it. The rules are the same. A line without
a colon is ignored. White space around names and values is removed. If a name occurs twice, the last value counts. If
the empty line at the end is missing, the block is read to its last byte.
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
#: Limit of a cached block. Longer blocks are not cached, because senders choose the length.
BLOCK_BYTES_MAX = 1024
CRLF = b"\r\n"
#: A line end and the name of the trace's header, as all known clients write it.
TRACEPARENT_LINE = b"\r\ntraceparent:"
#: Every block begins with "NATS/1.0" and a line end.
FIRST_LINE_BYTES = 10
SOURCE_ID, LINK_NAME, TRACEPARENT = "source-id", "link-name", "traceparent"


class Headers(NamedTuple):
    """The headers of an invocation that this package uses."""

    caller: Caller
    traceparent: str | None


#: An invocation without headers.
NONE = Headers(ANONYMOUS, None)


def headers_of(read: Mapping[str, str] | None) -> Headers:
    """Return the caller and the trace in headers that nats-py has parsed."""
    if not read:
        return NONE
    return Headers(Caller(read.get(SOURCE_ID), read.get(LINK_NAME)), read.get(TRACEPARENT))


def read_headers(block: bytes) -> Headers:
    """Return the caller and the trace in a header block.

    >>> read_headers(b"NATS/1.0\\r\\nsource-id: a\\r\\n\\r\\n")
    Headers(caller=Caller(source_id='a', link_name=None), traceparent=None)
    """
    return headers_of(read_lines(block))


def read_lines(block: bytes) -> dict[str, str]:
    """Return the headers of a block: each name with its value."""
    read: dict[str, str] = {}
    for line in block[FIRST_LINE_BYTES:].split(CRLF):
        name, colon, value = line.partition(b":")
        if colon:
            read[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return read


class CallerCache:
    """A cache of callers by header block. A traced call's block is unique, so the cache ignores the trace."""

    __slots__ = ("callers",)

    def __init__(self) -> None:
        self.callers: dict[bytes, Caller] = {}

    def find(self, block: bytes) -> Caller:
        """Return the caller of a block that is not in `callers`."""
        # Start at the first line's end: removing an earlier match would shift the headers.
        at = block.find(TRACEPARENT_LINE, FIRST_LINE_BYTES - 2)
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
