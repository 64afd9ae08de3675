"""The headers of an invocation, which contain the caller and the trace.

    NATS/1.0 CRLF  source-id: component CRLF  link-name: default CRLF  traceparent: 00-... CRLF  CRLF

The direct path parses this header block itself. On the plain path, nats-py parses the block. Both parsers follow the
same rules:

- Lines without a colon are ignored.
- White space around names and values is removed.
- If a name occurs twice, the last value counts.
- If the empty line at the end is missing, the block is read to its last byte.
- A source id or a link name above CALLER_CHARACTERS_MAX belongs to nobody: the call is anonymous, even if its other
  header is short. A longer traceparent than TRACEPARENT_CHARACTERS_MAX is ignored.

Senders choose the size of a block, up to max_payload. So only the values of these three headers are decoded, no long
value is decoded as a whole, and no block above BLOCK_KEPT_BYTES_MAX is kept. The limits count characters, because the
plain path has only text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller

__all__ = [
    "BLOCK_KEPT_BYTES_MAX",
    "CALLERS_MAX",
    "CALLER_CHARACTERS_MAX",
    "CRLF",
    "TRACEPARENT",
    "TRACEPARENT_CHARACTERS_MAX",
    "TRACEPARENT_LINE",
    "CallerCache",
    "Headers",
    "headers_of",
    "read_headers",
    "read_lines",
    "read_used_lines",
]

#: Limit of a source id, and of a link name. wasmCloud's ids have 56 characters or a few more.
CALLER_CHARACTERS_MAX = 512
#: Limit of a traceparent. A valid one has 55 characters.
TRACEPARENT_CHARACTERS_MAX = 64
#: A character is decoded from at most this many bytes, even if they are not UTF-8.
CHARACTER_BYTES_MAX = 4
CALLERS_MAX = 1024
#: If a block is longer, nats-py's queue (plain path) keeps only the used headers.
BLOCK_KEPT_BYTES_MAX = 4096
#: A longer block is not read. A block of 1 MB could have 250,000 lines, which take 40 ms. Do not read the first lines
#: only: without its link name, a caller would have the default link.
BLOCK_READ_BYTES_MAX = 64 * 1024
#: Maximum size of a cached block. Longer blocks are not cached, because senders choose the size.
BLOCK_BYTES_MAX = 1024
CRLF = b"\r\n"
#: A line end and the name of the trace header, as all known clients write the name.
TRACEPARENT_LINE = b"\r\ntraceparent:"
#: Size of a block's first line, which is "NATS/1.0" and a line end.
FIRST_LINE_BYTES = 10
SOURCE_ID, LINK_NAME, TRACEPARENT = "source-id", "link-name", "traceparent"
#: The headers that are used: the name, and the number of bytes that are decoded, which is more than the limit takes.
USED = {
    name.encode(): (name, CHARACTER_BYTES_MAX * characters_max + 1)
    for name, characters_max in (
        (SOURCE_ID, CALLER_CHARACTERS_MAX),
        (LINK_NAME, CALLER_CHARACTERS_MAX),
        (TRACEPARENT, TRACEPARENT_CHARACTERS_MAX),
    )
}


class Headers(NamedTuple):
    """The headers of an invocation that this package uses."""

    caller: Caller
    traceparent: str | None


#: An invocation without headers.
NONE = Headers(ANONYMOUS, None)


def headers_of(read: Mapping[str, str] | None) -> Headers:
    """Return the caller and the trace in parsed headers."""
    if not read:
        return NONE
    source_id, link_name, traceparent = read.get(SOURCE_ID), read.get(LINK_NAME), read.get(TRACEPARENT)
    if traceparent is not None and len(traceparent) > TRACEPARENT_CHARACTERS_MAX:
        traceparent = None
    if (source_id is not None and len(source_id) > CALLER_CHARACTERS_MAX) or (
        link_name is not None and len(link_name) > CALLER_CHARACTERS_MAX
    ):
        return Headers(ANONYMOUS, traceparent)
    return Headers(Caller(source_id, link_name), traceparent)


def read_headers(block: bytes) -> Headers:
    """Return the caller and the trace in a header block.

    >>> read_headers(b"NATS/1.0\\r\\nsource-id: a\\r\\n\\r\\n")
    Headers(caller=Caller(source_id='a', link_name=None), traceparent=None)
    """
    return headers_of(read_used_lines(block))


def read_used_lines(block: bytes) -> dict[str, str]:
    """Return the headers in a block that this package uses, by name. A long value is cut, but stays above its limit."""
    read: dict[str, str] = {}
    for line in _lines(block):
        name, colon, value = line.partition(b":")
        if colon and (used := USED.get(name.strip())) is not None:
            text, bytes_max = used
            read[text] = value.strip()[:bytes_max].decode("utf-8", "replace")
    return read


def read_lines(block: bytes) -> dict[str, str]:
    """Return the headers in a block, by name."""
    read: dict[str, str] = {}
    for line in _lines(block):
        name, colon, value = line.partition(b":")
        if colon:
            read[name.strip().decode("ascii", "replace")] = value.strip().decode("utf-8", "replace")
    return read


def _lines(block: bytes) -> list[bytes]:
    return block[FIRST_LINE_BYTES:].split(CRLF) if len(block) <= BLOCK_READ_BYTES_MAX else []


class CallerCache:
    """A cache of callers by header block. Blocks are cached without the trace, because every trace is different."""

    __slots__ = ("callers",)

    def __init__(self) -> None:
        self.callers: dict[bytes, Caller] = {}

    def find(self, block: bytes) -> Caller:
        """Return the caller from a block that is not in `callers`. Cache the caller if possible."""
        if len(block) > BLOCK_READ_BYTES_MAX:
            return ANONYMOUS
        # Search from the end of the first line, because cutting out an earlier match would shift the headers.
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
