"""CPU time and memory of a process, as Linux reports them."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["UsageError", "children", "cpu_ns", "has_ended", "peak_bytes", "resident_bytes", "restart_peak"]


class UsageError(Exception):
    """An error for a missing process, or for a system that does not report a process's usage."""


def cpu_ns(pid: int) -> int:
    """Return the CPU time that all threads of a process have used so far.

    The kernel's clock for a process counts nanoseconds, but /proc/PID/stat counts only steps of 10 ms.

    :raises UsageError: the process does not exist, or this system has no such clock
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)  # the id that glibc's clock_getcpuclockid returns on Linux
    except OSError as error:
        raise _unreadable("CPU time", pid, error) from None


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return _status_bytes(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """Return the peak memory of a process since the last `restart_peak`."""
    return _status_bytes(pid, "VmHWM")


def restart_peak(pid: int) -> None:
    """Reset the peak memory of a process to its current memory.

    :raises UsageError: the process does not exist, or this system does not report its usage
    """
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError as error:
        raise _unreadable("memory", pid, error) from None


def children(pid: int) -> list[int]:
    """Return the ids of a process's running children.

    :raises UsageError: the process does not exist, or this system does not report its usage
    """
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError as error:
        raise _unreadable("children", pid, error) from None
    return [int(child) for child in text.split()]


def has_ended(pid: int) -> bool:
    """Return True if a process has ended. It may be a zombie, whose CPU time can still be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(") ")[2].startswith(("Z", "X"))


def _unreadable(what: str, pid: int, error: OSError) -> UsageError:
    why = "it has ended" if Path("/proc/self").exists() and has_ended(pid) else f"{error}; this needs Linux"
    return UsageError(f"cannot read {what} of process {pid}: {why}")


def _status_bytes(pid: int, name: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError as error:
        raise _unreadable("memory", pid, error) from None
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise UsageError(f"cannot read memory of process {pid}: {name} is missing, so it has ended")
