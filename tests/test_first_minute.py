"""The README's first minute, as somebody who has never seen the project: a fresh copy, its own .venv, the commands as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

ROOT = Path(__file__).parent.parent
INSTALL_TIMEOUT_S = 240
READY_TIMEOUT_S = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the repository, and nothing that was made from them."""
    copy = tmp_path_factory.mktemp("copy") / "keyvalue-inmemory"
    made = {str(ROOT): ["build", "keyvalue-inmemory"]}  # by scripts/build, and by wash
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", ".coverage*", ".benchmarks", "__pycache__", "results"
    )
    shutil.copytree(ROOT, copy, ignore=lambda folder, names: {*ignored(folder, names), *made.get(folder, ())})
    return copy


class Run:
    """`./run.sh` in a copy, on a port of its own."""

    def __init__(self, copy: Path, port: int, **environment: str) -> None:
        self.port = port
        self.url = f"127.0.0.1:{port}"
        self.environment = (
            {
                "PATH": os.environ["PATH"],
                "HOME": os.environ.get("HOME", "/"),
                "PYTHON": sys.executable,
                "LATTICE_RPC_URL": self.url,
                "METRICS_ADDRESS": str(free_port()),
            }
            | environment
            | {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        )
        self.began_s = time.monotonic()
        self.process = subprocess.Popen(
            ["./run.sh"], cwd=copy, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.output = ""
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_ready(self, timeout_s: float) -> float:
        """Seconds from the start to "ready"."""
        while "Ctrl-C stops" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() - self.began_s < timeout_s, self.output
            self._reader.join(0.02)
        return time.monotonic() - self.began_s

    def interrupt(self) -> int:
        """Ctrl-C, as a terminal sends it: to the foreground process group, which is run.sh alone."""
        os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(READY_TIMEOUT_S)
        self._reader.join(READY_TIMEOUT_S)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.output += line


@pytest.fixture
def run(copy: Path) -> Iterator[Run]:
    run = Run(copy, free_port())
    yield run
    if run.process.poll() is None:
        run.interrupt()


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks: list[str] = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.timeout(INSTALL_TIMEOUT_S + 60)
def test_run_sh_and_the_commands_of_the_readme(copy: Path, run: Run) -> None:
    commands = readme_commands()
    assert commands[0] == "./run.sh"
    assert commands[-1] == "scripts/test"
    run.wait_ready(INSTALL_TIMEOUT_S)

    printed = [
        subprocess.run(
            command.split(), cwd=copy, env={"NATS_URL": run.url}, capture_output=True, text=True, check=True, timeout=30
        ).stdout
        for command in commands[1:-1]
    ]
    assert printed == ["", "world", "true\n", "hello\n", "", "1\n"]

    suggested = re.findall(r"^ +(\.venv/bin/wrpc-kv .*)$", run.output, re.MULTILINE)
    assert len(suggested) == 3
    done = [
        subprocess.run(command.split(), cwd=copy, env={}, capture_output=True, text=True, check=True, timeout=30).stdout
        for command in suggested
    ]
    assert done[:2] == ["", "world"]
    assert sorted(done[2].split()) == ["hello", "visits"]  # the latter from the increment above

    second = subprocess.run(["./run.sh"], cwd=copy, env=run.environment, capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert "a provider already serves default.keyvalue-inmemory" in second.stderr

    assert listens(run.port)
    assert run.interrupt() == 130
    assert "stopped:" in run.output
    assert not listens(run.port)


@pytest.mark.timeout(INSTALL_TIMEOUT_S + 60)
def test_a_nats_server_that_was_there_stays(copy: Path) -> None:
    if not (copy / ".venv").exists():
        subprocess.run(["scripts/setup", "demo"], cwd=copy, check=True, timeout=INSTALL_TIMEOUT_S)
    port = free_port()
    server = subprocess.Popen(
        [copy / ".venv" / "bin" / "nats-server", "-a", "127.0.0.1", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    try:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while not listens(port):
            assert time.monotonic() < deadline_s
        run = Run(copy, port)
        run.wait_ready(READY_TIMEOUT_S)
        assert "NATS server started" not in run.output
        assert run.interrupt() == 130
        assert listens(port)
        assert server.poll() is None
    finally:
        server.terminate()
        server.wait(READY_TIMEOUT_S)


@pytest.mark.timeout(INSTALL_TIMEOUT_S + 60)
def test_host_data_of_ones_own(copy: Path) -> None:
    """Everything is taken from it; no password is shown."""
    port = free_port()
    host_data = json.dumps({"lattice_rpc_url": f"nats://u:s3cret@127.0.0.1:{port}", "provider_key": 'other"s'})
    run = Run(copy, port, HOST_DATA=host_data)
    run.wait_ready(INSTALL_TIMEOUT_S)
    assert f'--url 127.0.0.1:{port} --prefix default.other"s set hello world' in run.output
    assert run.interrupt() == 130
    assert "s3cret" not in run.output


@pytest.mark.parametrize("host_data", ["{", "[]", '{"lattice_rpc_url": "127.0.0.1:port"}'])
def test_host_data_that_is_none(host_data: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOST_DATA": host_data}
    done = subprocess.run(["./run.sh"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "HOST_DATA is not a JSON object, or LATTICE_RPC_URL is not a URL" in done.stderr


def test_run_sh_says_what_it_takes() -> None:
    helped = subprocess.run(["./run.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LATTICE_RPC_URL" in helped.stdout
    wrong = subprocess.run(["./run.sh", "--port"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "usage: ./run.sh" in wrong.stderr
