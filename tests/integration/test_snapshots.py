"""Snapshots of a real provider: restarts, a host's stop, kills at any moment, files that can't be used, and full disks."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from time import monotonic

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from keyvalue_engine import Store
from keyvalue_engine.snapshot import Reader
from keyvalue_provider.keyvalue.path_lock import PathLock
from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import TransportError
from tests.conftest import DEADLINE_S, PROVIDER, Launch, NatsServer, Provider, in_thread, launching
from tests.host_double import HostDouble, Link
from tests.integration.test_metrics import ON, scraped

HOUR_MS = 3_600_000
Content = dict[tuple[bytes, bytes], bytes]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a path in a directory of its own."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "snapshot"


def options(path: Path, **more: str) -> dict[str, str]:
    """Return options with an interval that no test reaches."""
    return {"snapshot_path": str(path), "snapshot_interval_ms": str(HOUR_MS), "stop_timeout_ms": "500"} | more


def content_of(path: Path) -> Content:
    with Reader(path) as reader:
        return {(bucket, key): value for bucket, entries in reader for key, value, _ in entries}


def bytes_of(path: Path) -> bytes | None:
    """Return the bytes of a file, or None for a directory."""
    return path.read_bytes() if path.is_file() else None


def client_of(server: NatsServer, provider: Provider, timeout_s: float = DEADLINE_S) -> KeyValueClient:
    return KeyValueClient(server.url, provider.prefix, timeout_s=timeout_s)


async def stopped(provider: Provider) -> int:
    code: int = await in_thread(provider.stop)
    return code


async def restarted(
    launch: Launch, provider: Provider, config: dict[str, str], links: Sequence[object] = ()
) -> Provider:
    again: Provider = await in_thread(lambda: launch(config, provider_key=provider.key, link_definitions=links))
    return again


async def test_a_restart_keeps_keys_deadlines_and_cursors(
    launch: Launch, nats_server: NatsServer, raw: Client, path: Path
) -> None:
    """Watchers are told of later changes, but not of the keys that are loaded."""
    config = options(path)
    first = launch(config)
    first.wait_for("there is no snapshot at")
    async with client_of(nats_server, first) as client:
        await client.set_many("b", {f"k{number}": b"%d" % number for number in range(5_000)})
        page = await client.list_keys("b")
        rest = [key.encode() async for key in client.keys("b")][len(page.keys) :]
    assert await stopped(first) == 0
    assert "snapshot saved: 5000 keys" in first.output

    store = Store.load(path)
    store.bucket(b"b").set(b"soon", b"v", 1)
    store.bucket(b"b").set(b"late", b"v", HOUR_MS)
    expected = {(b"b", key): value for key, value in store.bucket(b"b").items() if key != b"soon"}
    store.save(path)
    told: list[bytes] = []

    async def note(message: Msg) -> None:
        told.append(message.data)

    watching = Link(first.key, "watcher", interfaces=("watcher",)).emptied() | {"source_config": {"watch": "SET@*"}}
    await raw.subscribe("default.watcher.wrpc.>", cb=note)
    await raw.flush()
    second = await restarted(launch, first, config, [watching])
    second.wait_for("snapshot loaded: 5001 keys")
    async with client_of(nats_server, second) as client:
        keys, cursor = list[bytes](), page.cursor
        while cursor is not None:
            following = await client.list_keys("b", cursor)
            keys += following.keys
            cursor = following.cursor
        assert [key for key in keys if key != b"late"] == rest
        assert await client.get_many("b", ["soon", "late", "k7"]) == [None, b"v", b"7"]
        await client.set("b", "new", b"v")
        async with asyncio.timeout(DEADLINE_S):
            while not told:  # noqa: ASYNC110 - events arrive in a callback
                await asyncio.sleep(0.01)
    assert await stopped(second) == 0
    assert all(b"new" in event for event in told)
    assert content_of(path) == expected | {(b"b", b"new"): b"v"}


async def test_a_host_that_stops_and_kills_it_loses_nothing(
    nats_server: NatsServer, path: Path, tmp_path: Path
) -> None:
    """Stop it with keys whose save may take longer than the host waits, kill it, and start it at once."""
    async with HostDouble.open(nats_server.url, tmp_path) as host:
        hosted = await host.start(PROVIDER, options(path))
        async with client_of(nats_server, hosted) as client:
            for batch in range(20):
                await client.set_many("b", {f"k{batch}.{number}": bytes(64) for number in range(5_000)})
            for _ in range(2):
                began_s = monotonic()
                await host.shutdown(hosted)
                assert monotonic() - began_s < 5
                hosted = await host.restart(hosted)
                assert "snapshot loaded: 100000 keys" in hosted.output
                assert await client.get("b", "k19.4999") == bytes(64)
        stop = await host.shutdown(hosted, kill=False)
        assert stop.exit_code == 0
    assert len(content_of(path)) == 100_000


async def test_usr1_saves_and_a_failure_is_shown_until_a_save_succeeds(
    nats_server: NatsServer, path: Path, tmp_path: Path
) -> None:
    """A limit for the size of files stands for a full disk."""
    async with HostDouble.open(nats_server.url, tmp_path) as host:
        hosted = await host.start(PROVIDER, options(path) | ON)
        async with client_of(nats_server, hosted) as client:
            await client.set("b", "k", b"old")
            hosted.signal(signal.SIGUSR1)
            hosted.wait_for("snapshot saved: 1 keys")
            await client.set("b", "k", bytes(100_000))
        soft, hard = resource.prlimit(hosted.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(hosted.process.pid, resource.RLIMIT_FSIZE, (1_000, hard))
        hosted.signal(signal.SIGUSR1)
        hosted.wait_for("the snapshot was not saved")
        assert content_of(path) == {(b"b", b"k"): b"old"}
        healthy, message = await host.health(hosted)
        assert (healthy, message) == (False, f"the snapshot was not saved: {path}: File too large (snapshot_path)")
        found = await scraped(hosted)
        assert found.value("snapshot_failures_total") == 1
        assert found.value("snapshot_bytes") == os.stat(path).st_size
        resource.prlimit(hosted.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
        hosted.signal(signal.SIGUSR1)
        hosted.wait_for("snapshot saved: 1 keys", times=2)
        assert (await host.health(hosted)).healthy
        assert {*os.listdir(path.parent)} == {"snapshot", "snapshot.lock"}
        resource.prlimit(hosted.process.pid, resource.RLIMIT_FSIZE, (1_000, hard))
        hosted.process.terminate()
        assert await in_thread(hosted.wait) == 1, "the last changes are lost"
    assert content_of(path) == {(b"b", b"k"): bytes(100_000)}


def test_without_a_path_usr1_only_warns(launch: Launch) -> None:
    provider = launch({})
    provider.signal(signal.SIGUSR1)
    provider.wait_for("SIGUSR1: no snapshot is saved")
    assert provider.stop() == 0


def damaged(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-3])
    return "byte 91: the file is cut short"


def directory(path: Path) -> str:
    path.unlink()
    path.mkdir()
    return "Is a directory"


@pytest.mark.parametrize("spoil", [damaged, directory])
async def test_a_file_that_cant_be_used_stops_the_start_and_is_not_touched(
    launch: Launch, path: Path, spoil: Callable[[Path], str]
) -> None:
    store = Store(secret=bytes(16))
    store.bucket(b"b").set(b"k", b"v")
    store.save(path)
    text = spoil(path)
    before = bytes_of(path)
    provider = launch(options(path), wait=False)
    assert await in_thread(provider.wait) == 2
    assert text in provider.output
    assert "(snapshot_path)" in provider.output
    assert bytes_of(path) == before


async def test_a_file_with_too_many_keys_or_without_a_directory_stops_the_start(launch: Launch, path: Path) -> None:
    store = Store()
    for number in range(3):
        store.bucket(b"b").set(b"%d" % number, b"v")
    store.save(path)
    for config, text in (
        (options(path, keys_max="2"), "the limit is 2 (keys_max)"),
        (options(path.parent / "missing" / "snapshot"), "missing/snapshot: the directory does not exist"),
    ):
        provider = launch(config, wait=False)
        assert await in_thread(provider.wait) == 2
        assert text in provider.output
    assert len(content_of(path)) == 3


async def test_of_two_instances_with_one_path_the_second_does_not_start(
    launch: Launch, nats_server: NatsServer, path: Path
) -> None:
    first = launch(options(path))
    second = launch(options(path, connect_timeout_ms="2000"), wait=False)
    assert await in_thread(second.wait) == 1
    assert f"process {first.process.pid} uses it ({path}.lock) (snapshot_path)" in second.output
    third = launch(options(path), wait=False)
    await in_thread(third.wait_for, f"process {first.process.pid} uses the snapshot")
    async with client_of(nats_server, first) as client:
        await client.set("b", "k", b"v")
    assert await stopped(first) == 0
    third.wait_for("snapshot loaded: 1 keys")
    third.wait_for("ready: serving")


async def test_a_stop_while_it_waits_or_loads_changes_nothing(
    nats_server: NatsServer, path: Path, tmp_path: Path
) -> None:
    """Its health says so meanwhile, it knows its links, and it takes no calls."""
    store = Store()
    store.bucket(b"b").set(b"k", b"v")
    store.save(path)
    before, lock = bytes_of(path), PathLock(str(path))
    assert lock.take()
    async with HostDouble.open(nats_server.url, tmp_path) as host:
        hosted = await host.start(PROVIDER, options(path), wait=False)
        await in_thread(hosted.wait_for, "uses the snapshot")
        healthy, message = await host.health(hosted)
        assert not healthy
        assert f"process {os.getpid()} uses the snapshot {path}; waiting for up to 10 s" in message
        async with client_of(nats_server, hosted, timeout_s=1) as client:
            with pytest.raises(TransportError):
                await client.get("b", "k")
        stop = await host.shutdown(hosted, kill=False)
        assert stop.exit_code == 0
    assert bytes_of(path) == before
    lock.release()


WRITERS, KEYS = 4, 200
NAMES = [str(key) for key in range(KEYS)]


class Counters:
    """Keys that are counted up, each by one writer.

    :ivar sent: the last value of each key that a writer has sent
    :ivar acknowledged: the last value of each key for which an answer has arrived
    """

    def __init__(self, chance: Random) -> None:
        self.sent, self.acknowledged = [0] * KEYS, [0] * KEYS
        self._chance = chance

    async def write(self, client: KeyValueClient, writer: int) -> None:
        """Write until the provider is gone."""
        while True:
            key = self._chance.randrange(writer, KEYS, WRITERS)
            self.sent[key] += 1
            value = self.sent[key]
            try:
                await client.set("b", NAMES[key], b"%d" % value)
            except (TransportError, InterfaceError):
                return
            self.acknowledged[key] = value


async def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(
    nats_server: NatsServer, path: Path, tmp_path: Path
) -> None:
    """Save all the time under load, and kill it at random moments.

    A file is never older than the file before the kill, nor than a save that was requested and has ended.
    """
    chance, config = Random(21), options(path, snapshot_interval_ms="1")
    counters, least = Counters(chance), [0] * KEYS
    with launching(nats_server.url, tmp_path) as launch:
        provider = await in_thread(launch, config)
        for _ in range(8):
            async with client_of(nats_server, provider, timeout_s=0.5) as client:
                writing = [asyncio.create_task(counters.write(client, writer)) for writer in range(WRITERS)]
                await asyncio.sleep(chance.uniform(0.05, 0.25))
                acknowledged = counters.acknowledged.copy()
                provider.signal(signal.SIGUSR1)
                await in_thread(provider.wait_for, "INFO keyvalue_provider.keyvalue.snapshots: snapshot saved")
                await asyncio.sleep(chance.uniform(0, 0.03))
                await in_thread(provider.kill)
                await asyncio.wait(writing)
            content = content_of(path)
            found = [int(content.get((b"b", name.encode()), b"0")) for name in NAMES]
            for key, value in enumerate(found):
                assert max(least[key], acknowledged[key]) <= value <= counters.sent[key], key
            least, counters.acknowledged = found, found.copy()
            provider = await restarted(launch, provider, config)
            async with client_of(nats_server, provider) as client:
                values = await client.get_many("b", NAMES)
            assert [int(value or b"0") for value in values] == found
    assert sum(counters.sent) > 1_000, "the load went on"
