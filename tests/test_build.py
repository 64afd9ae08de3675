"""The result of scripts/build: an executable that behaves like the installed command, ends with its outer process, and leaves nothing."""

from __future__ import annotations

import asyncio
import io
import json
import os
import select
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from keyvalue_provider.outer_process import OuterProcess
from keyvalue_provider.packaging.archive import archive_faults, native_target, read_archive
from keyvalue_transport.keyvalue.store import STORE, encode_set
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.subjects import invocation_subject
from tests.build import ROOT, built_executable, run_build
from tests.conftest import (
    DEADLINE_S,
    HOST_CAPTURE,
    HOST_ID,
    KEYS,
    PROVIDER,
    NatsServer,
    Process,
    RawInvocation,
    host_data_line,
    in_thread,
)
from tests.nats_configs import Key

# The first test builds the executable.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def executable() -> Path:
    return built_executable()


class Built(Process):
    """The executable as a host starts it: with host data, and an environment that at most names the directory to unpack to."""

    def __init__(
        self, executable: Path, nats_url: str, cwd: Path, environment: Mapping[str, str], **fields: object
    ) -> None:
        host_data = HOST_CAPTURE["host_data"] | {
            "lattice_rpc_url": nats_url,
            "provider_key": next(KEYS),
            "link_definitions": [],
            "config": {"stop_timeout_ms": "60_000"},
            **fields,
        }
        self.prefix = f"{host_data['lattice_rpc_prefix']}.{host_data['provider_key']}"
        super().__init__([executable], cwd, environment, subprocess.PIPE)
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(host_data_line(host_data))

    async def shut_down(self, raw: Client) -> None:
        """Ask it to stop as its host does. Return at its reply, which is when a host kills."""
        subject = f"wasmbus.rpc.{self.prefix}.default.shutdown"
        await raw.request(subject, json.dumps({"host_id": HOST_ID}).encode(), timeout=DEADLINE_S)

    def end(self) -> None:
        """Send SIGKILL to both processes."""
        for pid in children(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.kill()


def children(pid: int) -> list[int]:
    """Return the child processes that a process has not waited for."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def inner_of(pid: int) -> int:
    """Return the inner process, once it runs.

    PyInstaller's child first waits for its parent, forever if the parent is killed then.
    """
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        for child in children(pid):
            if b"_PYI_APPLICATION_HOME_DIR=" in Path(f"/proc/{child}/environ").read_bytes():
                return child
        assert time.monotonic() < deadline_s, f"process {pid} starts nothing"


def unpacked_by(pid: int) -> Path:
    """Return the directory that an inner process loads its libraries from."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return next(Path(line.split()[-1]).parent for line in maps if "_MEI" in line and "libpython" in line)


def left_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@contextmanager
def ends(pid: int) -> Iterator[Callable[[], None]]:
    """Yield a function that waits for the end of a process, which need not be a child."""
    descriptor = os.pidfd_open(pid)
    try:

        def wait() -> None:
            assert select.select([descriptor], [], [], DEADLINE_S)[0], f"process {pid} has not ended"

        yield wait
    finally:
        os.close(descriptor)


Start = Callable[..., Built]


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """Return the directory into which executables unpack themselves."""
    directory = tmp_path / "unpacked"
    directory.mkdir()
    return directory


@pytest.fixture
def start(executable: Path, nats_server: NatsServer, unpacked: Path) -> Iterator[Start]:
    """Start executables, and end those that still run. Further keywords are fields of the host data."""
    started: list[Built] = []

    def launch(
        *,
        wait: bool = True,
        nats_url: str = nats_server.url,
        environment: Mapping[str, str] | None = None,
        **fields: object,
    ) -> Built:
        if environment is None:
            environment = {"TMPDIR": str(unpacked)}
        started.append(Built(executable, nats_url, unpacked, environment, **fields))
        if wait:
            started[-1].wait_for("ready: serving")
        return started[-1]

    try:
        yield launch
    finally:
        for process in started:
            process.end()


async def hold(raw: Client, process: Built) -> None:
    """Begin an invocation that an orderly stop waits for."""
    subject = invocation_subject(process.prefix, STORE, "set")
    await (await RawInvocation.begin(raw, subject, encode_set(b"b", b"k", b"v")[:-1])).handshake()


# Like the installed command


@pytest.mark.parametrize(
    ("arguments", "host_data", "status"),
    [(["--version"], "", 0), (["--help"], "", 0), (["--unknown"], "", 2), ([], "hush", 2)],
    ids=["version", "help", "unknown option", "bad host data"],
)
def test_it_answers_like_the_installed_command(
    executable: Path, unpacked: Path, arguments: Sequence[str], host_data: str, status: int
) -> None:
    built, installed = (
        subprocess.run(
            [program, *arguments],
            input=f"{host_data}\n",
            env={"TMPDIR": str(unpacked), "KEYVALUE_PAGE_KEYS": "none"},
            cwd=unpacked,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        for program in (executable, PROVIDER)
    )
    assert (built.returncode, built.stdout, built.stderr) == (status, installed.stdout, installed.stderr)
    assert installed.returncode == status
    assert left_in(unpacked) == []


async def test_it_serves_with_an_empty_environment(start: Start, new_nats_server: Callable[[str], NatsServer]) -> None:
    """Not even TMPDIR is set, so it unpacks into the system's directory.

    It signs with an nkey, which shows that libsodium is complete.
    """
    key = Key.new()
    server = new_nats_server(f"authorization: {{ users: [{{nkey: {key.public_key}}}, {{user: u, password: p}}] }}")
    process = start(nats_url=server.url, environment={}, lattice_rpc_user_seed=key.seed)
    url = server.url.replace("//", "//u:p@")
    async with KeyValueClient(url, process.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "k", b"value")
        assert await client.get("b", "k") == b"value"
        assert [key async for key in client.keys("b")] == ["k"]
    (inner,) = children(process.process.pid)
    directory = unpacked_by(inner)
    assert directory.is_dir()
    process.signal(signal.SIGTERM)
    assert await in_thread(process.wait) == 0
    assert not directory.exists()
    assert [text for text in ("plain path", "Traceback", key.seed) if text in process.output] == []


# How it ends


def test_it_says_that_tracing_needs_the_package(start: Start) -> None:
    """It contains no OpenTelemetry, even if it was built where that is installed."""
    line = start(otel_config={"enable_observability": True}).wait_for("calls are not traced")
    assert "pip install 'keyvalue-inmemory[otel]'" in line


@pytest.mark.parametrize("way", ["SIGTERM", "SIGINT", "shutdown"])
async def test_it_stops_in_order_when_it_is_asked_to(start: Start, raw: Client, unpacked: Path, way: str) -> None:
    """Ask by a signal to the outer process, or as a host that does not kill it."""
    process = start()
    assert len(left_in(unpacked)) == 1
    if way == "shutdown":
        await process.shut_down(raw)
    else:
        process.signal(signal.Signals[way])
    assert await in_thread(process.wait) == 0
    assert f"{way}: stopping" in process.output or way == "shutdown"
    assert "stopped: 0 invocations answered" in process.output
    assert left_in(unpacked) == []


async def test_a_signal_to_both_processes_counts_once(start: Start, raw: Client, unpacked: Path) -> None:
    """Send it as a terminal or systemd does.

    The outer process passes it on, too. Calls in flight are still waited for, up to another signal.
    """
    process = start()
    (inner,) = children(process.process.pid)
    await hold(raw, process)
    os.kill(inner, signal.SIGTERM)
    process.signal(signal.SIGTERM)
    await in_thread(process.wait_for, "SIGTERM: stopping")
    assert process.running
    process.signal(signal.SIGINT)
    assert await in_thread(process.wait) == 128 + signal.SIGINT
    assert process.output.count("stopping") == 1
    assert left_in(unpacked) == []


@pytest.mark.parametrize("is_asked", [False, True], ids=["at any time", "at the reply to a shutdown"])
async def test_it_stops_in_order_when_the_outer_process_is_killed(
    start: Start, raw: Client, unpacked: Path, is_asked: bool
) -> None:
    process = start()
    (inner,) = children(process.process.pid)
    with ends(inner) as wait:
        if is_asked:
            await process.shut_down(raw)
        process.signal(signal.SIGKILL)
        await in_thread(wait)
    await in_thread(process.wait)
    before, _, after = process.output.partition("stopped: 0 invocations answered")
    assert after
    assert ("has ended: stopping" in before, "has ended" in after) == (not is_asked, False)
    assert "Traceback" not in process.output
    assert left_in(unpacked) == []
    assert not await (await RawInvocation.begin(raw, invocation_subject(process.prefix, STORE, "get"), b"")).taken()


async def test_it_ends_when_its_outer_process_ends_before_it_serves(
    start: Start, nats_server: NatsServer, unpacked: Path
) -> None:
    """NATS is silent, so it is still connecting."""
    with nats_server.silence():
        process = start(wait=False)
        inner = await in_thread(inner_of, process.process.pid)
        with ends(inner) as wait:
            process.signal(signal.SIGKILL)
            await in_thread(wait)
    assert "ready" not in process.output
    assert left_in(unpacked) == []


async def test_it_ends_when_its_outer_process_ends_before_there_is_host_data(executable: Path, unpacked: Path) -> None:
    process = Process([executable], unpacked, {"TMPDIR": str(unpacked)}, subprocess.PIPE)
    inner = await in_thread(inner_of, process.process.pid)
    assert process.process.stdin is not None
    with ends(inner) as wait:
        process.signal(signal.SIGKILL)
        process.process.stdin.close()
        await in_thread(wait)
    await in_thread(process.wait)
    assert left_in(unpacked) == []


def test_directories_that_were_not_unpacked_completely_are_removed(start: Start, unpacked: Path) -> None:
    """Python cannot start from these. Others, and those that may still be unpacked, stay."""
    for name, files, age_s in (
        ("_MEIunfinished", ["libz.so.1"], 3600),
        ("_MEIempty", [], 3600),
        ("_MEIcomplete", ["libz.so.1", "base_library.zip"], 3600),
        ("_MEIyoung", ["libz.so.1"], 0),
        ("other", [], 3600),
    ):
        (directory := unpacked / name).mkdir()
        for file in files:
            (directory / file).touch()
        os.utime(directory, (time.time() - age_s,) * 2)
    (unpacked / "_MEIlink").symlink_to(unpacked / "other")
    process = start()
    deadline_s = time.monotonic() + DEADLINE_S
    while {"_MEIunfinished", "_MEIempty"} & set(left_in(unpacked)) and time.monotonic() < deadline_s:
        os.sched_yield()
    process.process.terminate()
    assert process.wait() == 0
    assert sorted(left_in(unpacked)) == ["_MEIcomplete", "_MEIlink", "_MEIyoung", "other"]


# Without the executable

SAME_EXECUTABLE = (sys.executable, "-c", "input()")


def unpack(monkeypatch: pytest.MonkeyPatch, directory: Path, parent: int) -> OuterProcess:
    """Make this process look like one that a parent has unpacked into a directory and started."""
    directory.mkdir()
    monkeypatch.setattr(sys, "_MEIPASS", str(directory), raising=False)
    monkeypatch.setattr(os, "getppid", lambda: parent)
    return OuterProcess()


@pytest.mark.parametrize(
    ("program", "way"), [(SAME_EXECUTABLE, "by an event"), (SAME_EXECUTABLE, "by looking"), (("cat",), "at once")]
)
async def test_the_end_of_the_outer_process_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: Sequence[str], way: str
) -> None:
    """If the parent runs another executable, notice it at once: that parent has adopted an orphan."""
    parent = await asyncio.create_subprocess_exec(*program, stdin=subprocess.PIPE)
    if way == "by looking":
        monkeypatch.delattr(os, "pidfd_open")
    ended = asyncio.Event()
    process = unpack(monkeypatch, tmp_path / "_MEIabc", parent.pid)
    assert process.ended == (way == "at once")
    process.watch(asyncio.get_running_loop(), ended.set)
    if way != "at once":
        process.clean_up()
        assert left_in(tmp_path) == ["_MEIabc"]
    monkeypatch.setattr(os, "getppid", lambda: 1)
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(DEADLINE_S):
        await ended.wait()
    process.clean_up(1)
    process.clean_up()  # nothing is left to do or to log
    assert left_in(tmp_path) == []
    assert caplog.text == ""


def test_a_directory_that_was_not_unpacked_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An executable that is installed as a directory has one, named `_internal`."""
    process = unpack(monkeypatch, tmp_path / "_internal", os.getppid())
    monkeypatch.setattr(os, "getppid", lambda: 1)
    process.clean_up()
    assert not process.ended
    assert left_in(tmp_path) == ["_internal"]


# The archive


def test_the_archive_holds_the_executable_and_the_world(executable: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"\x7fELF" + bytes(14) + b"\xf3\x00 for another machine")
    run = run_build("--par", "--add", f"riscv64-linux={other}", WASH_KEYS=str(tmp_path / "keys"), USER="alice")
    assert run.returncode == 0, run.stderr
    made = (ROOT / "build" / "keyvalue-inmemory.par.gz").read_bytes()
    archive = read_archive(io.BytesIO(made))
    assert archive_faults(archive, time.time()) == []
    assert sorted(archive.binaries) == sorted(["riscv64-linux", native_target()])
    assert archive.binaries[native_target()].size_bytes == executable.stat().st_size
    assert archive.world is not None
    assert {path.name for path in (tmp_path / "keys").iterdir()} == {"alice_account.nk", "keyvalue-inmemory_service.nk"}
    assert len(made) < 60_000_000


def test_it_contains_nothing_of_this_machine(executable: Path) -> None:
    """PyInstaller's list of contents or the project's metadata could name source directories or the home directory."""
    viewer = Path(sys.executable).with_name("pyi-archive_viewer")
    run = subprocess.run([viewer, "--list", "--recursive", executable], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "direct_url" not in run.stdout
    names = [line.rpartition("'")[0].rpartition("'")[2] for line in run.stdout.splitlines() if line.endswith("'")]
    extensions = ("uvloop/loop", "msgpack/_cmsgpack", "siphashc", "xxhash/_xxhash", "nacl/_sodium", "_cffi_backend")
    assert {"keyvalue_provider.process", "nacl.public", "prometheus_client", "sortedcontainers"} <= set(names)
    assert [name for name in extensions if not any(found.startswith(f"{name}.") for found in names)] == []
    assert not {"tkinter", "unittest", "pytest", "numpy"} & set(names)


def test_nothing_is_built_if_no_source_is_newer(executable: Path) -> None:
    made = executable.stat()
    run = run_build()
    assert (run.returncode, run.stderr) == (0, "scripts/build: build/keyvalue-inmemory is up to date\n")
    assert executable.stat() == made


@pytest.mark.parametrize("arguments", [["--add", "x86_64-linux=a"], ["--par", "--add"]])
def test_a_malformed_command_line_is_refused(arguments: list[str]) -> None:
    run = run_build(*arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("usage: scripts/build [--par [--add TARGET=FILE]... [OPTION]...]")


def test_help_explains_the_command() -> None:
    run = run_build("--help")
    assert (run.returncode, run.stderr) == (0, "")
    words = ("build/keyvalue-inmemory", "--par", "--add", "WASH_ISSUER_KEY", "WASH_SUBJECT_KEY", "WASH_KEYS", "glibc")
    assert [word for word in words if word not in run.stdout] == []


# wash


def test_wash_finds_what_it_needs(executable: Path, tmp_path: Path) -> None:
    """Run the go command of wasmcloud.toml in the project, as `wash build` does."""
    config = wasmcloud_toml()
    made = tmp_path / config["provider"]["bin_name"]
    command = [config["go"]["go_path"], "build", "-o", made]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert made.read_bytes() == executable.read_bytes()
    assert stat.S_IMODE(made.stat().st_mode) & 0o111
    assert left_in(tmp_path) == [made.name]


def test_wasmcloud_toml_describes_the_project() -> None:
    config = wasmcloud_toml()
    assert (config["language"], config["type"], config["go"]["disable_go_generate"]) == ("go", "provider", True)
    assert config["version"] == version("keyvalue-inmemory")
    assert config["name"] == config["provider"]["vendor"] == "keyvalue-inmemory"
    assert (ROOT / config["wit"] / "world.wit").read_text().count(f"world {config['provider']['wit_world']} ") == 1


@pytest.mark.parametrize("arguments", [[], ["generate", "-o", "a"], ["build", "-v", "a"], ["build", "-o", "a", "b"]])
def test_the_go_command_does_nothing_else(arguments: list[str]) -> None:
    run = subprocess.run([ROOT / "scripts" / "wash-go", *arguments], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "usage: scripts/wash-go build -o FILE\n")


def wasmcloud_toml() -> Mapping[str, Any]:
    return tomllib.loads((ROOT / "wasmcloud.toml").read_text())
