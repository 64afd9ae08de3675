"""The outer process of a self-contained executable, as seen from the inner process.

    host ── starts ──> outer process ── unpacks a directory, starts ──> inner process (this process)
                       waits, passes on signals and the exit code, removes the directory

A host does not know about the inner process. After a shutdown request is answered, the host kills the outer process. So
the inner process watches the outer process, and stops cleanly when the outer process ends. Normally, the outer process
removes the directory after the inner process has ended. If the outer process ends first, the inner process removes the
directory. If the outer process fails while it unpacks, for example on a full disk, the directory stays. The next
process that starts from the same place removes it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from keyvalue_provider.ancestor import Ancestor

if TYPE_CHECKING:
    import asyncio  # only for type checkers, so that `--help` does not wait for this import

__all__ = ["OuterProcess"]

#: A terminal or systemd may signal both processes. The outer process then forwards its signal within this time.
ECHO_S = 0.25
#: Prefix of the unpacked directory's name. If nothing is unpacked, `sys._MEIPASS` is the program's own directory.
UNPACKED_PREFIX = "_MEI"
#: Python cannot start without this file. It is among the last files to be unpacked.
LIBRARY = "base_library.zip"
#: An outer process unpacks a directory within this time.
UNPACK_TIMEOUT_S = 60.0
#: The id of the process that adopts orphans. In a container, the outer process itself may have this id.
INIT_PID = 1


class OuterProcess:
    """The process that unpacked this executable and started this process.

    If there is no such process, `ended` is always False, and `watch` and `clean_up` do nothing.

    :ivar pid: the id of the outer process, or None if there is no such process
    """

    def __init__(self) -> None:
        self._directory = _unpacked_directory()
        self._parent: Ancestor | None = None
        self.pid: int | None = None
        self._orphaned = False
        self._signals: dict[int, float] = {}
        if self._directory is not None:
            self._parent = Ancestor(lambda: os.getppid())
            self.pid = self._parent.pid
            # Check this after opening the parent. The check then detects a reused process id.
            self._orphaned = not _runs_this_executable(self.pid)

    @property
    def ended(self) -> bool:
        """True if there was an outer process and it has ended."""
        return self._parent is not None and (self._orphaned or self._parent.ended)

    def watch(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], object]) -> None:
        """Call `on_end` once in the loop when the outer process ends. If it has ended already, call `on_end` soon."""
        if self._orphaned:
            loop.call_soon(on_end)
        elif self._parent is not None:
            self._parent.watch(loop, on_end)

    def is_echo(self, number: int) -> bool:
        """Return True if a signal is the outer process's copy of a signal that this process has just received.

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

        :param timeout_s: seconds to wait for the outer process to end; a host may kill it before it has removed the
            whole directory
        """
        if self._directory is None or self._parent is None or not (self._orphaned or self._parent.wait(timeout_s)):
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

    def remove_unfinished(self) -> None:
        """Remove directories that were never unpacked completely. Nothing can run from them, whatever program they are of."""
        if self._directory is None:
            return
        import logging
        import shutil

        try:
            with os.scandir(self._directory.parent) as entries:
                for entry in filter(_is_unfinished, entries):
                    shutil.rmtree(entry.path)
        except OSError as error:  # also if another process removes it at the same time
            logging.getLogger("keyvalue_provider").warning(
                "a directory that was not unpacked completely could not be removed: %s", error
            )


def _is_unfinished(entry: os.DirEntry[str]) -> bool:
    if not (entry.name.startswith(UNPACKED_PREFIX) and entry.is_dir(follow_symlinks=False)):
        return False
    found = entry.stat(follow_symlinks=False)
    is_ours = found.st_uid == os.getuid() and found.st_mtime < time.time() - UNPACK_TIMEOUT_S
    return is_ours and not os.path.exists(os.path.join(entry.path, LIBRARY))


def _unpacked_directory() -> Path | None:
    directory = getattr(sys, "_MEIPASS", None)
    if directory is None or not Path(directory).name.startswith(UNPACKED_PREFIX):
        return None
    return Path(directory)


def _runs_this_executable(pid: int) -> bool:
    """Return True if the process is the outer process. Return False if it only adopted this process as an orphan."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/exe"), os.stat("/proc/self/exe"))
    except OSError:  # no /proc, or no permission to read it
        return pid != INIT_PID
