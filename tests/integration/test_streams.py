"""Standard streams that are closed, that nobody reads, or whose reader goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest
from nats.aio.client import Client

from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import (
    DEADLINE_S,
    HOST_CAPTURE,
    KEYS,
    PROVIDER,
    SCRIPTS,
    NatsServer,
    free_port,
    host_data_line,
    in_thread,
    until,
)
from tests.integration.conftest import Serve, until_it_serves

DROPPED = "wrpc_keyvalue_log_dropped_lines_total"


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", ">&- <&- 2>&-"])
async def test_it_serves_with_closed_streams(serve: Serve, nats_server: NatsServer, closed: str) -> None:
    process = serve("--nats", nats_server.url, "--prefix", "a.closed", shell=f'exec "$@" {closed}')
    async with KeyValueClient(nats_server.url, "a.closed", timeout_s=DEADLINE_S) as client:
        await until_it_serves(client)
        await client.set("bucket", "key", b"value")
        assert await client.get("bucket", "key") == b"value"
    process.process.terminate()
    assert await in_thread(process.wait) == 0
    assert "Traceback" not in process.output
    if "2>&-" not in closed:
        assert "stopped: " in process.output


def run(command: str, nats_url: str = "") -> tuple[int, str]:
    """Run a command of bash, with the installed commands in its PATH. Return its exit code and standard error."""
    environment = {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "NATS_URL": nats_url}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("keyvalue-inmemory --version >&-", 1, "keyvalue-inmemory: standard output: Bad file descriptor\n"),
        ("keyvalue-inmemory config check >&-", 1, "keyvalue-inmemory: standard output: Bad file descriptor\n"),
        ("keyvalue-inmemory config check 2>&- <&-", 0, ""),
        ("keyvalue-inmemory --help | head -c 1", 0, ""),
        ("keyvalue-inmemory config check | head -c 1", 0, ""),
        ("keyvalue-inmemory config check --page-keys x | true", 2, ""),
    ],
)
def test_commands_of_the_provider(command: str, code: int, says: str) -> None:
    assert run(command) == (code, says)


def test_at_a_terminal_it_says_that_it_waits_for_host_data_and_what_to_type() -> None:
    controller, terminal = os.openpty()
    process = subprocess.Popen([PROVIDER], env={}, stdin=terminal, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process, process.stderr as said:
        assert "waiting for host data, which a wasmCloud host writes" in said.readline()
        assert "keyvalue-inmemory serve --nats 127.0.0.1:4222" in said.readline()
        process.send_signal(signal.SIGINT)  # as Ctrl-C does
        assert process.wait(DEADLINE_S) == 130
        assert said.read() == ""
    os.close(controller)
    os.close(terminal)


@pytest.fixture
def unread(nats_server: NatsServer, tmp_path: Path) -> Iterator[Unread]:
    """Start a provider with metrics and a log at level debug. Nobody reads its standard error."""
    started = Unread(nats_server.url, tmp_path)
    yield started
    started.end()


class Unread:
    """A provider whose standard error is a pipe that nobody reads until `read` is called."""

    def __init__(self, nats_url: str, cwd: Path) -> None:
        self.metrics = f"127.0.0.1:{free_port()}"
        self.lines: list[bytes] = []
        self.key = next(KEYS)
        host_data = HOST_CAPTURE["host_data"] | {
            "lattice_rpc_url": nats_url,
            "provider_key": self.key,
            "link_definitions": [],
            "config": {"metrics_address": self.metrics, "log_level": "debug"},
        }
        self.lattice: str = host_data["lattice_rpc_prefix"]
        self.process = subprocess.Popen([PROVIDER], cwd=cwd, env={}, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdin is not None
        self.process.stdin.write(host_data_line(host_data))
        self.process.stdin.flush()
        self._reader = Thread(target=self._read)

    def read(self) -> None:
        """Begin to read."""
        self._reader.start()

    def dropped(self) -> int:
        """Return the number of dropped lines in the metrics."""
        with urlopen(f"http://{self.metrics}/metrics", timeout=DEADLINE_S) as answer:
            lines = answer.read().decode().splitlines()
        return next(int(float(line.split()[1])) for line in lines if line.startswith(f"{DROPPED} "))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._reader.is_alive():
            self._reader.join()
        for pipe in (self.process.stdin, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)


async def test_a_standard_error_that_nobody_reads_delays_nothing(
    nats_server: NatsServer, raw: Client, unread: Unread
) -> None:
    """Lines are dropped and counted. When somebody reads again, a line says so."""
    subject = f"wasmbus.rpc.{unread.lattice}.{unread.key}.default.shutdown"
    async with KeyValueClient(nats_server.url, f"{unread.lattice}.{unread.key}", timeout_s=DEADLINE_S) as client:
        await until_it_serves(client)
        dropped = 0
        while not dropped:
            for _ in range(2_000):  # each logs a line at level debug
                await raw.publish(subject, b'{"host_id": "another"}')
            await raw.flush()
            await client.set("bucket", "key", b"value")
            dropped = await in_thread(unread.dropped)
        unread.read()
        await until(lambda: asyncio.sleep(0.01, len(unread.lines) > 5_000), "the lines are read")

        async def last_line_is_read() -> bool:
            unread.process.send_signal(signal.SIGUSR2)  # again, because its line may be dropped too
            return await asyncio.sleep(0.1, b"SIGUSR2: 1 keys" in unread.lines[-1])

        await until(last_line_is_read, "the last line is read")
    told = [line for line in unread.lines if b"log lines were dropped, because standard error was not read" in line]
    assert sum(int(line.split()[3]) for line in told) == await in_thread(unread.dropped)
    unread.process.terminate()
    assert await in_thread(unread.process.wait) == 0


def test_it_stops_in_order_although_nobody_reads_standard_error(
    serve: Serve, new_nats_server: Callable[[], NatsServer]
) -> None:
    """The pipe is full from the start."""
    full, end = os.pipe()
    os.set_blocking(end, False)
    try:
        while True:
            os.write(end, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(end, True)
    server = new_nats_server()
    process = subprocess.Popen([PROVIDER, "serve", "--nats", server.url], env={}, stderr=end)
    os.close(end)
    try:
        server.wait_for("Server is ready")
        done = subprocess.run(
            [SCRIPTS / "wrpc-kv", "--nats", server.url, "--wait", "30", "set", "key", "value"], timeout=2 * DEADLINE_S
        )
        assert done.returncode == 0
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(full)
