"""What a process costs: CPU time and memory, as Linux counts them."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["UsageError", "children", "cpu_ns", "has_ended", "peak_bytes", "resident_bytes", "restart_peak"]


class UsageError(Exception):
    """There is no such process, or this system does not tell."""


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process so far. Its clock counts nanoseconds, where /proc/PID/stat counts in steps of 10 ms.

    :raises UsageError: there is no such process, or no such clock on this system
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)  # as glibc's clock_getcpuclockid makes it, for Linux alone
    except OSError as error:
        raise _unreadable("CPU time", pid, error) from None


def resident_bytes(pid: int) -> int:
    """Memory of a process now."""
    return _status_bytes(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """The most memory that a process had since `restart_peak`."""
    return _status_bytes(pid, "VmHWM")


def restart_peak(pid: int) -> None:
    """Forget the most memory that a process had so far.

    :raises UsageError: there is no such process, or this system does not tell
    """
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError as error:
        raise _unreadable("memory", pid, error) from None


def children(pid: int) -> list[int]:
    """The processes that a process has started, and that run.

    :raises UsageError: there is no such process, or this system does not tell
    """
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError as error:
        raise _unreadable("children", pid, error) from None
    return [int(child) for child in text.split()]


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits for its parent to ask how it ended. Its CPU time can be read then, too."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(") ")[2].startswith(("Z", "X"))


def _unreadable(what: str, pid: int, error: OSError) -> UsageError:
    why = "it has ended" if Path("/proc/self").exists() and has_ended(pid) else f"{error}; Linux alone tells"
    return UsageError(f"{what} of process {pid}: {why}")


def _status_bytes(pid: int, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise _unreadable("memory", pid, error) from None
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise UsageError(f"memory of process {pid}: found no {name}, so it has ended")
