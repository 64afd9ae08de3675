"""The conditions of a run: software versions, machine, commit and load average. Reports show these conditions."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.run.paths import ROOT, SCRIPTS

__all__ = ["about", "load_average"]

PACKAGES = ("keyvalue-inmemory", "nats-py", "uvloop", "siphashc", "sortedcontainers")
UNKNOWN = "unknown"


def about() -> dict[str, Any]:
    """Return the current time, commit, versions and machine, as JSON values."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }


def load_average() -> str:
    """Return the load averages over one, five and fifteen minutes."""
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


def commit() -> dict[str, Any]:
    """Return the id of the current commit, and True in `changed` if there are uncommitted changes."""
    return {
        "id": _output("git", "rev-parse", "HEAD"),
        "changed": bool(_output("git", "status", "--porcelain", otherwise="")),
    }


def versions() -> dict[str, str]:
    """Return the versions of all software that influences the figures."""
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = UNKNOWN
    found["nats-server"] = _output(SCRIPTS / "nats-server", "--version").rpartition(" ")[2]
    return found


def machine() -> dict[str, Any]:
    """Return the machine's processor, cores, memory and operating system."""
    model = platform.processor() or UNKNOWN
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
                break
    return {
        "processor": model,
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
    }


def _output(*command: str | Path, otherwise: str = UNKNOWN) -> str:
    """Return the output of a command, or `otherwise` if it fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return otherwise
    return done.stdout.strip() if done.returncode == 0 else otherwise
