"""Callers from NATS header blocks."""

from __future__ import annotations

from transport.handler import Caller

__all__ = ["BLOCK_BYTES_MAX", "CALLERS_MAX", "CallerCache", "parse_caller"]

CALLERS_MAX = 1024
#: A longer block is not kept: who writes it says how long it is.
BLOCK_BYTES_MAX = 1024
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
        end = block.find(b"\r\n", at + len(TRACEPARENT))
        rest = block[:at] + block[end:]
        if TRACEPARENT in rest:
            return parse_caller(block)
        known = self.callers.get(rest) or self.find(rest)
        traceparent = block[at + len(TRACEPARENT) : end].strip().decode("utf-8", "replace")
        return known.traced(traceparent)


def parse_caller(block: bytes) -> Caller:
    """The caller that a NATS header block names; the last of equal headers counts, as in nats-py."""
    source_id, link_name = _header(block, b"\r\nsource-id:"), _header(block, b"\r\nlink-name:")
    return Caller(source_id, link_name, _header(block, TRACEPARENT))


def _header(block: bytes, name: bytes) -> str | None:
    at = block.rfind(name)
    if at < 0:
        return None
    at += len(name)
    return block[at : block.find(b"\r\n", at)].strip().decode("utf-8", "replace")
