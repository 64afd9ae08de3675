"""The output of one connection that the NATS server has perhaps not read yet. Receipts tell how much it has read.

A NATS server that holds 48 MiB for a client that does not read slows down everybody who sends to that client, and reads
6 MB/s or less from us, for as long as 10 s. It reads our output in order, so each answer waits until the server has read
all output before it. The buffers of the two kernels can hold 40 MB. So no more than a window is sent:

    socket <── answers, receipt, answers, receipt, ...       a receipt follows each half of a window
    socket ──> receipt                                       the server has read everything before it

A *receipt* is a numbered frame that the server sends back to us. If it is late, the window is halved, since an answer
must not wait for long. If it is quick, the window grows again. If none arrives for a second, the window is halved too,
and one window more is sent. The number tells a receipt that arrives after all from those of newer output.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic

__all__ = ["RECEIPTS", "RECEIPT_TIMEOUT_S", "WINDOW_BYTES", "Window"]

#: The largest window. 4 MiB delay an answer by 15 ms at 300 MB/s, and by 0.4 to 1 s once, when the server begins to slow
#: us down. They fill a network with 100 MB/s and a round trip of 40 ms. With 2 MiB, large values take more CPU time.
WINDOW_BYTES = 4 * 1024 * 1024
#: The smallest window.
WINDOW_BYTES_MIN = 256 * 1024
#: The number of receipts for a window. With the largest window, they cost less than 1 % of the time of small answers.
RECEIPTS = 2
#: A receipt is late if it takes this much longer than the quickest one. The window grows if it takes half of this.
LATE_S = 0.1
#: After this time without a receipt, the next window is sent.
RECEIPT_TIMEOUT_S = 1.0
#: The time of the quickest receipt grows by this with each receipt, because the network may become slower.
FORGETTING = 1.01
#: The maximum length of a receipt's number.
DIGITS_MAX = 18


class Window:
    """The output that has no receipt.

    :param on_open: called if no receipt has come for RECEIPT_TIMEOUT_S
    :ivar unread_bytes: the size of the output before the last request for a receipt, if the receipt has not arrived
    :ivar written_bytes: the size of the output since the last request; the caller adds what it writes
    :ivar due_bytes: when `written_bytes` has reached this, a receipt must be requested with the next output
    """

    __slots__ = (
        *("_limit_bytes", "_loop", "_on_open", "_quickest_s", "_receipts_arrive", "_requests"),
        *("_timeout", "_unread", "due_bytes", "unread_bytes", "written_bytes"),
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, on_open: Callable[[], None]) -> None:
        self._loop = loop
        self._on_open = on_open
        self._limit_bytes = WINDOW_BYTES
        self.due_bytes: float = self.part_bytes
        self.written_bytes = 0
        self._requests = 0
        # For each receipt to come: its number, the bytes before it, and when it was requested.
        self._unread: deque[tuple[int, int, float]] = deque()
        self.unread_bytes = 0
        self._quickest_s = inf
        self._timeout: asyncio.TimerHandle | None = None  # for the oldest receipt
        self._receipts_arrive: bool | None = None  # None until the first receipt or its timeout

    def is_open(self) -> bool:
        """Return True if more may be sent. If not, a receipt will open the window, or `on_open` is called."""
        return self.unread_bytes < self._limit_bytes

    @property
    def part_bytes(self) -> int:
        """Return the size of the output for which a receipt is requested."""
        return self._limit_bytes // RECEIPTS

    def note_request(self) -> bytes:
        """Expect a receipt, which is requested at the end of the next output. Return its payload."""
        self._requests += 1
        self._unread.append((self._requests, self.written_bytes, monotonic()))
        self.unread_bytes += self.written_bytes
        self.written_bytes = 0
        if self._timeout is None:
            self._begin_timeout()
        return b"%d" % self._requests

    def note_receipt(self, payload: bytes) -> None:
        """Make room, because the NATS server has read everything before this receipt."""
        if not payload.isdigit() or len(payload) > DIGITS_MAX or (number := int(payload)) > self._requests:
            return  # another client can send this too
        self._receipts_arrive = True
        self.close()
        while self._unread and self._unread[0][0] <= number:
            _, size_bytes, sent_s = self._unread.popleft()
            self.unread_bytes -= size_bytes
            taken_s = monotonic() - sent_s
            self._quickest_s = min(taken_s, self._quickest_s * FORGETTING)
            if taken_s > self._quickest_s + LATE_S:
                self._limit_bytes = max(self._limit_bytes // 2, WINDOW_BYTES_MIN)
            elif taken_s < self._quickest_s + LATE_S / 2:
                self._limit_bytes = min(self._limit_bytes * 2, WINDOW_BYTES)
        if self._unread:
            self._begin_timeout()
        self.due_bytes = self.part_bytes

    def close(self) -> None:
        """End the timeout."""
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _begin_timeout(self) -> None:
        self._timeout = self._loop.call_later(RECEIPT_TIMEOUT_S, self._miss_receipt)

    def _miss_receipt(self) -> None:
        """Continue without a receipt. If none has ever arrived, we may not publish to our own inbox: ask no more."""
        self._timeout = None
        self._unread.clear()
        self.unread_bytes = 0
        self._limit_bytes = max(self._limit_bytes // 2, WINDOW_BYTES_MIN)
        self.due_bytes = self.part_bytes
        self._receipts_arrive = self._receipts_arrive or False
        if not self._receipts_arrive:
            self.due_bytes = inf
        self._on_open()
