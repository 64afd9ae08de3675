"""The large results of one connection, which leave room for everything else.

A client may request many large results and read none. So a large result (`LargeResult` in wrpc/handler.py) is sent only
while nothing delays it, one message in each turn of the event loop. Small answers are written between the messages.
Until there is room, the core queues the call without its result (wrpc/large_calls.py).

    core ── answer_queued ──> frames of one result ── pump ──> socket's buffer ──> kernels' buffers ──> NATS server
                                                                  │ above high water: wait                  │
                                                  at most WINDOW_BYTES without a receipt <───── receipt ────┘

The buffers of the two kernels can hold 40 MB, and a small answer that is written later must wait for all of it. So a
receipt follows each part of a result. It is a frame that the NATS server sends back to us when it has read the part.

A page of keys may also take long to make, up to 0.1 s if its shard must be sorted and has long keys. So the first page
of a turn of the event loop begins a time slice. After it, the calls are queued, and callers take turns.

Invariants:
- At most one large result is held besides the socket's buffer, and smaller ones of up to PART_BYTES_MIN together.
- While something is held or queued, something will call `pump`: the next turn of the loop, `resume`, a receipt or its
  timeout, or a new connection.
- Nothing is sent on a connection that nats-py has not finished opening.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import perf_counter

from keyvalue_transport.nats.direct.routes import DirectRoutes, DirectServer

__all__ = ["PART_BYTES_MIN", "RECEIPT_TIMEOUT_S", "WINDOW_BYTES", "LargeOutput"]

#: No more is sent while the NATS server has not read this much. 4 MiB delay a small answer by 15 ms at 300 MB/s, and
#: still fill a network with 100 MB/s and a round trip of 40 ms.
WINDOW_BYTES = 4 * 1024 * 1024
#: A part consists of frames of one or more results, until they have this size.
PART_BYTES_MIN = 256 * 1024
#: No result is begun later than this after the first one in the same turn of the event loop.
SLICE_S = 0.005
#: After this time without a receipt, the next part is sent.
RECEIPT_TIMEOUT_S = 1.0


class LargeOutput:
    """The large results of one connection.

    :param write: writes frames to the socket
    """

    __slots__ = (
        *("is_blocked", "is_open", "_frames", "_loop", "_pumping", "_routes", "_write"),
        *("_receipts_arrive", "_slice_end_s", "_timeout", "_unread", "_unread_bytes"),
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, routes: DirectRoutes, write: Callable[[list[bytes]], None]
    ) -> None:
        self._loop = loop
        self._routes = routes
        self._write = write
        self.is_open = self.is_blocked = False
        self._frames: deque[bytes] = deque()  # the rest of a result
        self._pumping = False  # True while the next turn of the event loop calls `pump`
        self._slice_end_s: float | None = None  # None until a result is begun in this turn of the event loop
        self._unread: deque[int] = deque()  # the sizes of the parts that have no receipt
        self._unread_bytes = 0
        self._timeout: asyncio.TimerHandle | None = None  # for the oldest part without a receipt
        self._receipts_arrive: bool | None = None  # None until the first receipt or its timeout

    def open(self) -> None:
        """Allow sending, because nats-py has opened the connection."""
        self.is_open = True

    def close(self, unsent: int = 0) -> None:
        """Drop the rest of a result, because the connection is lost. Report it, with `unsent` other frames."""
        self.is_open = False
        self._end_timeout()
        server = self._routes.server
        unsent += len(self._frames)
        if unsent and server is not None and server.on_lost is not None:
            server.on_lost(unsent)
        self._frames.clear()

    def pause(self) -> None:
        """Stop sending, because the socket's buffer is above its high-water mark."""
        self.is_blocked = True

    def resume(self) -> None:
        """Continue, because the socket's buffer is below its low-water mark."""
        self.is_blocked = False
        self.pump()

    def has_room(self) -> bool:
        """Return True if nothing delays a large result. Then a time slice begins, unless it has begun already."""
        if self._frames or not self._may_send():
            return False
        now_s = perf_counter()
        if self._slice_end_s is None:
            self._slice_end_s = now_s + SLICE_S
            self._loop.call_soon(self._end_slice)
        return now_s < self._slice_end_s

    def add(self, frames: list[bytes]) -> None:
        """Send the frames of a result. Call `pump` after the small answers of the same read are written."""
        self._frames += frames

    def add_late(self, frames: list[bytes]) -> None:
        """Send the frames of a result that was not made in a read. The first part leaves in the next turn."""
        self._frames += frames
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump_again)

    def pump(self) -> None:
        """Send a part of the results. If there are none, answer queued calls. Then continue in the next turn."""
        server = self._routes.server
        if server is None or self._pumping or not self._may_send():
            return
        part: list[bytes] = []
        part_bytes = 0
        end_s = perf_counter() + SLICE_S
        while part_bytes < PART_BYTES_MIN:
            if self._frames:
                part.append(self._frames.popleft())
                part_bytes += len(part[-1])
            elif perf_counter() < end_s and server.invocations.queued:
                self._answer_queued(server)
            else:
                break
        if part and self._receipts_arrive is not False:
            part.append(server.replies.receipt)
            self._unread.append(part_bytes)
            self._unread_bytes += part_bytes
            if self._timeout is None:
                self._begin_timeout()
        if part:
            self._write(part)
        if self._frames or server.invocations.queued:
            self._pumping = True
            self._loop.call_soon(self._pump_again)

    def flush(self) -> None:
        """Write the rest of a result, because the server stops."""
        rest = list(self._frames)
        self._frames.clear()
        if rest:
            self._write(rest)

    def note_receipt(self) -> None:
        """Make room, because the NATS server has read the oldest part."""
        self._receipts_arrive = True
        self._end_timeout()
        if self._unread:
            self._unread_bytes -= self._unread.popleft()
        if self._unread:
            self._begin_timeout()

    def _answer_queued(self, server: DirectServer) -> None:
        self._routes.settle()
        step = server.invocations.answer_queued()
        if step is not None:
            self._frames += step.sends
            server.on_step(step)

    def _end_slice(self) -> None:
        self._slice_end_s = None

    def _pump_again(self) -> None:
        self._pumping = False
        self.pump()

    def _may_send(self) -> bool:
        return self.is_open and not self.is_blocked and self._unread_bytes < WINDOW_BYTES

    def _begin_timeout(self) -> None:
        self._timeout = self._loop.call_later(RECEIPT_TIMEOUT_S, self._miss_receipt)

    def _end_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _miss_receipt(self) -> None:
        """Continue without a receipt. If none has ever arrived, we may not publish to our own inbox: ask no more."""
        self._timeout = None
        self._unread.clear()
        self._unread_bytes = 0
        self._receipts_arrive = self._receipts_arrive or False
        self.pump()
