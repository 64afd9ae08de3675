"""Installing an earlier revision: from a repository whose `scripts/setup` records how it was called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.run.processes import ProcessError
from bench.run.revision import commit_of, install
from bench.run.subjects import BEFORE, DIRECT

SETUP = """#!/bin/sh
set -e
mkdir -p .venv/bin
"$PYTHON" -c 'import sys; print(sys.base_prefix)' > python
cp "$PIP_CONSTRAINT" constraints
echo "$1" >> calls
{then}
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with two commits: one that can be installed, and one that cannot."""
    monkeypatch.setattr("bench.run.revision.ROOT", tmp_path)
    monkeypatch.setattr("bench.run.revision.FOLDER", tmp_path / "build" / "revisions")
    script = tmp_path / "scripts" / "setup"
    script.parent.mkdir()
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path))
    subprocess.run((*git, "init", "--quiet"), check=True)
    for tag, then in (("good", "touch .venv/bin/keyvalue-inmemory"), ("bad", "exit 3")):
        script.write_text(SETUP.format(then=then))
        script.chmod(0o700)
        subprocess.run((*git, "add", "scripts"), check=True)
        subprocess.run((*git, "commit", "--quiet", "-m", tag), check=True)
        subprocess.run((*git, "tag", tag), check=True)
    return tmp_path


def test_a_revision_is_installed_once_with_this_python_and_these_libraries(repository: Path) -> None:
    commit = commit_of("good")
    assert commit != commit_of("bad")
    for _ in range(2):
        before = install(commit)
    folder = repository / "build" / "revisions" / commit
    assert before.command == (str(folder / ".venv" / "bin" / "keyvalue-inmemory"),)
    assert (before.name, before.config) == (BEFORE, DIRECT.config)
    assert (folder / "calls").read_text() == "demo\n"
    assert (folder / "python").read_text() == f"{sys.base_prefix}\n"
    assert "\nnats-py==" in (folder / "constraints").read_text()
    assert "keyvalue-inmemory" not in (folder / "constraints").read_text()


def test_a_revision_that_cannot_be_installed_is_reported(repository: Path) -> None:
    with pytest.raises(ValueError, match="--against: found worse, which is no revision of this repository"):
        commit_of("worse")
    with pytest.raises(ProcessError, match="scripts/setup ended with exit status 3"):
        install(commit_of("bad"))
