"""The process as the inner one of a self-contained executable.

    host ── starts ──> outer process ── unpacks a directory, starts ──> inner process: this one
                       waits, passes signals and the exit code on, removes the directory

A host kills the outer process as soon as its shutdown is answered, and cannot know of the inner one. So the inner process watches the outer, stops
in order when it has ended, and then removes the directory. Who removes is never in doubt: the outer does nothing before the inner has ended,
and the inner removes only what the outer no longer can.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio  # not at run time: what asks for help need not wait for it

__all__ = ["OuterProcess"]

#: How often the outer process is looked at where its end is no event.
POLL_INTERVAL_S = 0.2
#: A signal to both processes, as from a terminal or systemd, comes a second time from the outer: within this time.
ECHO_S = 0.25
#: How the unpacked directory is named. Where nothing is unpacked the program's own directory stands in its place.
UNPACKED_PREFIX = "_MEI"
#: Adopts the orphans, unless it is the outer process itself, as in a container.
INIT_PID = 1


class OuterProcess:
    """The process that has unpacked and started this one. In a process that nobody unpacked, it never ends and nothing is cleaned up."""

    def __init__(self) -> None:
        self._directory = _unpacked_directory()
        self._pid = os.getppid()
        self._descriptor: int | None = None
        self._orphaned = False
        self._signals: dict[int, float] = {}
        if self._directory is not None:
            # In this order: a process id can't be given to another between the two, unseen.
            self._descriptor = _open_process(self._pid)
            self._orphaned = not _runs_this_executable(self._pid)

    @property
    def ended(self) -> bool:
        """Whether there was one, and it is no more."""
        return self._directory is not None and (self._orphaned or os.getppid() != self._pid)

    def watch(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], object]) -> None:
        """Call `on_end` once in the loop when it has ended, or soon where it has already."""
        if self._directory is None:
            return
        if self.ended:
            loop.call_soon(on_end)
        elif self._descriptor is not None:
            loop.add_reader(self._descriptor, self._notice, loop, self._descriptor, on_end)
        else:
            loop.call_later(POLL_INTERVAL_S, self.watch, loop, on_end)

    def is_echo(self, number: int) -> bool:
        """Whether a signal that has come is one that came just before, passed on by the outer process. Ask once a signal."""
        if self._directory is None:
            return False
        now_s = time.monotonic()
        before_s = self._signals.pop(number, None)
        if before_s is not None and now_s - before_s < ECHO_S:
            return True
        self._signals[number] = now_s
        return False

    def clean_up(self, timeout_s: float = 0.0) -> None:
        """Remove the unpacked directory if the outer process has ended. The last that a process does: nothing can be imported any more.

        :param timeout_s: how long to wait for that end, where it is near: if it came while the outer removes, half of it would stay
        """
        if self._directory is None or not self._wait(timeout_s):
            return
        import logging
        import shutil

        try:
            shutil.rmtree(self._directory)
        except FileNotFoundError:  # it was cleaned up before
            pass
        except OSError as error:
            logging.getLogger("keyvalue_provider").warning(
                "%s is left behind: %s", self._directory, error.strerror or error
            )

    def _wait(self, timeout_s: float) -> bool:
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


def _unpacked_directory() -> Path | None:
    directory = getattr(sys, "_MEIPASS", None)
    if directory is None or not Path(directory).name.startswith(UNPACKED_PREFIX):
        return None
    return Path(directory)


def _open_process(pid: int) -> int | None:
    """A descriptor that becomes readable at the process's end; None where the system has none.

    Better than a signal at the parent's death: that one can come before it was asked for, comes at the end of a thread already, and asking for it
    takes an import of 10 ms.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _runs_this_executable(pid: int) -> bool:
    """Whether a process is the outer one, and not who has adopted an orphan."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat("/proc/self/exe"))
    except OSError:  # no /proc, or no right to look
        return pid != INIT_PID
