"""The lock of a snapshot's path. It keeps two processes from saving to one file.

The lock is a flock on the file `<path>.lock`, which stays and holds the process id of its last holder. The system
releases the lock when the holder and its forks have ended, however they end.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

__all__ = ["PathLock"]

SUFFIX = ".lock"
NUMBER_BYTES_MAX = 20


class PathLock:
    """The lock of a path. If the path is a symbolic link, it is the lock of the file that the link names."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path) + SUFFIX
        self.descriptor = -1

    def take(self) -> bool:
        """Take the lock. Return False if another process holds it.

        :raises OSError: the lock's file can't be opened, or the file system has no locks
        """
        if self.descriptor < 0:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.sign()
        return True

    def sign(self) -> None:
        """Write this process's id to the file, for messages. A fork of the holder holds the lock too."""
        with suppress(OSError):  # for example, the disk is full
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, b"%d\n" % os.getpid(), 0)

    @property
    def holder(self) -> str:
        """The holder, for messages."""
        text = os.pread(self.descriptor, NUMBER_BYTES_MAX, 0).strip().decode(errors="replace")
        return f"process {text}" if text.isdigit() else "another process"

    def release(self) -> None:
        """Release the lock, unless a fork of this process still holds it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
