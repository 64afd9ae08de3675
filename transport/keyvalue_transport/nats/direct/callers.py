"""Callers from NATS header blocks."""

from __future__ import annotations

from keyvalue_transport.wrpc.handler import Caller

__all__ = ["CALLERS_MAX", "CRLF", "TRACEPARENT", "CallerCache", "parse_caller", "traceparent_of"]

CALLERS_MAX = 1024
#: A longer block is not kept: who writes it says how long it is.
BLOCK_BYTES_MAX = 1024
CRLF = b"\r\n"
#: Of a header block, from its first header on: so each name has a line's end before it.
TRACEPARENT = b"\r\ntraceparent:"


class CallerCache:
    """Callers by their header block, which repeats; the blocks of traced calls do not, and are not kept."""

    __slots__ = ("callers",)

    def __init__(self) -> None:
        self.callers: dict[bytes, Caller] = {}

    def find(self, block: bytes) -> Caller:
        """The caller of a block that is not in `callers`. Of a traced one the rest is looked up, since that repeats."""
        at = block.find(TRACEPARENT)
        if at < 0:
            caller = parse_caller(block)
            if len(block) <= BLOCK_BYTES_MAX:
                if len(self.callers) >= CALLERS_MAX:
                    self.callers.clear()
                self.callers[block] = caller
            return caller
        rest = block[:at] + block[block.find(CRLF, at + len(TRACEPARENT)) :]
        if TRACEPARENT in rest:
            return parse_caller(block)
        return self.callers.get(rest) or self.find(rest)


def parse_caller(block: bytes) -> Caller:
    """The caller that a NATS header block names; the last of equal headers counts, as in nats-py."""
    return Caller(_header(block, b"\r\nsource-id:"), _header(block, b"\r\nlink-name:"))


def traceparent_of(block: bytes) -> str | None:
    """What trace a NATS header block says that its invocation is part of."""
    return _header(block, TRACEPARENT)


def _header(block: bytes, name: bytes) -> str | None:
    at = block.rfind(name)
    if at < 0:
        return None
    at += len(name)
    return block[at : block.find(CRLF, at)].strip().decode("utf-8", "replace")
