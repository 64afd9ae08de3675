"""The installed packages: the files of wheel and sdist, and the commands and the README's examples in a fresh environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest

from tests.build import ROOT, files_of, made_once
from tests.conftest import NatsServer, Process

#: The packages, and the folder of each.
PACKAGES = {
    "keyvalue_engine": "engine",
    "keyvalue_transport": "transport",
    "keyvalue_replica": "replica",
    "keyvalue_provider": "provider",
}
#: No variable of this environment, so that only the installed packages are found.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME") or name.startswith("PIP_")}
INSTALL_TIMEOUT_S = 120

# The first test builds and installs, or waits for another process that does.
pytestmark = pytest.mark.timeout(3 * INSTALL_TIMEOUT_S)


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command in the empty environment. Return its standard output."""
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Built(NamedTuple):
    """The distributions: both built from the tree, and a wheel built from the sdist."""

    sdist: Path
    wheel: Path
    wheel_of_sdist: Path


def build(folder: Path) -> None:
    """Build the distributions with this environment's hatchling. An isolated build would download it each time."""
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    run(*command, folder / "tree", "--sdist", "--wheel")
    run(*command, folder / "sdist")  # without --wheel, the wheel is built from the sdist


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = made_once(tmp_path_factory, "distributions", build)
    (sdist,), (wheel,) = folder.glob("tree/*.tar.gz"), folder.glob("tree/*.whl")
    return Built(sdist, wheel, next(folder.glob("sdist/*.whl")))


def contents_of(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_the_files_of_the_packages_and_no_others(built: Built) -> None:
    """It must not take names in site-packages that others use."""
    names = contents_of(built.wheel).keys()
    expected = {name for folder in PACKAGES.values() for name in files_of(folder)}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert expected >= {f"{package}/py.typed" for package in PACKAGES}
    assert {name.partition("/")[0] for name in expected} == PACKAGES.keys()
    assert len({name.partition("/")[0] for name in names}) == len(PACKAGES) + 1


def test_the_sdist_has_the_files_of_the_repository(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == {*files_of(), "PKG-INFO"}


def test_the_wheel_built_from_the_sdist_is_the_same(built: Built) -> None:
    assert contents_of(built.wheel_of_sdist) == contents_of(built.wheel)


def test_twine_accepts_both(built: Built) -> None:
    printed = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", built.sdist, built.wheel)
    assert printed.count("PASSED") == 2


# Installed.


@pytest.fixture(scope="session")
def commands(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment. Return the folder of its commands."""

    def install(folder: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        run(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", built.wheel)

    return made_once(tmp_path_factory, "installed", install) / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a user's folder, with modules named like our folders. Neither may hide the other."""
    for name in PACKAGES.values():
        (tmp_path / f"{name}.py").write_text(f"print('the {name} of the user')\n")
    return tmp_path


@pytest.fixture
def served(commands: Path, nats_server: NatsServer, tmp_path: Path) -> Iterator[NatsServer]:
    """Yield a NATS server at which the installed command serves, started as in the README."""
    provider = Process([commands / "keyvalue-inmemory", "serve", "--nats", nats_server.url], tmp_path, {})
    try:
        provider.wait_for("ready: serving")
        yield nats_server
        provider.process.terminate()
        assert provider.wait() == 0
    finally:
        provider.kill()


def example(package: str) -> str:
    """Return the README's Python example of a package."""
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (found,) = (one for one in examples if f"from {package}" in one)
    return str(found)


def run_script(commands: Path, folder: Path, text: str) -> list[str]:
    """Run a script next to a user's modules. Return the lines that it prints."""
    script = folder / "script.py"
    script.write_text(text)
    return run(commands / "python", script, cwd=folder).splitlines()


def test_the_packages_and_a_users_modules_do_not_collide(commands: Path, folder: Path) -> None:
    text = "".join(f"import {package}, {name}\nprint({package}.__file__)\n" for package, name in PACKAGES.items())
    printed = run_script(commands, folder, text)
    assert printed[::2] == [f"the {name} of the user" for name in PACKAGES.values()]
    for package, path in zip(PACKAGES, printed[1::2], strict=True):
        assert Path(path).parent.name == package
        assert Path(path).is_relative_to(commands.parent)


def test_the_commands_are_installed(commands: Path, built: Built) -> None:
    version = built.wheel.name.split("-")[1]
    assert run(commands / "keyvalue-inmemory", "--version") == f"keyvalue-inmemory {version}\n"
    for command in ("keyvalue-inmemory", "wrpc-kv"):
        assert run(commands / command, "--help").startswith(f"usage: {command} ")


def test_the_library_example_of_the_readme_runs(commands: Path, folder: Path) -> None:
    assert run_script(commands, folder, example("keyvalue_engine")) == []
    assert (folder / "store.snapshot").exists()


def test_the_client_example_of_the_readme_runs(commands: Path, folder: Path, served: NatsServer) -> None:
    text = example("keyvalue_transport")
    assert text.count("127.0.0.1:4222") == 1
    *values, keys = run_script(commands, folder, text.replace("127.0.0.1:4222", served.url))
    assert values == ["b'value'", "[b'value', None] 1"]
    assert keys in ("['key', 'visits']", "['visits', 'key']")  # the order is that of the store
    client = (commands / "wrpc-kv", "--url", served.url, "--bucket", "bucket")
    assert run(*client, "get", "key") == "value"
