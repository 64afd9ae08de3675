"""An ancestor of this process, such as its parent. This process can notice the ancestor's end."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio  # only for type checkers, so that `--help` does not wait for this import

__all__ = ["Ancestor"]

#: Interval for polling an ancestor, on systems that cannot signal the end of a process.
POLL_INTERVAL_S = 0.2


class Ancestor:
    """A process from which this process descends.

    :param read_pid: returns the id of the process in the ancestor's place; the ancestor has ended when the id changes,
        because the system then gives its children another parent
    """

    def __init__(self, read_pid: Callable[[], int]) -> None:
        self.pid = read_pid()
        self._read_pid = read_pid
        # `ended` detects that the id was reused before the descriptor was opened.
        self._descriptor = _open_process(self.pid)

    @property
    def ended(self) -> bool:
        """True if the ancestor has ended."""
        return self._read_pid() != self.pid

    def watch(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], object]) -> None:
        """Call `on_end` once in the loop when the ancestor ends. If it has ended already, call `on_end` soon."""
        if self.ended:
            loop.call_soon(on_end)
        elif self._descriptor is not None:
            loop.add_reader(self._descriptor, self._notice, loop, self._descriptor, on_end)
        else:
            loop.call_later(POLL_INTERVAL_S, self.watch, loop, on_end)

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end, up to `timeout_s`. Return True if the ancestor has ended."""
        deadline_s = time.monotonic() + timeout_s
        while not self.ended and (left_s := deadline_s - time.monotonic()) > 0:
            if self._descriptor is None:
                time.sleep(min(left_s, POLL_INTERVAL_S))
            else:
                ends = select.poll()
                ends.register(self._descriptor, select.POLLIN)
                ends.poll(left_s * 1000)
        return self.ended

    @staticmethod
    def _notice(loop: asyncio.AbstractEventLoop, descriptor: int, on_end: Callable[[], object]) -> None:
        loop.remove_reader(descriptor)
        on_end()


def _open_process(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends, or None if the system does not support this.

    A parent-death signal (`prctl`) would be less reliable. The parent may die before the signal is requested, and the
    signal is also sent when a thread of the parent ends. Requesting it also needs an import that takes 10 ms.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
