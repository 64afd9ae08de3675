"""CPU time and memory of a process, as Linux reports them. Each function raises OSError if the process is gone."""

from __future__ import annotations

import re
import time
from pathlib import Path

__all__ = ["children", "cpu_ns", "has_ended", "peak_bytes", "resident_bytes", "restart_peak"]


def cpu_ns(pid: int) -> int:
    """Return the CPU time that all threads of a process have used so far.

    The kernel's clock for a process counts nanoseconds, but /proc/PID/stat counts only steps of 10 ms.
    """
    try:
        return time.clock_gettime_ns(~pid << 3 | 2)  # the id that glibc's clock_getcpuclockid returns on Linux
    except OSError:
        raise ProcessLookupError(f"No such process: {pid}") from None


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return _status_bytes(pid, "VmRSS")


def peak_bytes(pid: int) -> int:
    """Return the peak memory of a process since the last `restart_peak`."""
    return _status_bytes(pid, "VmHWM")


def restart_peak(pid: int) -> None:
    """Reset the peak memory of a process to its current memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def children(pid: int) -> list[int]:
    """Return the ids of a process's running children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_ended(pid: int) -> bool:
    """Return True if a process has ended. It may be a zombie, whose CPU time can still be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(") ")[2].startswith(("Z", "X"))


def _status_bytes(pid: int, name: str) -> int:
    path = Path(f"/proc/{pid}/status")
    found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    if found is None:
        raise ProcessLookupError(f"{path} has no {name}, because the process has ended")
    return int(found[1]) * 1024
