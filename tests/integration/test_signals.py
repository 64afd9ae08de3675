"""Signals to the provider's process: each does what docs/operating.md says, and none kills it."""

from __future__ import annotations

import asyncio
import re
import signal

import pytest

from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, NatsServer, in_thread
from tests.integration.conftest import Serve, until_it_serves

REQUESTS = (signal.SIGUSR1, signal.SIGUSR2)


STATUS = re.compile(
    r"INFO keyvalue_provider: SIGUSR2: 2 keys, \d+ bytes of memory, NATS server: nats://[^ ]+, 0 links, "
    r"3 invocations answered, up \d+ s$"
)


def test_hangups_stop_it_in_order(serve: Serve, nats_server: NatsServer) -> None:
    """A terminal that is closed may send several. One after SIGTERM does not end the process immediately either."""
    for numbers in ([signal.SIGHUP] * 3, [signal.SIGTERM, signal.SIGHUP], [signal.SIGHUP, signal.SIGTERM]):
        process = serve("--nats", nats_server.url, "--prefix", "a.hangup")
        process.wait_for("ready: serving")
        process.signal(numbers[0])
        process.wait_for(f"{numbers[0].name}: stopping")
        for number in numbers[1:]:
            process.signal(number)
        assert process.wait() == 0, process.output
        assert process.output.count(f"{numbers[0].name}: stopping") == 1
        assert "stopped: 0 invocations answered" in process.output


def test_nohup_is_respected(serve: Serve, nats_server: NatsServer) -> None:
    process = serve("--nats", nats_server.url, "--prefix", "a.nohup", shell='trap "" HUP; exec "$@"')
    process.wait_for("ready: serving")
    process.signal(signal.SIGHUP)
    process.signal(signal.SIGUSR2)
    process.wait_for("SIGUSR2: 0 keys")
    process.process.terminate()
    assert process.wait() == 0
    assert "SIGHUP" not in process.output


async def test_requests_for_a_status_line_and_a_snapshot(serve: Serve, nats_server: NatsServer) -> None:
    """The status line is logged also if the log has only errors."""
    process = serve("--nats", nats_server.url, "--prefix", "a.status", "--log-level", "warn")
    async with KeyValueClient(nats_server.url, "a.status", timeout_s=DEADLINE_S) as client:
        await until_it_serves(client)
        await client.set("bucket", "key", b"value")
        await client.set("bucket", "other", b"value")
        process.signal(signal.SIGUSR2)
        line = await in_thread(process.wait_for, "SIGUSR2")
        assert STATUS.search(line.rstrip()), line
        process.signal(signal.SIGUSR1)
        await in_thread(process.wait_for, "WARN keyvalue_provider: SIGUSR1: no snapshot is saved, because")
        assert await client.get("bucket", "key") == b"value"
    process.process.terminate()
    assert await in_thread(process.wait) == 0


def test_requests_while_it_connects(serve: Serve) -> None:
    process = serve("--nats", "127.0.0.1:1", "--connect-timeout-ms", "600000")
    process.wait_for("trying again")
    for number in REQUESTS:
        process.signal(number)
    process.wait_for("SIGUSR1: no snapshot is saved")
    process.wait_for("SIGUSR2: starting")
    process.signal(signal.SIGHUP)
    assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, *REQUESTS])
async def test_no_moment_of_a_stop_is_deadly(serve: Serve, nats_server: NatsServer, number: signal.Signals) -> None:
    process = serve("--nats", nats_server.url, "--prefix", "a.storm")
    await in_thread(process.wait_for, "ready: serving")
    process.process.terminate()
    async with asyncio.timeout(DEADLINE_S):
        while process.running:
            process.signal(number)
            await asyncio.sleep(0.001)
    assert process.wait() == 0
