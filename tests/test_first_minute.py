"""The README's first minute for a newcomer: a fresh copy, its own .venv, the commands unchanged."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.build import ROOT, files_of, made_once
from tests.conftest import DEADLINE_S, NatsServer, Process, free_port
from tests.provider.observe.test_metrics import debian_program

INSTALL_TIMEOUT_S = 240

# The first test installs, or waits for another process that does.
pytestmark = pytest.mark.timeout(INSTALL_TIMEOUT_S + 60)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the repository's files, in which ./run.sh was started once.

    It made .venv before it read its input.
    """

    def make(folder: Path) -> None:
        for name in files_of():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        assert "HOST_DATA is not JSON: Expecting property name" in refused(folder, HOST_DATA="{")
        assert (folder / ".venv" / "bin" / "keyvalue-inmemory").exists()

    return made_once(tmp_path_factory, "copy", make)


def environment_of(**more: str) -> dict[str, str]:
    """Return a newcomer's environment, with the variables that pip needs."""
    inherited = {
        name: value for name, value in os.environ.items() if name in ("PATH", "HOME") or name.startswith("PIP_")
    }
    return inherited | {"PYTHON": sys.executable} | more


def refused(copy: Path, **environment: str) -> str:
    """Start ./run.sh with variables that it must refuse. Return its output."""
    done = subprocess.run(
        ["./run.sh"],
        cwd=copy,
        env=environment_of(**environment),
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


class Run(Process):
    """A running `./run.sh` in a copy, at its own port."""

    command: tuple[str, ...] = ("./run.sh",)
    stdin = subprocess.DEVNULL

    def __init__(self, copy: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = f"127.0.0.1:{self.port}"
        self.redis_port = free_port()
        addresses = {
            "LATTICE_RPC_URL": self.url,
            "METRICS_ADDRESS": str(free_port()),
            "REDIS_ADDRESS": str(self.redis_port),
        }
        self.environment = environment_of(**(addresses | environment))
        super().__init__(self.command, copy, self.environment, self.stdin)

    def interrupt(self) -> int:
        """Send SIGINT as Ctrl-C does, to the foreground process group, which is only run.sh. Return the exit code."""
        self.signal(signal.SIGINT)
        return self.wait()


class RunInTerminal(Run):
    """A running `./run.sh` in a terminal of its own."""

    command = (sys.executable, "-c", "import os, pty; os._exit(os.waitstatus_to_exitcode(pty.spawn('./run.sh')))")
    stdin = subprocess.PIPE

    def type(self, text: bytes) -> None:
        """Press keys. Nothing can be typed afterwards."""
        assert self.process.stdin is not None
        with self.process.stdin as keyboard:
            keyboard.write(text)


@pytest.fixture
def running(copy: Path) -> Iterator[Callable[..., Run]]:
    """Start `./run.sh` and wait until it is ready. Keywords are variables of its environment."""
    runs = []

    def start(**environment: str) -> Run:
        runs.append(Run(copy, **environment))
        runs[-1].wait_for("Ctrl-C stops")
        return runs[-1]

    yield start
    for run in runs:
        if run.running:
            run.interrupt()


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks: list[str] = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_run_sh_and_the_commands_of_the_readme(copy: Path, running: Callable[..., Run]) -> None:
    run = running()
    commands = [command for command in readme_commands() if not command.startswith("redis-cli")]
    assert commands[0] == "./run.sh"
    assert commands[-1] == "scripts/test"
    assert "NATS server started" in run.output

    def said_by(command: str, **environment: str) -> str:
        return subprocess.run(
            command.split(), cwd=copy, env=environment, capture_output=True, text=True, check=True, timeout=DEADLINE_S
        ).stdout

    printed = [said_by(command, NATS_URL=run.url) for command in commands[1:-1]]
    assert printed == ["", "world", "true\n", "hello\n", "", "1\n", "healthy: serving\n"]

    suggested = re.findall(r"^ +((?:redis-cli|\.venv/bin/wrpc-kv) .*)$", run.output, re.MULTILINE)
    *printed, keys = map(said_by, suggested)
    assert printed == (["OK\n", "world\n"] if shutil.which("redis-cli") else ["", "world"])
    assert sorted(keys.split()) == ["hello", "visits"]  # the latter from the increment above

    second = subprocess.run(
        ["./run.sh"], cwd=copy, env=run.environment, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert second.returncode == 1
    assert "a provider already serves default.keyvalue-inmemory" in second.stderr
    third = subprocess.run(
        [".venv/bin/keyvalue-inmemory", "serve", "--nats", run.url],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert third.returncode == 1
    assert "default.keyvalue-inmemory is also served, with other keys" in third.stderr

    assert listens(run.port)
    assert run.interrupt() == 130
    assert "stopped:" in run.output
    assert not listens(run.port)


@pytest.mark.parametrize(("moment", "times"), [("NATS server started", 2), ("Ready", 1)])
def test_ctrl_c_in_a_terminal_stops_everything(copy: Path, tmp_path: Path, moment: str, times: int) -> None:
    """At "Ready", run.sh waits for `cat`, which may end without the signal. Here, it is slow and ignores the signal."""
    (slow := tmp_path / "cat").write_text(f'#!/bin/sh\ntrap "" INT\n{shutil.which("cat")} "$@"\nsleep 2\n')
    slow.chmod(0o755)
    run = RunInTerminal(copy, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    run.wait_for(moment)
    run.type(b"\x03" * times)
    assert run.wait(DEADLINE_S / 2) == 130, run.output
    assert not listens(run.port)


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("keyvalue-inmemory", 128 + signal.SIGKILL, "the provider was ended by SIGKILL"),
        ("nats-server", 1, "the NATS server has ended, so the provider is stopped"),
    ],
)
def test_it_says_what_was_killed(running: Callable[..., Run], program: str, code: int, said: str) -> None:
    run = running()
    listed = subprocess.run(["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    children = [line.split(None, 2) for line in listed.splitlines() if line.split()[1] == str(run.process.pid)]
    (pid,) = [int(pid) for pid, _, arguments in children if program in arguments]
    os.kill(pid, signal.SIGKILL)
    assert run.wait() == code
    assert f"run.sh: {said}" in run.output
    assert "line " not in run.output, "bash shows a part of the script"
    assert not listens(run.port)


def test_the_redis_commands_of_the_readme(running: Callable[..., Run]) -> None:
    cli, run = debian_program("redis-cli", "redis-tools"), running()
    words = [command.split()[1:] for command in readme_commands() if command.startswith("redis-cli ")]
    printed = [
        subprocess.run([cli, "-p", str(run.redis_port), *each], capture_output=True, text=True, check=True).stdout
        for each in words
    ]
    assert [set(text.split()) for text in printed] == [{"OK"}, {"world"}, {"1"}, {"hello", "visits"}]
    assert run.interrupt() == 130


def test_with_jetstream_the_keys_outlive_run_sh(copy: Path, running: Callable[..., Run]) -> None:
    def said(run: Run, *words: str) -> str:
        command = [".venv/bin/wrpc-kv", "--wait", "10", *words]
        environment = run.environment | {"NATS_URL": run.url}
        return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=True).stdout

    first = running(STORE="jetstream", KEYVALUE_SNAPSHOT_PATH="keys.snapshot", KEYVALUE_STORE="memory")
    assert "run.sh: not passed on: KEYVALUE_SNAPSHOT_PATH KEYVALUE_STORE; use HOST_DATA=" in first.output
    assert f"The keys stay in {copy}/jetstream" in first.output
    assert said(first, "set", "hello", "world") == ""
    (suggested,) = re.findall(r"^ +(.* serve --store jetstream .*)$", first.output, re.MULTILINE)
    second = Process(suggested.split(), copy)
    second.wait_for("1 keys")
    second.wait_for("ready: serving default.keyvalue-inmemory")
    second.signal(signal.SIGTERM)
    assert second.wait() == 0
    assert first.interrupt() == 130
    assert said(running(STORE="jetstream"), "get", "hello") == "world"
    wrong = subprocess.run(["./run.sh"], cwd=copy, env=environment_of(STORE="disk"), capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "STORE is 'disk', allowed memory or jetstream" in wrong.stderr


def test_ones_own_host_data_with_a_nats_server_that_stays(
    running: Callable[..., Run], new_nats_server: Callable[[str], NatsServer]
) -> None:
    """Everything comes from the host data. Its password is not shown."""
    server = new_nats_server("authorization: { user: u, password: s3cret }")
    host_data = {"lattice_rpc_url": f"nats://u:s3cret@127.0.0.1:{server.port}", "provider_key": 'other"s'}
    run = running(HOST_DATA=json.dumps(host_data))
    assert "NATS server started" not in run.output
    assert f'--nats 127.0.0.1:{server.port} --prefix default.other\\"s set hello world' in run.output
    assert run.interrupt() == 130
    assert "s3cret" not in run.output
    assert listens(server.port)


def test_an_ipv6_address_and_ports_of_another_process(copy: Path, running: Callable[..., Run]) -> None:
    """The suggested commands work as they are."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        run = running(LATTICE_RPC_URL=f"[::1]:{free_port()}", METRICS_ADDRESS=address, REDIS_ADDRESS=address)
        if shutil.which("redis-cli"):
            assert f"Redis clients cannot connect: {address}: Address already in use" in run.output
        assert f"there are no metrics: {address}: Address already in use" in run.output
        assert "curl" not in run.output
    first = re.findall(r"^ +(\.venv/bin/wrpc-kv .* hello world)$", run.output, re.MULTILINE)[0]
    subprocess.run(["bash", "-c", first], cwd=copy, check=True, timeout=DEADLINE_S)
    assert "DEBUG" not in run.output
    run.signal(signal.SIGHUP)  # as when the terminal is closed
    assert run.wait() == 129
    assert "stopped:" in run.output
    assert not listens(run.port)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("HOST_DATA", "[]", "HOST_DATA is not a JSON object"),
        ("HOST_DATA", '{"lattice_rpc_url": 5}', "lattice_rpc_url in HOST_DATA is not a URL: it is not a string"),
        ("LATTICE_RPC_URL", "localhost:99999", "LATTICE_RPC_URL is not a URL: Port out of range 0-65535"),
    ],
)
def test_it_says_which_variable_is_wrong_and_why(copy: Path, name: str, text: str, said: str) -> None:
    assert refused(copy, **{name: text}) == f"run.sh: {said}\n"


def test_run_sh_describes_its_arguments() -> None:
    helped = subprocess.run(["./run.sh", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "LATTICE_RPC_URL" in helped.stdout
    wrong = subprocess.run(["./run.sh", "--port"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith(
        "run.sh: unknown argument --port; settings are environment variables\nusage: ./run.sh"
    )
