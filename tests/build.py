"""Costly builds that all processes of the tests share: pytest makes a session fixture in each of them."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD_TIMEOUT_S = 240


def files_of(folder: str = ".") -> set[str]:
    """Return the paths below a folder of the repository that git tracks, or would add."""
    command = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT / folder, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.split("\0") if (ROOT / folder / name).is_file()}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that one process of the tests can hold at a time. It is released when the process ends, too."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first process to ask fills by `make`, while the others wait."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = shared / name, shared / f"{name}.made"
    with locked(shared / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # another process failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def run_build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/build without the variables that it reads, except those that are given."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WASH_")}
    return subprocess.run(
        [ROOT / "scripts" / "build", *arguments],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )


@cache
def built_executable() -> Path:
    """Return the executable that scripts/build makes of the current sources."""
    with locked(ROOT / "build" / "tests.lock"):
        run = run_build()
    assert run.returncode == 0, run.stderr
    return ROOT / "build" / "keyvalue-inmemory"
