"""Writes the log in a thread of its own, so that nothing waits for the reader of standard error.

    event loop ── write ──> lines, at most QUEUE_BYTES_MAX ──> thread ── os.write ──> standard error

A pipe that nobody reads takes 64 KiB and then blocks its writer. A non-blocking descriptor would not help: the flag
belongs to the open file, which other processes share, such as the shell at a terminal.
"""

from __future__ import annotations

import os
import select
from collections import deque
from threading import Condition, Thread

__all__ = ["LogWriter"]

#: Bytes of lines that wait to be written. Further lines are dropped.
QUEUE_BYTES_MAX = 1024 * 1024


class LogWriter:
    """Writes lines to a descriptor. `write` never waits.

    :ivar refused: lines dropped because too many were waiting
    :ivar failed: lines dropped because they could not be written, for example to a pipe without a reader
    """

    def __init__(self, descriptor: int) -> None:
        self.refused = 0
        self.failed = 0  # only the thread changes it
        self._descriptor = descriptor
        self._changed = Condition()  # protects the following, and `refused`
        self._lines: deque[bytes] = deque()
        self._queued_bytes = 0  # including the line that is being written
        self._thread: Thread | None = None

    def write(self, line: bytes) -> bool:
        """Have a line written. Return False if it is dropped."""
        with self._changed:
            if self._queued_bytes + len(line) > QUEUE_BYTES_MAX:
                self.refused += 1
                return False
            self._lines.append(line)
            self._queued_bytes += len(line)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return True

    def flush(self, timeout_s: float) -> None:
        """Wait until all lines are written, up to `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queued_bytes, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
            if not self._put(line):
                self.failed += 1
            with self._changed:
                self._queued_bytes -= len(line)
                self._changed.notify_all()

    def _put(self, line: bytes) -> bool:
        rest = memoryview(line)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # another process made the open file non-blocking
                    select.select([], [self._descriptor], [])
        except OSError:
            return False
        return True
