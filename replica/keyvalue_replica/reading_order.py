"""The turns of the followers that read whole KV buckets over one connection.

Everything that a server sends on a connection waits in one line. If many KV buckets are read at once, megabytes stand
before each answer and heartbeat, so the followers take the server for silent, and begin again. A NATS server also drops
a client that is 64 MiB behind. So a few small KV buckets are read at a time, and one large one beside them:

    follower ── its stream is small ──> lane of small ones ── four at a time ──> reads until it has caught up
             └─ its stream is large ──> lane of large ones ── one at a time ───> the same

Each lane is in the order of arrival, which also answers the first callers sooner than reading all at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

__all__ = ["ReadingOrder"]

#: Size of a stream in bytes from which it is large. The flow control of a consumer lets 2 to 32 MiB be on their way.
LARGE_BYTES = 4 * 1024 * 1024
SMALL_MAX, LARGE_MAX = 4, 1


class ReadingLane:
    """Readers in the order of arrival. A few of them have their turn."""

    def __init__(self, turns_max: int) -> None:
        self.turns = asyncio.Semaphore(turns_max)
        self.waiting: dict[Hashable, None] = {}
        self.reading = 0


class ReadingOrder:
    """The two lanes."""

    def __init__(self) -> None:
        self._small, self._large = ReadingLane(SMALL_MAX), ReadingLane(LARGE_MAX)

    @asynccontextmanager
    async def turn(self, reader: Hashable, stream_bytes: int) -> AsyncIterator[None]:
        """Wait for the reader's turn, which lasts as long as the context."""
        lane = self._large if stream_bytes >= LARGE_BYTES else self._small
        lane.waiting[reader] = None
        try:
            async with lane.turns:
                del lane.waiting[reader]
                lane.reading += 1
                try:
                    yield
                finally:
                    lane.reading -= 1
        finally:
            lane.waiting.pop(reader, None)

    def ahead_of(self, reader: Hashable) -> int | None:
        """Return how many are read before a reader, or None if it does not wait for its turn. O(waiting readers)."""
        for lane in (self._small, self._large):
            if reader in lane.waiting:
                return lane.reading + list(lane.waiting).index(reader)
        return None
