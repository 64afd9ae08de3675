"""Hosts that are killed, and links with secrets that a host put before the provider listened.

tests/integration/test_lattice.py tests the conditions of a restart for secrets.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nats
import pytest

from keyvalue_transport.keyvalue.interface import OK_UNIT
from keyvalue_transport.keyvalue.store import STORE, encode_set
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.subjects import invocation_subject
from tests.build import built_executable
from tests.conftest import (
    COMPONENT,
    DEADLINE_S,
    HOST_CAPTURE,
    PROVIDER,
    NatsServer,
    Process,
    RawInvocation,
    connecting,
    host_data_line,
    in_thread,
    until,
)
from tests.host_double import Health, HostDouble, Link

# The first test of a built program builds it.
pytestmark = pytest.mark.timeout(300)

KEY = "keyvalue"
SEALED = replace(Link(COMPONENT, KEY, target_secrets={"bucket": "hidden"}), reference="SECRET")
BUILT_TOO = pytest.mark.parametrize("is_built", [False, True], ids=["installed", "built"])


@pytest.fixture
async def host(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[HostDouble]:
    """Open a host whose providers set their marks in a directory of the test."""
    async with HostDouble.open(nats_server.url, tmp_path) as host:
        (tmp_path / "marks").mkdir()
        host.environment = {"TMPDIR": str(tmp_path / "marks")}
        yield host


def marks(directory: Path) -> list[Path]:
    return list((directory / "marks").glob("*.restarted"))


@BUILT_TOO
async def test_one_restart_brings_the_secrets(
    host: HostDouble, nats_server: NatsServer, tmp_path: Path, is_built: bool
) -> None:
    hosted = await host.start(built_executable() if is_built else PROVIDER, links=[SEALED], provider_key=KEY)
    assert await in_thread(hosted.wait) == 3
    assert len(marks(tmp_path)) == 1
    again = await host.restart(hosted)
    assert await host.health(again) == Health(True, "serving")
    async with connecting(nats_server.url) as connect:
        await (await connect(again)).set("any", "k", b"v")
        assert await (await connect(again, None, None)).get("hidden", "k") == b"v"

    async def unmarked() -> bool:
        return await host.health(again) is not None and not marks(tmp_path)

    await until(unmarked, "the mark is removed")
    assert (await host.shutdown(again, kill=False)).exit_code == 0


async def test_a_host_that_never_gives_the_secrets_causes_no_loop(host: HostDouble, tmp_path: Path) -> None:
    host.links[SEALED.key] = SEALED
    links = host.lattice_answer(f"wasmbus.ctl.v1.{host.lattice}.link.get")
    host.links.clear()  # so that host data never holds the link
    host.answer = lambda subject: links
    hosted = await host.start(PROVIDER, provider_key=KEY)
    assert await in_thread(hosted.wait) == 3
    again = await host.restart(hosted)
    await in_thread(again.wait_for, "no restart for the secrets of links: there was one before")
    health = await host.health(again)
    assert not health.healthy
    assert health.message.endswith("delete the link and put it again, or restart the provider")
    assert (await host.shutdown(again, kill=False)).exit_code == 0
    assert len(marks(tmp_path)) == 1


# The process that launched it

#: Starts a command in a session of its own, writes its process id, and waits for it. Standard input goes to the command.
LAUNCHER = """
import os, subprocess, sys
os.setsid()
child = subprocess.Popen(sys.argv[1:])
print("launched", child.pid, flush=True)
child.wait()
"""


class Launched(Process):
    """A provider and the process that launched it.

    :ivar pid: the id of the provider's process
    """

    def __init__(self, command: tuple[str | Path, ...], cwd: Path) -> None:
        environment = {"TMPDIR": str(cwd)}
        super().__init__([sys.executable, "-c", LAUNCHER, *command], cwd, environment, subprocess.PIPE)
        self.pid = int(self.wait_for("launched").split()[1])

    def give(self, url: str, lines: bytes = b"", **config: str) -> None:
        """Write host data, after some lines, to the provider's standard input."""
        fields = {"lattice_rpc_url": url, "provider_key": KEY, "link_definitions": [], "config": config}
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(lines + host_data_line(HOST_CAPTURE["host_data"] | fields))

    def kill_launcher(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.kill()


@pytest.fixture
def launched() -> Iterator[list[Launched]]:
    """Return a list of processes to end after the test."""
    processes: list[Launched] = []
    yield processes
    for process in processes:
        process.end()


@BUILT_TOO
async def test_it_stops_in_order_when_its_host_is_killed(
    launched: list[Launched], new_nats_server: Callable[[str], NatsServer], tmp_path: Path, is_built: bool
) -> None:
    """Two stores answered the calls of one counter. The old provider served on, beside that of the new host."""
    server = new_nats_server("")
    process = Launched((built_executable() if is_built else PROVIDER,), tmp_path)
    launched.append(process)
    process.give(server.url)
    await in_thread(process.wait_for, "ready: serving")
    await in_thread(process.kill_launcher)
    await in_thread(process.wait)  # all processes have closed their output
    stopping, stopped = (
        process.output.index(text)
        for text in ("the process that launched this provider has ended: stopping", "stopped: 0 invocations answered")
    )
    assert stopping < stopped
    assert "Traceback" not in process.output
    assert os.listdir(tmp_path) == []


async def test_a_stop_in_progress_goes_on_when_its_host_is_killed(
    launched: list[Launched], new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    """The last lines of the log said that the provider stops, after it had stopped."""
    server = new_nats_server("")
    process = Launched((PROVIDER,), tmp_path)
    launched.append(process)
    process.give(server.url, stop_timeout_ms="600_000")
    await in_thread(process.wait_for, "ready: serving")
    raw = await nats.connect(server.url)
    subject = invocation_subject(f"default.{KEY}", STORE, "set")
    invocation = await RawInvocation.begin(raw, subject, encode_set(b"b", b"k", b"v")[:-1])
    inbox = await invocation.handshake()
    os.kill(process.pid, signal.SIGTERM)
    await in_thread(process.wait_for, "SIGTERM: stopping")
    await in_thread(process.kill_launcher)
    await invocation.send(inbox, b"v")
    assert await invocation.result() == OK_UNIT
    await in_thread(process.wait)
    assert process.output.count("stopping") == 1
    await raw.close()


async def test_it_stops_if_its_host_was_killed_before_it_could_look(
    launched: list[Launched], nats_server: NatsServer, tmp_path: Path
) -> None:
    """Another process has adopted it. Nothing shows whether that process is a host, except its session."""
    process = Launched(("sh", "-c", 'read line; exec "$0"', PROVIDER), tmp_path)
    launched.append(process)
    await in_thread(process.kill_launcher)
    process.give(nats_server.url, b"line\n")
    await in_thread(process.wait)
    assert "the process that launched this provider has ended: stopping" in process.output


@pytest.mark.parametrize("is_hosted", [True, False], ids=["outlive_host", "serve"])
async def test_it_may_outlive_the_process_that_launched_it(
    launched: list[Launched], new_nats_server: Callable[[str], NatsServer], tmp_path: Path, is_hosted: bool
) -> None:
    server = new_nats_server("")
    prefix = f"default.{KEY}"
    command = (PROVIDER,) if is_hosted else (PROVIDER, "serve", "--url", server.url, "--prefix", prefix)
    process = Launched(command, tmp_path)
    launched.append(process)
    process.give(server.url, outlive_host="true")
    await in_thread(process.wait_for, "ready: serving")
    await in_thread(process.kill_launcher)
    async with KeyValueClient(server.url, prefix, timeout_s=DEADLINE_S) as client:
        for number in range(1, 21):
            assert await client.increment("b", "n", 1) == number
    os.kill(process.pid, signal.SIGTERM)
    await in_thread(process.wait)
    assert "has ended" not in process.output
