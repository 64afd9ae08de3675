"""The option `snapshot_path` of the replicated store: a start imports the file once, into an empty bucket."""

from __future__ import annotations

import signal
from pathlib import Path

from nats.aio.client import Client

from keyvalue_engine import Store
from keyvalue_replica.layout import Layout
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, in_thread, until
from tests.integration.test_moving import admin, api, has_messages, launch, messages, nats_server
from tests.integration.test_replicated import JETSTREAM

__all__ = ["admin", "launch", "nats_server"]  # the fixtures


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, file: bytes) -> None:
    path.write_bytes(file)


async def test_a_start_imports_a_snapshot_into_an_empty_bucket_once(
    launch: Launch, nats_server: NatsServer, admin: Client, tmp_path: Path
) -> None:
    """The order of keys stays. Keys that are deleted later stay away, and other keys are left alone."""
    store, path = Store(), tmp_path / "memory"
    for number in range(3_000):
        store.bucket(b"b").set(b"k%d" % number, b"%d" % number)
    store.save(path)
    file, page = bytes_of(path), store.bucket(b"b").page(keys_max=10)
    config = JETSTREAM | {"jetstream_bucket": "started", "snapshot_path": str(path)}
    first = launch(config)
    first.wait_for("imported 3,000 of 3,000 keys into the KV bucket started")
    async with KeyValueClient(nats_server.url, first.prefix, timeout_s=DEADLINE_S) as client:
        assert await client.get("b", "k7") == b"7"
        following = await client.list_keys("b", page.cursor)
        assert following.keys == list(store.bucket(b"b"))[10:][: len(following.keys)]
        second = await in_thread(launch, config)
        assert f"the snapshot {path} is not imported: the KV bucket started holds 3000 keys" in second.output
        first.signal(signal.SIGUSR1)
        first.wait_for("SIGUSR1: no snapshot is saved")
        await client.delete_many("b", [f"k{number}" for number in range(1_000)])
        await client.delete_many("b", [f"k{number}" for number in range(1_000, 2_000)])
        await client.delete_many("b", [f"k{number}" for number in range(2_000, 3_000)])
    for provider in (first, second):
        assert await in_thread(provider.stop) == 0
    for number in range(3_000):  # as after an hour, when the markers of deleted keys are gone
        subject = Layout("started").subject(b"b", b"k%d" % number).decode()
        await api(admin, "STREAM.PURGE.KV_started", {"filter": subject})
    third = launch(config)
    assert f"the snapshot {path} is not imported: it was imported earlier" in third.output
    async with KeyValueClient(nats_server.url, third.prefix, timeout_s=DEADLINE_S) as client:
        assert await client.get("b", "k7") is None
    assert bytes_of(path) == file


async def test_a_start_goes_on_with_an_import_that_was_killed_and_refuses_a_bad_file(
    launch: Launch, admin: Client, tmp_path: Path
) -> None:
    store, path = Store(), tmp_path / "memory"
    for number in range(40_000):
        store.bucket(b"b").set(b"k%d" % number, b"%d" % number)
    store.save(path)
    config = JETSTREAM | {"jetstream_bucket": "killed", "snapshot_path": str(path)}
    killed = launch(config, wait=False)
    await until(lambda: has_messages(admin, "killed", 6_000), "6000 messages")
    killed.kill()
    launch(config).wait_for("of 40,000 keys into the KV bucket killed")
    whole = bytes_of(path)
    for name, file, text in (
        ("cut", whole[:-3], "the file is cut short"),
        ("other", b"other", "the file is cut short: 5 bytes left"),
    ):
        write(path, file)
        refused = launch(config | {"jetstream_bucket": name}, wait=False)
        assert await in_thread(refused.wait) == 2
        assert text in refused.output
        assert await messages(admin, name) == 0
    store.bucket(b"b").set(b"secret key", bytes(1024 * 1024))
    store.save(path)
    refused = launch(config | {"jetstream_bucket": "misfit"}, wait=False)
    assert await in_thread(refused.wait) == 2
    assert "nothing was imported: 1 keys do not fit" in refused.output
    assert "secret key" not in refused.output
    missing = launch(config | {"jetstream_bucket": "none", "snapshot_path": str(tmp_path / "none")})
    assert f"there is no snapshot at {tmp_path / 'none'}: nothing is imported" in missing.output
