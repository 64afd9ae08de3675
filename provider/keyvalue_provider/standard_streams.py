"""Standard streams that are closed when the process starts, as after `>&-` in a shell.

The system gives the number of a closed stream to the next file or socket. A log would then be written into it, and libuv
aborts the process when it closes it. So the null device takes the place of a closed stream.
"""

from __future__ import annotations

import os
import sys

__all__ = ["drop_output", "hold_closed_streams", "open_closed_streams"]


def hold_closed_streams() -> None:
    """Open the null device in place of each closed standard stream. Call this before anything else opens a file.

    Reading from a closed input and writing to a closed output still fail: `Bad file descriptor`. A closed standard
    error takes everything.
    """
    for descriptor, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number, which is this one


def open_closed_streams() -> None:
    """Open the null device in place of each closed standard stream, also for Python, which has None instead."""
    hold_closed_streams()
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 # it stays open
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 # it stays open
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 # it stays open


def drop_output() -> None:
    """Drop what is not written to standard output yet. Otherwise, Python would try again at exit, and fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
