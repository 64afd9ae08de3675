"""The outer process of a self-contained executable, as seen from the inner process.

    host ── starts ──> outer process ── unpacks a directory, starts ──> inner process (this process)
                       waits, passes on signals and the exit code, removes the directory

A host kills the outer process as soon as its shutdown request is answered. The host does not know about the inner process.
So the inner process watches the outer process, and stops cleanly when the outer process ends. Normally, the outer
process removes the directory after the inner process has ended. If the outer process has ended first, the inner
process removes the directory.
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
    import asyncio  # only for type checkers, so that `--help` does not wait for this import

__all__ = ["OuterProcess"]

#: Interval for polling the outer process, on systems that do not report its end.
POLL_INTERVAL_S = 0.2
#: A terminal or systemd signals both processes. The outer process passes its signal on within this time.
ECHO_S = 0.25
#: Prefix of the unpacked directory's name. If nothing is unpacked, PyInstaller names the program's own directory.
UNPACKED_PREFIX = "_MEI"
#: The id of the process that adopts orphans. In a container, this process may be the outer process itself.
INIT_PID = 1


class OuterProcess:
    """The process that unpacked and started this process.

    If there is no such process, `ended` is always False, and `watch` and `clean_up` do nothing.
    """

    def __init__(self) -> None:
        self._directory = _unpacked_directory()
        self._pid = os.getppid()
        self._descriptor: int | None = None
        self._orphaned = False
        self._signals: dict[int, float] = {}
        if self._directory is not None:
            # Open the descriptor first. The check on the next line then detects a reused process id.
            self._descriptor = _open_process(self._pid)
            self._orphaned = not _runs_this_executable(self._pid)

    @property
    def ended(self) -> bool:
        """True if there was an outer process and this outer process has ended."""
        return self._directory is not None and (self._orphaned or os.getppid() != self._pid)

    def watch(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], object]) -> None:
        """Call `on_end` once in the loop when the outer process ends. If it has ended already, call `on_end` soon."""
        if self._directory is None:
            return
        if self.ended:
            loop.call_soon(on_end)
        elif self._descriptor is not None:
            loop.add_reader(self._descriptor, self._notice, loop, self._descriptor, on_end)
        else:
            loop.call_later(POLL_INTERVAL_S, self.watch, loop, on_end)

    def is_echo(self, number: int) -> bool:
        """Return True if the outer process passed on a signal that this process has just received itself.

        Call this method once for each signal.
        """
        if self._directory is None:
            return False
        now_s = time.monotonic()
        before_s = self._signals.pop(number, None)
        if before_s is not None and now_s - before_s < ECHO_S:
            return True
        self._signals[number] = now_s
        return False

    def clean_up(self, timeout_s: float = 0.0) -> None:
        """Remove the unpacked directory if the outer process has ended. Call this last: imports fail afterwards.

        :param timeout_s: seconds to wait for the end of the outer process, which may be killed while it removes the
            directory and would then leave a part of the directory
        """
        if self._directory is None or not self._wait(timeout_s):
            return
        import logging
        import shutil

        try:
            shutil.rmtree(self._directory)
        except FileNotFoundError:  # already removed
            pass
        except OSError as error:
            logging.getLogger("keyvalue_provider").warning(
                "%s could not be removed: %s", self._directory, error.strerror or error
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
    """Return a descriptor that becomes readable when the process ends, or None if the system has no such descriptors.

    The alternative is a signal at the parent's death. But the parent may die before the signal is requested. The
    signal is also sent when a thread of the parent ends. And requesting the signal needs an import that takes 10 ms.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _runs_this_executable(pid: int) -> bool:
    """Return True if the process is the outer process. Return False if it only adopted this process as an orphan."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat("/proc/self/exe"))
    except OSError:  # no /proc, or no permission to read it
        return pid != INIT_PID
