"""Signals to the provider's process: each does what docs/operating.md says, and none kills it."""

from __future__ import annotations

import asyncio
import gc
import re
import signal
import subprocess
from pathlib import Path

import pytest

from keyvalue_provider.signals import unless_stopped
from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import ConnectError
from tests.conftest import DEADLINE_S, Launch, NatsServer, in_thread
from tests.integration.conftest import Serve, until_it_serves
from tests.integration.test_metrics import Endpoint

REQUESTS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGRTMIN)

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "keyvalue-inmemory.service"


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


async def test_a_changed_file_is_read_again(serve: Serve, nats_server: NatsServer, tmp_path: Path) -> None:
    """As `systemctl reload` does it. The log names what needs a restart, a mistake changes nothing, and calls go on."""
    (reload,) = re.findall(r"^ExecReload=(.*)$", UNIT.read_text(), re.MULTILINE)
    file = tmp_path / "options.toml"
    file.write_text('batch_keys_max = 2\npage_keys = 5\nlog_level = "info"')
    process = serve("--nats", nats_server.url, "--prefix", "a.reload", "--config", str(file), "--metrics-address", "0")
    endpoint = await in_thread(Endpoint.of, process)

    async def change(text: str, *lines: str) -> None:
        file.write_text(text)
        command = reload.replace("$MAINPID", str(process.process.pid)).split()
        assert (await in_thread(subprocess.run, command)).returncode == 0
        for line in lines:
            await in_thread(process.wait_for, line)

    async with KeyValueClient(nats_server.url, "a.reload", timeout_s=DEADLINE_S) as client:
        await until_it_serves(client)
        await client.set("bucket", "key", b"value")
        with pytest.raises(OtherError, match="batch_keys_max"):
            await client.get_many("bucket", ["key", "a", "b"])
        await change(
            'batch_keys_max = 3\npage_keys = 6\nprefix = "a.other"\nlog_level = "info"\nallow_split = true',
            "config: changed: batch_keys_max\n",
            "WARN keyvalue_provider: config: these changes take effect at the next start: allow_split, page_keys\n",
        )
        assert await client.get_many("bucket", ["key", "a", "b"]) == [b"value", None, None]
        for text, fault in (
            ("batch_keys_max = 0", f"ERROR keyvalue_provider: {file}: batch_keys_max: found '0'"),
            ("require_link = true", "ERROR keyvalue_provider: config: require_link: without a host there are no links"),
            ("no TOML", f"ERROR keyvalue_provider: {file}: "),
        ):
            await change(text, fault)
            assert (await in_thread(endpoint.get, "/readyz")).status == 503
            assert await client.get_many("bucket", ["key", "a", "b"]) == [b"value", None, None]
        await change(
            "batch_keys_max = 2\npage_keys = 5", "config: the last fault is corrected\n", "changed: batch_keys_max\n"
        )
        assert (await in_thread(endpoint.get, "/readyz")).status == 200
        with pytest.raises(OtherError, match="batch_keys_max"):
            await client.get_many("bucket", ["key", "a", "b"])
        await change("batch_keys_max = 2\npage_keys = 5", "INFO keyvalue_provider: config: nothing has changed\n")


def test_a_host_sends_its_configuration_itself(launch: Launch) -> None:
    provider = launch()
    provider.signal(signal.SIGRTMIN)
    provider.wait_for("WARN keyvalue_provider: SIGRTMIN: ignored, because the host sends each new configuration")


def test_requests_while_it_connects(serve: Serve) -> None:
    process = serve("--nats", "127.0.0.1:1", "--connect-timeout-ms", "600000")
    process.wait_for("trying again")
    for number in REQUESTS:
        process.signal(number)
    process.wait_for("SIGUSR1: no snapshot is saved")
    process.wait_for("SIGUSR2: starting")
    process.wait_for("SIGRTMIN: ignored while starting")
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


async def test_an_error_of_a_step_after_the_stop_is_not_logged() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    stop_requested = asyncio.Event()

    async def connect() -> bool:
        stop_requested.set()
        try:
            await asyncio.sleep(DEADLINE_S)
        finally:
            raise ConnectError("could not connect")

    assert await unless_stopped(connect(), stop_requested) is None
    gc.collect()
    assert not reported
