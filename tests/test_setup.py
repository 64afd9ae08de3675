"""scripts/setup: a .venv that does not work here is made again, and an error says what to install.

The folders hold a small project instead of this one, which takes longer to install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build import ROOT

INSTALL_TIMEOUT_S = 120
PYPROJECT = """
[build-system]
requires = ["hatchling>=1.26,<2"]
build-backend = "hatchling.build"
[project]
name = "keyvalue-inmemory"
version = "0"
[project.optional-dependencies]
demo = []
dev = []
[project.scripts]
keyvalue-inmemory = "keyvalue_provider:main"
[tool.hatch.build.targets.wheel]
packages = ["provider/keyvalue_provider"]
[tool.hatch.build]
dev-mode-dirs = ["provider"]
"""
CODE = "def main():\n    print(__file__)\n"
#: A program that creates environments and installs, as uv does.
UV = f"""#!/bin/sh
unset PYTHONPATH
case "$1" in
  venv) exec {sys.executable} -m venv --without-pip .venv ;;
  pip) exec {sys.executable} -m pip --python .venv/bin/python install --quiet --editable '.[demo]' ;;
esac
"""


def new_project(folder: Path) -> Path:
    """Make a folder with scripts/setup and a small project."""
    package = folder / "provider" / "keyvalue_provider"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CODE)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "scripts").mkdir()
    shutil.copy2(ROOT / "scripts" / "setup", folder / "scripts" / "setup")
    return folder


def set_up(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/setup."""
    return subprocess.run(
        ["scripts/setup", "demo"],
        cwd=folder,
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
    )


def check(folder: Path, **environment: str) -> str:
    """Run scripts/setup, and check that the command then runs this folder's code. Return what scripts/setup said."""
    done = set_up(folder, **environment)
    assert done.returncode == 0, done.stderr
    command = [folder / ".venv" / "bin" / "keyvalue-inmemory"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert Path(printed.strip()).is_relative_to(folder)
    return done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that is set up. Its name has a space."""
    folder = new_project(tmp_path_factory.mktemp("setup") / "a folder")
    assert "creating .venv" in check(folder)
    assert check(folder) == "", "the second run does nothing"
    return folder


@pytest.mark.timeout(2 * INSTALL_TIMEOUT_S)
def test_a_copied_and_then_moved_folder_runs_its_own_code(made: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(made, copied, symlinks=True)
    assert "made again" in check(copied)
    moved = copied.rename(tmp_path / "moved")
    assert "made again" in check(moved)
    assert check(made) == ""


@pytest.mark.timeout(2 * INSTALL_TIMEOUT_S)
def test_an_environment_whose_python_is_gone_is_made_again(made: Path) -> None:
    for python in (made / ".venv" / "bin").glob("python*"):
        python.unlink()
        python.symlink_to(made / "gone")
    assert "made again" in check(made)


@pytest.fixture
def debian(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which Python lacks ensurepip, as Debian's does without python3-venv."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "ensurepip.py").write_text("raise ModuleNotFoundError('No module named ensurepip')\n")
    return {"PYTHONPATH": str(modules)}


@pytest.mark.timeout(2 * INSTALL_TIMEOUT_S)
def test_without_ensurepip_it_says_what_to_install_and_recovers_afterwards(
    tmp_path: Path, debian: dict[str, str]
) -> None:
    folder = new_project(tmp_path / "folder")
    for _ in range(2):
        done = set_up(folder, **debian)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "apt install python3" in line
        assert line.endswith("-venv")
    # Earlier versions of scripts/setup left an environment without pip.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    check(folder)


@pytest.mark.timeout(2 * INSTALL_TIMEOUT_S)
def test_without_ensurepip_it_uses_uv(tmp_path: Path, debian: dict[str, str]) -> None:
    folder = new_project(tmp_path / "folder")
    (uv := tmp_path / "uv").write_text(UV)
    uv.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    check(folder, **debian, PATH=path)
    assert check(folder) == "", "it also works without uv"


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("nopython", "found no program nopython; install Python 3.11 or newer, or set PYTHON=/path/to/it"),
        ("old", "found Python 3.10.0 as old; set PYTHON=/path/to/Python 3.11 or newer"),
    ],
)
def test_another_python_is_refused_in_one_line(tmp_path: Path, python: str, message: str) -> None:
    folder = new_project(tmp_path / "folder")
    (old := tmp_path / "old").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.0\n')
    old.chmod(0o755)
    done = set_up(folder, PYTHON=python, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert (done.returncode, done.stderr) == (1, f"scripts/setup: {message}\n")


def test_a_clone_with_line_ends_of_windows_has_scripts_that_run(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    convert = ("-c", "core.autocrlf=true", "-c", "core.symlinks=false")
    subprocess.run(["git", *convert, "clone", "--quiet", ROOT, clone], check=True, capture_output=True)
    scripts = [clone / "run.sh", *(path for path in (clone / "scripts").iterdir() if path.is_file())]
    assert [path.name for path in scripts if b"\r" in path.read_bytes()] == []
    for script in ("./run.sh", "scripts/check", "scripts/test", "scripts/build"):
        helped = subprocess.run([script, "--help"], cwd=clone, capture_output=True, text=True)
        assert (helped.returncode, helped.stderr) == (0, "")
        assert f"usage: {script}" in helped.stdout
    assert not (clone / ".venv").exists(), "help needs no installation"
