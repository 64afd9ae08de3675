"""KV buckets with plain names (`keys = plain`): instances of the provider, real NATS servers, and nats-py beside them.

nats-py does what keyvalue-nats and hosts of wasmCloud 2.x do: both use the KV buckets of async-nats, with the same
subjects, headers and values.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from keyvalue_transport.keyvalue.errors import NoSuchStoreError, OtherError
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, Provider, connecting, in_thread, launching, until
from tests.integration.test_host import health
from tests.integration.test_links import Host
from tests.integration.test_replicated import answered, jetstream

INCREMENTS = 5_000
#: Messages of other programs: the program and its call, the headers, the value, and the value that a read finds then.
#: N is the sequence of the key's last message, or 0.
OF_OTHERS: list[tuple[str, dict[str, str], bytes, bytes | None]] = [
    ("keyvalue-nats: first increment", {"Nats-Expected-Last-Subject-Sequence": "N"}, b"7", b"7"),
    ("keyvalue-nats: set", {}, b"\0\xff any bytes", b"\0\xff any bytes"),
    ("keyvalue-nats: increment", {"Nats-Expected-Last-Subject-Sequence": "N"}, b"42", b"42"),
    ("keyvalue-nats: delete", {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}, b"", None),
    ("wasmCloud 2.x: set", {}, b"", b""),
    ("wasmCloud 2.x: first increment", {}, bytes(7) + b"\x07", bytes(7) + b"\x07"),
    ("wasmCloud 2.x: increment", {"Nats-Expected-Last-Subject-Sequence": "N"}, bytes(7) + b"\x08", bytes(7) + b"\x08"),
    ("wasmCloud 2.x: delete", {"KV-Operation": "DEL"}, b"", None),
]
PLAIN = {"store": "jetstream", "keys": "plain", "stop_timeout_ms": "500"}
CREATING = PLAIN | {"enable_bucket_auto_create": "true"}


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Start a NATS server with JetStream."""
    server = NatsServer(directory := tmp_path_factory.mktemp("nats"), jetstream(directory))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def provider(nats_server: NatsServer, path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with launching(nats_server.url, tmp_path_factory.mktemp("provider")) as launch:
        yield launch(CREATING | {"transport": path})


@pytest.fixture
def launch(nats_server: NatsServer, tmp_path: Path) -> Iterator[Launch]:
    with launching(nats_server.url, tmp_path, options=PLAIN) as launch:
        yield launch


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """Return the name of a KV bucket that no other test uses."""
    return re.sub(r"\W", "_", request.node.name)[:100]


@pytest.fixture
async def admin(nats_server: NatsServer) -> AsyncIterator[Client]:
    """Open a NATS client that uses none of our code."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


def client_of(server: NatsServer, provider: Provider) -> KeyValueClient:
    return KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S)


async def config_of(admin: Client, bucket: str) -> dict[str, Any]:
    """Return the configuration of a KV bucket's stream."""
    config: dict[str, Any] = json.loads(
        (await admin.request(f"$JS.API.STREAM.INFO.KV_{bucket}", timeout=DEADLINE_S)).data
    )["config"]
    return config


async def bare_bucket(admin: Client, bucket: str, **config: Any) -> KeyValue:
    """Create a KV bucket without message TTLs and atomic batches, as async-nats does."""
    fields = {"name": f"KV_{bucket}", "subjects": [f"$KV.{bucket}.>"], "max_msgs_per_subject": 1, "discard": "new"}
    fields |= {"num_replicas": 1, "allow_rollup_hdrs": True, "allow_direct": True, "deny_delete": True} | config
    created = json.loads(
        (
            await admin.request(f"$JS.API.STREAM.CREATE.KV_{bucket}", json.dumps(fields).encode(), timeout=DEADLINE_S)
        ).data
    )
    assert "error" not in created, created
    return await admin.jetstream().key_value(bucket)


@pytest.mark.parametrize("history", [1, 5])
async def test_both_sides_see_all_changes_of_the_other(
    provider: Provider, nats_server: NatsServer, admin: Client, bucket: str, history: int
) -> None:
    theirs = await admin.jetstream().create_key_value(KeyValueConfig(bucket, history=history))
    for key in ("kept", "deleted", "purged", "a.b/c=d_e-f"):
        await theirs.put(key, b"first")
        await theirs.put(key, key.encode())
    await theirs.delete("deleted")
    await theirs.purge("purged")
    async with client_of(nats_server, provider) as ours:
        assert sorted((await ours.list_keys(bucket)).keys) == [b"a.b/c=d_e-f", b"kept"]
        assert await ours.get_many(bucket, ["kept", "deleted", "purged"]) == [b"kept", None, None]
        watcher = await theirs.watchall()
        await ours.set(bucket, "ours", b"by us")
        await ours.set(bucket, "kept", b"changed")
        await ours.delete(bucket, "a.b/c=d_e-f")
        assert [(await theirs.get(key)).value for key in ("ours", "kept")] == [b"by us", b"changed"]
        with pytest.raises(KeyNotFoundError):
            await theirs.get("a.b/c=d_e-f")
        assert sorted(await theirs.keys()) == ["kept", "ours"]
        told = dict[str, Any]()
        async with asyncio.timeout(DEADLINE_S):
            while told.get("a.b/c=d_e-f") != "PURGE":
                entry = await watcher.updates()  # type: ignore[no-untyped-call]
                if entry is not None:
                    told[entry.key] = entry.operation or entry.value
        assert (told["ours"], told["kept"]) == (b"by us", b"changed")
        await watcher.stop()  # type: ignore[no-untyped-call]
        revision = await theirs.create("created", b"1")
        assert await ours.get(bucket, "created") == b"1"
        await theirs.update("created", b"2", revision)
        await theirs.purge("kept")
        assert await ours.get_many(bucket, ["created", "kept"]) == [b"2", None]
        assert await ours.exists(bucket, "kept") is False


async def test_other_clients_may_expire_and_roll_up_messages(
    provider: Provider, nats_server: NatsServer, admin: Client, bucket: str
) -> None:
    theirs = await admin.jetstream().create_key_value(KeyValueConfig(bucket))
    async with client_of(nats_server, provider) as ours:
        await ours.set(bucket, "k", b"v")
        await theirs.create("short", b"v", msg_ttl=1)
        assert await ours.get(bucket, "short") == b"v"

        async def is_gone() -> bool:
            return await ours.get(bucket, "short") is None

        await until(is_gone, "the key expires")
        await admin.request(f"$KV.{bucket}.only", b"v", headers={"Nats-Rollup": "all"}, timeout=DEADLINE_S)
        assert await ours.list_keys(bucket) == ([b"only"], None)
        assert await ours.increment(bucket, "n", 2) == 2


async def test_keys_expire_at_the_age_of_their_bucket(
    launch: Launch, nats_server: NatsServer, admin: Client, bucket: str
) -> None:
    """A server removes a message at `max_age` or up to a second later, and leaves no marker."""
    age_s = 4.0
    theirs = await bare_bucket(admin, bucket, max_age=int(age_s * 1e9), allow_msg_ttl=True)
    subject = f"$KV.{bucket}.never"
    await admin.request(subject, b"v", headers={"Nats-TTL": "never"}, timeout=DEADLINE_S)
    one, other = client_of(nats_server, launch()), client_of(nats_server, launch({"reads": "local"}))
    async with one, other:
        began_s = asyncio.get_running_loop().time()
        await theirs.put("theirs", b"v")
        await theirs.create("long", b"v", msg_ttl=3600)
        await theirs.create("short", b"v", msg_ttl=1)
        await one.set(bucket, "ours", b"v")
        await one.set_many(bucket, {"many": b"v"})
        await theirs.put("n", b"1")
        keys = ["theirs", "long", "ours", "many", "n"]
        found = await one.get_many(bucket, keys)
        if asyncio.get_running_loop().time() - began_s < age_s:
            assert found == [b"v", b"v", b"v", b"v", b"1"]

        async def are_gone(client: KeyValueClient, *keys: str) -> bool:
            return await client.get_many(bucket, keys) == [None] * len(keys)

        await until(functools.partial(are_gone, one, "short"), "the shorter time to live counts")
        assert await one.increment(bucket, "n", 1) in (1, 2)
        incremented_s = asyncio.get_running_loop().time()
        await until(functools.partial(are_gone, one, *keys[:-1]), "the keys reach the age")
        gone_s = asyncio.get_running_loop().time()
        assert gone_s - began_s >= age_s
        assert await are_gone(other, *keys[:-1])
        if asyncio.get_running_loop().time() - incremented_s < age_s:
            assert await one.exists(bucket, "n"), "the age of a counter begins anew with each increment"
        await until(functools.partial(are_gone, one, "n"), "the counter reaches the age")
        latest = launch()
        async with client_of(nats_server, latest) as late:
            for client in (one, other, late):
                assert await client.list_keys(bucket) == ([b"never"], None)
            assert await late.increment(bucket, "n", 5) == 5, "the server may still have the last message"
            assert await one.get(bucket, "n") in (b"5", None)
            config = await config_of(admin, bucket) | {"max_age": 0}
            await admin.request(f"$JS.API.STREAM.UPDATE.KV_{bucket}", json.dumps(config).encode(), timeout=DEADLINE_S)
            await in_thread(latest.wait_for, "max_age of the stream was changed")
            await one.set(bucket, "kept", b"v")
            assert await late.get(bucket, "kept") == b"v"


async def test_messages_as_other_programs_write_them(
    launch: Launch, nats_server: NatsServer, admin: Client, bucket: str
) -> None:
    """In a bucket of theirs, both write the same subjects, headers and values."""
    await bare_bucket(admin, bucket)
    stream, subject = f"KV_{bucket}", f"$KV.{bucket}.a.key"
    text, be64 = launch(), launch({"counter": "be64"})
    async with client_of(nats_server, text) as client, client_of(nats_server, be64) as other:
        last = 0
        for program, headers, value, found in OF_OTHERS:
            sent = {name: str(last) if header == "N" else header for name, header in headers.items()}
            answer = await admin.request(subject, value, headers=sent or None, timeout=DEADLINE_S)
            last = json.loads(answer.data)["seq"]
            assert await client.get(bucket, "a.key") == found, program
        js = admin.jetstream()

        async def written() -> tuple[dict[str, str], bytes]:
            message = await js.get_last_msg(stream, subject)
            return dict(message.headers or {}), message.data or b""

        await client.set(bucket, "a.key", b"41")
        assert await written() == ({}, b"41")
        before = (await js.get_last_msg(stream, subject)).seq
        assert await client.increment(bucket, "a.key", 1) == 42
        assert await written() == ({"Nats-Expected-Last-Subject-Sequence": str(before)}, b"42")
        await client.delete(bucket, "a.key")
        assert await written() == ({"KV-Operation": "PURGE", "Nats-Rollup": "sub"}, b"")
        assert await other.increment(bucket, "a.key", 258) == 258
        assert (await written())[1] == bytes(6) + b"\x01\x02"
        before = (await js.get_last_msg(stream, subject)).seq
        assert await other.increment(bucket, "a.key", 1) == 259
        assert await written() == ({"Nats-Expected-Last-Subject-Sequence": str(before)}, bytes(6) + b"\x01\x03")


async def test_it_goes_on_after_the_server_was_away(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    server = new_nats_server(jetstream(tmp_path / "streams"))
    with launching(server.url, tmp_path) as launch:
        provider = launch(CREATING | {"jetstream_timeout_ms": "2000"})
        async with client_of(server, provider) as client:
            for name in ("one", "other"):
                await client.set(name, "k", b"before")
            await in_thread(server.kill)
            await in_thread(server.start)
            for name in ("one", "other"):
                assert await answered(functools.partial(client.get, name, "k")) == b"before"
                await answered(functools.partial(client.set, name, "k", b"after"))
                assert await client.get(name, "k") == b"after"
            assert await client.increment("one", "n", 1) == 1


async def test_a_link_may_name_a_domain(new_nats_server: Callable[[str], NatsServer], tmp_path: Path) -> None:
    config = jetstream(tmp_path / "streams").replace("store_dir", "domain: hub, store_dir")
    server = new_nats_server(config)
    with launching(server.url, tmp_path) as launch:
        provider = launch(CREATING)
        admin = await nats.connect(server.url)
        host = Host(admin, provider)
        await host.put(bucket="kv", js_domain="hub", quota_keys="2")
        async with connecting(server.url) as connect, client_of(server, provider) as anonymous:
            client = await connect(provider)
            await client.set("any", "k", b"v")
            assert await client.increment("any", "n", 5) == 5
            await client.delete("any", "k")
            await client.set("any", "l", b"v")
            with pytest.raises(OtherError, match="quota would hold 3 keys"):
                await client.set("any", "m", b"v")
            assert await client.get_many("any", ["k", "l", "n"]) == [None, b"v", b"5"]
            assert await anonymous.get_many("kv", ["k", "l", "n"]) == [None, b"v", b"5"]
            await host.put(bucket="kv", js_domain="elsewhere")
            with pytest.raises(OtherError, match="the KV bucket kv can't be used"):
                await client.get("any", "k")
        await admin.close()


async def test_a_bucket_of_others_is_not_changed_and_says_what_it_does_not_allow(
    launch: Launch, nats_server: NatsServer, admin: Client, bucket: str
) -> None:
    theirs = await bare_bucket(admin, bucket)
    before = await config_of(admin, bucket)
    atomic, expiring = launch(), launch({"ttl_ms": "60000"})
    async with client_of(nats_server, atomic) as client, client_of(nats_server, expiring) as other:
        await client.set(bucket, "a", b"1")
        await client.set_many(bucket, {"b": b"2"})
        with pytest.raises(OtherError, match=r"allows no atomic batches \(allow_atomic\): set batch=pipelined"):
            await client.set_many(bucket, {"c": b"3", "d": b"4"})
        with pytest.raises(OtherError, match="allows no atomic batches"):
            await client.delete_many(bucket, ["a", "b"])
        for refused in (other.set(bucket, "t", b"1"), other.increment(bucket, "t", 1)):
            with pytest.raises(OtherError, match=r"allows no messages that expire \(allow_msg_ttl\)"):
                await refused
        await client.delete(bucket, "a")
        assert await other.get_many(bucket, ["a", "b", "c", "t"]) == [None, b"2", None, None]
        assert await theirs.keys() == ["b"]
    assert await config_of(admin, bucket) == before
    assert await in_thread(atomic.stop) == 0
    left = json.loads(
        (await admin.request(f"$JS.API.STREAM.INFO.KV_{bucket}", b'{"subjects_filter":">"}', timeout=DEADLINE_S)).data
    )
    mine = [name for name in left["state"]["subjects"] if "._kv." in name]
    assert len(mine) == 1, "an instance that stops removes its barriers; the other one still runs"
    pipelined = launch({"batch": "pipelined"})
    async with client_of(nats_server, pipelined) as client:
        await client.set_many(bucket, {"c": b"3", "d": b"4"})
        assert await client.get_many(bucket, ["b", "c", "d"]) == [b"2", b"3", b"4"]
    adopting = launch({"jetstream_adopt": "true", "ttl_ms": "60000"})
    async with client_of(nats_server, adopting) as client:
        await client.set_many(bucket, {"c": b"5", "d": b"6"})
        config = await config_of(admin, bucket)
        assert (config["allow_atomic"], config["allow_msg_ttl"]) == (True, True)
        assert config["metadata"]["wrpc-keyvalue-keys"] == "plain"


async def test_increments_of_two_programs_add_up(
    provider: Provider, nats_server: NatsServer, admin: Client, bucket: str
) -> None:
    """nats-py increments as keyvalue-nats does: it writes decimal text if the key's last sequence is the known one."""
    theirs = await admin.jetstream().create_key_value(KeyValueConfig(bucket))
    await theirs.create("n", b"0")

    async def add_theirs() -> None:
        done = 0
        while done < INCREMENTS:
            entry = await theirs.get("n")
            try:
                await theirs.update("n", b"%d" % (int(entry.value or b"0") + 1), entry.revision)
                done += 1
            except KeyWrongLastSequenceError:
                await asyncio.sleep(0)

    async with client_of(nats_server, provider) as ours:
        left = iter(range(INCREMENTS))
        sums: list[int] = []

        async def add_ours() -> None:
            sums.extend([await ours.increment(bucket, "n", 1) for _ in left])

        await asyncio.gather(add_theirs(), *(add_ours() for _ in range(4)))
        assert (await theirs.get("n")).value == await ours.get(bucket, "n") == b"%d" % (2 * INCREMENTS)
        assert len(set(sums)) == INCREMENTS


async def test_counters_of_both_forms(launch: Launch, nats_server: NatsServer, admin: Client, bucket: str) -> None:
    theirs = await bare_bucket(admin, bucket)
    await theirs.put("be64", (41).to_bytes(8))
    await theirs.put("text", b"41")
    async with client_of(nats_server, launch({"counter": "be64"})) as client:
        assert [await client.increment(bucket, key, 1) for key in ("be64", "new")] == [42, 1]
        assert [(await theirs.get(key)).value for key in ("be64", "new")] == [(42).to_bytes(8), (1).to_bytes(8)]
        with pytest.raises(OtherError, match="set counter=text"):
            await client.increment(bucket, "text", 1)
    async with client_of(nats_server, launch()) as client:
        assert await client.increment(bucket, "text", 1) == 42
        with pytest.raises(OtherError, match="set counter=be64"):
            await client.increment(bucket, "be64", 1)


async def test_a_missing_bucket_is_created_by_a_write_that_may(
    launch: Launch, nats_server: NatsServer, admin: Client, bucket: str
) -> None:
    async with client_of(nats_server, launch()) as client:
        for call in (client.get(bucket, "k"), client.set(bucket, "k", b"v"), client.list_keys(bucket)):
            with pytest.raises(NoSuchStoreError):
                await call
    async with client_of(nats_server, launch(CREATING)) as client:
        assert await client.get_many(bucket, ["k", "l"]) == [None, None]
        assert await client.exists(bucket, "k") is False
        assert await client.list_keys(bucket) == ([], None)
        await client.delete(bucket, "k")
        for refused in (client.set(bucket, "a b", b"v"), client.increment(bucket, "k" * 5_000, 1)):
            with pytest.raises(OtherError):
                await refused
        assert "error" in json.loads((await admin.request(f"$JS.API.STREAM.INFO.KV_{bucket}", timeout=DEADLINE_S)).data)
        await asyncio.gather(*(client.increment(bucket, "n", 1) for _ in range(20)))
        assert await client.get(bucket, "n") == b"20"
    config = await config_of(admin, bucket)
    assert config["metadata"]["wrpc-keyvalue-keys"] == "plain"
    assert len(config["metadata"]["wrpc-keyvalue-secret"]) == 32


@pytest.mark.parametrize("is_ours", [True, False])
async def test_cursors_agree_on_all_instances(
    launch: Launch, nats_server: NatsServer, admin: Client, bucket: str, is_ours: bool
) -> None:
    if not is_ours:
        await bare_bucket(admin, bucket)
    first, second = (launch(CREATING | {"page_keys": "7"}) for _ in range(2))
    async with client_of(nats_server, first) as one, client_of(nats_server, second) as other:
        await asyncio.gather(*(one.set(bucket, f"k{number}", b"") for number in range(50)))
        page = await one.list_keys(bucket)
        found = [*page.keys]
        for client in (other, one, other, one, other, one, other):
            assert page.cursor is not None
            page = await client.list_keys(bucket, page.cursor)
            found += page.keys
        assert page.cursor is None
        assert sorted(found) == sorted(b"k%d" % number for number in range(50))


async def test_buckets_are_opened_and_closed_within_the_limit(
    launch: Launch, nats_server: NatsServer, admin: Client, bucket: str
) -> None:
    names = [f"{bucket}_{number}" for number in range(3)]
    buckets = [await admin.jetstream().create_key_value(KeyValueConfig(name)) for name in names]
    for theirs in buckets:
        await theirs.put("k", theirs._name.encode())
    provider = launch({"open_buckets_max": "2", "bucket_idle_ms": "400"})
    async with client_of(nats_server, provider) as client:
        for name in names[:2]:
            assert await client.get(name, "k") == name.encode()
        with pytest.raises(OtherError, match=r"would hold 3 KV buckets open; the limit is 2 \(open_buckets_max\)"):
            await client.get(names[2], "k")
        await in_thread(provider.wait_for, "closed KV_", 2)
        assert await client.get(names[2], "k") == names[2].encode()
        await buckets[0].put("k", b"while it was closed")
        assert await client.get(names[0], "k") == b"while it was closed"
        consumers = json.loads((await admin.request(f"$JS.API.CONSUMER.LIST.KV_{names[1]}", timeout=DEADLINE_S)).data)
        assert consumers["total"] == 0


@pytest.mark.parametrize("reads", ["latest", "local"])
async def test_callers_do_not_notice_that_buckets_are_closed_and_opened(
    launch: Launch, nats_server: NatsServer, bucket: str, reads: str
) -> None:
    """Each worker has its own keys, and pauses so long that its KV bucket is closed. A dict says what it must find."""
    provider = launch(CREATING | {"bucket_idle_ms": "120", "open_buckets_max": "3", "reads": reads})

    async def work(client: KeyValueClient, worker: int) -> None:
        chance, name, model = Random(worker), f"{bucket}_{worker % 4}", dict[str, bytes]()

        async def answer(call: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
            while True:
                try:
                    return await call(name, *arguments)
                except OtherError as error:
                    assert "KV buckets open" in str(error)  # it is tried again
                    await asyncio.sleep(0.05)

        for _ in range(60):
            key = f"w{worker}.{chance.randrange(4)}"
            match chance.randrange(5):
                case 0:
                    model[key] = b"%d" % chance.randrange(1_000)
                    await answer(client.set, key, model[key])
                case 1:
                    await answer(client.delete, key)
                    model.pop(key, None)
                case 2:
                    total = await answer(client.increment, key, 3)
                    assert total == int(model.get(key, b"0")) + 3
                    model[key] = b"%d" % total
                case 3:
                    assert await answer(client.get, key) == model.get(key)
                case 4:
                    found = (await answer(client.list_keys)).keys
                    assert sorted(key for key in found if key.startswith(b"w%d." % worker)) == sorted(
                        key.encode() for key in model
                    )
            if chance.random() < 0.1:
                await asyncio.sleep(chance.random() * 0.5)

    async with client_of(nats_server, provider) as client:
        await asyncio.gather(*(work(client, worker) for worker in range(8)))
    assert provider.output.count("closed KV_") > 4, "the workers have paused too little"


async def test_a_bucket_that_others_delete_and_create_again_is_opened_again(
    launch: Launch, nats_server: NatsServer, admin: Client, bucket: str
) -> None:
    theirs = await admin.jetstream().create_key_value(KeyValueConfig(bucket))
    await theirs.put("old", b"1")
    provider = launch({"jetstream_timeout_ms": "300"})
    async with client_of(nats_server, provider) as client:
        assert await client.get(bucket, "old") == b"1"
        await admin.jetstream().delete_key_value(bucket)
        theirs = await admin.jetstream().create_key_value(KeyValueConfig(bucket))
        await theirs.put("new", b"2")

        async def is_read() -> bool:
            try:
                return await client.get_many(bucket, ["old", "new"]) == [None, b"2"]
            except (OtherError, NoSuchStoreError):
                await asyncio.sleep(0.1)
                return False

        await until(is_read, "the new KV bucket is served")


async def test_links_of_keyvalue_nats_are_understood(
    launch: Launch, nats_server: NatsServer, admin: Client, bucket: str
) -> None:
    """A link names the KV bucket, whatever name its component gives, as in keyvalue-nats."""
    provider = launch()
    host = Host(admin, provider)
    config = {"bucket": bucket, "cluster_uri": "nats://elsewhere:4222", "auth_jwt": "hush"}
    answer = await host.put(**config)
    assert "not supported, since all links use the provider's connection: auth_jwt, cluster_uri" in answer["message"]
    assert "hush" not in answer["message"]

    async def is_named() -> bool:
        return f"the KV bucket {bucket} does not exist" in (await health(admin, provider))["message"]

    await until(is_named, "health names the missing KV bucket")
    await host.put(**config, enable_bucket_auto_create="TRUE")

    async def is_created() -> bool:
        return "error" not in json.loads(
            (await admin.request(f"$JS.API.STREAM.INFO.KV_{bucket}", timeout=DEADLINE_S)).data
        )

    await until(is_created, "the link creates the KV bucket")
    async with connecting(nats_server.url) as connect:
        client = await connect(provider)
        await client.set("default", "k", b"v")
        assert await client.get("any", "k") == b"v"
    assert (await (await admin.jetstream().key_value(bucket)).get("k")).value == b"v"
    answer = await host.put(keys="encoded")
    assert answer["healthy"] is False
    assert "keys=encoded needs a provider with keys=encoded, or with a jetstream_bucket" in answer["message"]


@pytest.mark.parametrize("is_default_plain", [False, True])
async def test_one_provider_serves_both_kinds_of_names(
    launch: Launch, nats_server: NatsServer, admin: Client, bucket: str, is_default_plain: bool
) -> None:
    """Callers without a link have the kind of the provider, and the link has the other one."""
    theirs = await admin.jetstream().create_key_value(KeyValueConfig(bucket))
    kinds = ["plain", "encoded"] if is_default_plain else ["encoded", "plain"]
    own = f"own_{kinds[0]}"
    provider = launch({"keys": kinds[0], "keys_max": "3", "jetstream_bucket": own})
    host = Host(admin, provider)
    assert (await host.put(keys=kinds[1], quota_keys="1"))["healthy"]
    async with connecting(nats_server.url) as connect, client_of(nats_server, provider) as anonymous:
        linked = await connect(provider)
        plain, encoded = (anonymous, linked) if is_default_plain else (linked, anonymous)
        await encoded.set(bucket, "k", b"encoded")
        await plain.set(bucket, "k", b"plain")
        assert (await encoded.get(bucket, "k"), await plain.get(bucket, "k")) == (b"encoded", b"plain")
        assert (await theirs.get("k")).value == b"plain"
        with pytest.raises(OtherError, match="quota would hold 2 keys"):
            await linked.set(bucket, "l", b"")
        await anonymous.set(bucket, "l", b"")
        with pytest.raises(OtherError, match=r"the store would hold 4 keys; the limit is 3 \(keys_max\)"):
            await anonymous.set(bucket, "m", b"")
        with pytest.raises(OtherError, match="it holds encoded names, needed plain ones"):
            await plain.get(own, "k")


async def test_names_that_nats_does_not_allow_are_refused(provider: Provider, nats_server: NatsServer) -> None:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(client_of(nats_server, provider))
        with pytest.raises(OtherError, match=r"the key has the character ' ' at byte 1; NATS allows letters"):
            await client.set("names", "a b", b"")
        with pytest.raises(OtherError, match=r"the bucket's name has the character '\.' at byte 1"):
            await client.set("a.b", "k", b"")
        with pytest.raises(OtherError, match="are 4001 bytes in a NATS subject; the limit is 4000"):
            await client.set("names", "k" * (4_001 - len("$KV.names.")), b"")
        assert await client.get("names", "a b") is None
