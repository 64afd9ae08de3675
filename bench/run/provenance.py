"""The conditions of a run: software versions, machine, commit and load average. Reports show these conditions."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
from pytest_benchmark.utils import get_commit_info

from bench.run import SCRIPTS

__all__ = ["about"]

PACKAGES = ("keyvalue-inmemory", "nats-py", "uvloop", "siphashc", "sortedcontainers", "hiredis")


def about() -> dict[str, Any]:
    """Return the current time, commit, versions and machine, as JSON values."""
    info = pytest_benchmark_generate_machine_info()  # type: ignore[no-untyped-call]
    commit = get_commit_info()  # type: ignore[no-untyped-call]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    nats = subprocess.run([SCRIPTS / "nats-server", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": {name: commit[name] for name in ("id", "dirty")},
        "versions": {
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            **{name: version(name) for name in PACKAGES},
            "nats-server": nats.split()[-1],
        },
        "machine": f"{info['cpu'].get('brand_raw', info['processor'])} ({info['machine']}), "
        f"{len(os.sched_getaffinity(0))} cores, {gib:.0f} GiB, {info['system']} {info['release']}",
    }
