"""The self-contained executable, built once for all tests that run it."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD_TIMEOUT_S = 240


def run_build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/build, without coverage, which would follow it into PyInstaller."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COVERAGE_", "WASH_"))}
    return subprocess.run(
        [ROOT / "scripts" / "build", *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )


@cache
def built_executable() -> Path:
    """The executable as scripts/build makes it of the sources as they are."""
    run = run_build()
    assert run.returncode == 0, run.stderr
    return ROOT / "build" / "keyvalue-inmemory"
