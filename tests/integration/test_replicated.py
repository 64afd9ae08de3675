"""The replicated store over the wire: instances of the provider, and real NATS servers with JetStream.

The behaviour that both stores share is tested by the same tests, which are imported below.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig
from nats.js.errors import KeyNotFoundError

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.moving import Bystander
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.company import Company
from keyvalue_replica.core import Core
from keyvalue_replica.follower import Follower
from keyvalue_replica.layout import Layout
from keyvalue_replica.options import ReplicaOptions
from keyvalue_replica.plain_layout import PlainLayout
from keyvalue_replica.reading_order import ReadingOrder
from keyvalue_replica.reservations import Reservations
from keyvalue_replica.wires import SharedWires
from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.opening import ConnectionOptions
from keyvalue_transport.nats.urls import split_urls
from keyvalue_transport.wrpc.errors import NoProviderError
from tests.conftest import DEADLINE_S, Launch, NatsServer, Provider, in_thread, launching
from tests.integration.test_store import (  # noqa: F401 # these are tests, which run with the fixtures of this module
    test_every_function,
    test_limits_refuse_a_write_and_leave_the_store_unchanged,
    test_pages,
    test_the_provider_answers_like_the_captured_one,
    vectors,
)

MAX_PAYLOAD = 4 * 1024 * 1024  # a captured call sets a value of 2.5 MiB, which must fit into one message
INCREMENTS = 10_000
JETSTREAM = {"store": "jetstream", "stop_timeout_ms": "500"}


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Start a NATS server with JetStream."""
    server = NatsServer(directory := tmp_path_factory.mktemp("nats"), jetstream(directory))
    yield server
    server.stop()


def jetstream(directory: Path, max_payload: int = MAX_PAYLOAD) -> str:
    """Return the configuration of a server that keeps its streams in a folder."""
    return f"max_payload: {max_payload}\njetstream {{ store_dir: {json.dumps(str(directory))} }}\n"


@pytest.fixture(scope="module")
def provider(nats_server: NatsServer, path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with launching(nats_server.url, tmp_path_factory.mktemp("provider")) as launch:
        yield launch(JETSTREAM | {"transport": path})


@pytest.fixture
def launch(nats_server: NatsServer, tmp_path: Path) -> Iterator[Launch]:
    with launching(nats_server.url, tmp_path, options=JETSTREAM) as launch:
        yield launch


@pytest.fixture
async def admin(nats_server: NatsServer) -> AsyncIterator[Client]:
    """Open a NATS client that uses none of our code."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


async def answered(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return the answer to a call. Repeat the call while nobody serves it, or until an instance is ready."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await call()
            except (NoProviderError, OtherError):
                await asyncio.sleep(0.05)


async def test_instances_share_one_store_that_outlives_them(launch: Launch, nats_server: NatsServer) -> None:
    """Kill one instance of two, then both, and start one again. Nothing acknowledged is missing."""
    first = launch()
    second = launch(provider_key=first.key)
    async with KeyValueClient(nats_server.url, first.prefix, timeout_s=DEADLINE_S) as client:
        await asyncio.gather(*(client.set("b", f"k{number}", b"%d" % number) for number in range(200)))
        await client.set_many("b", {"many": b"1", "other": b"2"})
        cursor = (await client.list_keys("b")).cursor
        assert cursor is None
        for _ in range(100):  # each call reaches one of the two
            assert await client.get_many("b", ["k7", "many", "none"]) == [b"7", b"1", None]
            assert await client.exists("b", "k8")
        first.process.kill()
        await in_thread(first.wait)
        await client.delete("b", "k7")
        order = (await client.list_keys("b")).keys
        second.process.kill()
        await in_thread(second.wait)
        third = await in_thread(lambda: launch(provider_key=first.key))
        assert "caught up" in third.output
        found = await client.get_many("b", [f"k{number}" for number in range(200)])
        assert found == [None if number == 7 else b"%d" % number for number in range(200)]
        assert (await client.list_keys("b")).keys == order, "the order of keys, and so cursors, outlive instances"


async def test_increments_from_two_instances_add_up(launch: Launch, nats_server: NatsServer) -> None:
    """Two instances with prefixes of their own share a bucket, and each increments one key 10,000 times."""
    instances = [launch({"jetstream_bucket": "counters"}) for _ in range(2)]
    found: list[int] = []

    async def count(client: KeyValueClient, left: Iterator[int]) -> None:
        found.extend([await client.increment("b", "n", 1) for _ in left])

    async with AsyncExitStack() as stack:
        clients = [KeyValueClient(nats_server.url, each.prefix, timeout_s=DEADLINE_S) for each in instances]
        for client in clients:
            await stack.enter_async_context(client)
        lefts = [iter(range(INCREMENTS)) for _ in clients]  # the callers of a client share one
        await asyncio.gather(*(count(*each) for each in list(zip(clients, lefts, strict=True)) * 64))
        assert sorted(found) == list(range(1, 2 * INCREMENTS + 1)), "each sum is answered once"
        for client in clients:
            assert await client.get("b", "n") == b"%d" % (2 * INCREMENTS)
        with pytest.raises(OtherError, match="outside the range"):
            await clients[0].increment("b", "n", 2**64 - 1)


async def test_other_clients_of_nats_read_and_write_the_same_bucket(
    launch: Launch, nats_server: NatsServer, admin: Client
) -> None:
    provider = launch({"jetstream_bucket": "shared", "ttl_ms": "86400000"})
    layout = Layout("shared")

    def name(key: bytes) -> str:
        return layout.subject(b"b", key).decode().removeprefix("$KV.shared.")

    bucket = await admin.jetstream().key_value("shared")
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "ours", b"by us")
        await client.increment("b", "n", 41)
        assert (await bucket.get(name(b"ours"))).value == b"by us"
        assert (await bucket.get(name(b"n"))).value == b"41"
        await bucket.put(name(b"theirs"), b"by them")
        await bucket.put(name(b"n"), b"100")
        assert await client.get("b", "theirs") == b"by them"
        assert await client.increment("b", "n", 1) == 101
        await bucket.delete(name(b"theirs"))
        await bucket.purge(name(b"n"))
        await bucket.put("a.key.of.theirs", b"is not ours")
        assert await client.get_many("b", ["theirs", "n"]) == [None, None]
        await client.delete("b", "ours")
        with pytest.raises(KeyNotFoundError):
            await bucket.get(name(b"ours"))
        assert await client.increment("b", "n", 1) == 1
        assert await bucket.keys() == [name(b"n"), "a.key.of.theirs"] or len(await bucket.keys()) == 2


async def test_a_key_expires_at_every_instance(launch: Launch, nats_server: NatsServer) -> None:
    first = launch({"ttl_ms": "700"})
    launch({"ttl_ms": "700"}, provider_key=first.key)
    async with KeyValueClient(nats_server.url, first.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "k", b"v")
        await client.set_many("b", {"m": b"v"})
        assert await client.get_many("b", ["k", "m"]) == [b"v", b"v"]
        await answered(lambda: expired(client))
        for _ in range(20):
            assert await client.get_many("b", ["k", "m"]) == [None, None]
        assert await client.increment("b", "k", 3) == 3


async def expired(client: KeyValueClient) -> None:
    if await client.get_many("b", ["k", "m"]) != [None, None]:
        raise OtherError("not yet")


@pytest.mark.parametrize("what", ["purge", "delete", "create again"])
async def test_a_stream_that_others_change_is_read_again(
    launch: Launch, nats_server: NatsServer, admin: Client, what: str
) -> None:
    """A purge is silent, and a new stream uses the sequences again. No old key stays, and new keys are served."""
    provider = launch()
    stream = f"KV_{provider.key}"
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await asyncio.gather(*(client.set("b", f"k{number}", b"v") for number in range(50)))
        info = json.loads((await admin.request(f"$JS.API.STREAM.INFO.{stream}", timeout=DEADLINE_S)).data)
        if what == "purge":
            await admin.request(f"$JS.API.STREAM.PURGE.{stream}", timeout=DEADLINE_S)
        else:
            await admin.request(f"$JS.API.STREAM.DELETE.{stream}", timeout=DEADLINE_S)
        if what == "create again":
            await admin.request(
                f"$JS.API.STREAM.CREATE.{stream}", json.dumps(info["config"]).encode(), timeout=DEADLINE_S
            )
        await in_thread(provider.wait_for, {"purge": "was purged", "delete": "was deleted"}.get(what, "again"))

        async def is_empty() -> None:
            if await client.get("b", "k7") is not None:
                raise OtherError("not yet")
            assert (await client.list_keys("b")).keys == []

        await answered(is_empty)
        await answered(lambda: client.set("b", "new", b"v"))
        assert (await client.list_keys("b")).keys == [b"new"]


async def test_it_goes_on_after_the_server_was_away(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    """Kill the only server, and stop the provider for a while. All acknowledged changes are there afterwards."""
    server = new_nats_server(jetstream(tmp_path / "streams"))
    with launching(server.url, tmp_path) as launch:
        provider = launch(JETSTREAM | {"jetstream_timeout_ms": "400"})
        async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
            await client.set("b", "k", b"before")
            await in_thread(server.kill)
            await in_thread(server.start)
            assert await answered(lambda: client.get("b", "k")) == b"before"
            await answered(lambda: client.set("b", "k", b"after"))
            assert await client.get("b", "k") == b"after"
            provider.signal(signal.SIGSTOP)
            await asyncio.sleep(3)
            provider.signal(signal.SIGCONT)
            assert await answered(lambda: client.get("b", "k")) == b"after"


async def test_it_waits_for_jetstream_and_can_be_stopped_meanwhile(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    server = new_nats_server("")
    with launching(server.url, tmp_path) as launch:
        stopped = launch(JETSTREAM, wait=False)
        refused = launch(JETSTREAM | {"connect_timeout_ms": "600"}, wait=False)
        patient = launch(JETSTREAM, wait=False)
        for provider in (stopped, refused, patient):
            await in_thread(provider.wait_for, "JetStream does not answer: is it switched on")
        assert await in_thread(stopped.stop) == 0
        assert await in_thread(refused.wait) == 1
        assert "(tried for 0.6 s)" in refused.output
        await in_thread(server.kill)
        await in_thread(server.start, jetstream(tmp_path / "streams"))
        await in_thread(patient.wait_for, "ready: serving")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"subjects": ["$KV.x.b.>"]}, 'subjects is ["$KV.x.b.>"], needed ["$KV.x.>"]'),
        ({"discard": "old"}, 'discard is "old", needed "new"'),
        ({"max_age": 10**12}, "max_age is 1000000000000, needed 0"),
        ({"max_msgs_per_subject": -1}, "max_msgs_per_subject has no limit, needed 1 to 64"),
    ],
)
async def test_a_stream_that_does_not_fit_is_refused(
    launch: Launch, admin: Client, config: dict[str, Any], text: str
) -> None:
    await admin.request("$JS.API.STREAM.DELETE.KV_x", timeout=DEADLINE_S)
    fitting = {"name": "KV_x", "subjects": ["$KV.x.>"], "max_msgs_per_subject": 1, "discard": "new", "num_replicas": 1}
    created = json.loads(
        (
            await admin.request("$JS.API.STREAM.CREATE.KV_x", json.dumps(fitting | config).encode(), timeout=DEADLINE_S)
        ).data
    )
    assert "error" not in created, created
    provider = launch({"jetstream_bucket": "x"}, wait=False)
    assert await in_thread(provider.wait) == 1
    assert text in provider.output


async def test_a_bucket_of_nats_py_gets_what_is_missing_and_a_missing_one_may_be_refused(
    launch: Launch, nats_server: NatsServer, admin: Client
) -> None:
    await admin.jetstream().create_key_value(KeyValueConfig("plain", history=1))
    provider = launch({"jetstream_bucket": "plain"})
    config = json.loads((await admin.request("$JS.API.STREAM.INFO.KV_plain", timeout=DEADLINE_S)).data)["config"]
    assert (config["allow_atomic"], config["allow_msg_ttl"]) == (True, True)
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set_many("b", {"a": b"1", "c": b"2"})
        assert await client.get_many("b", ["a", "c"]) == [b"1", b"2"]
    refused = launch({"jetstream_bucket": "missing", "jetstream_create": "false"}, wait=False)
    assert await in_thread(refused.wait) == 1
    assert "the KV bucket missing does not exist, and jetstream_create is false" in refused.output


async def test_a_batch_is_stored_whole_or_pipelined(launch: Launch, nats_server: NatsServer) -> None:
    atomic, pipelined = launch(), launch({"batch": "pipelined"})
    entries = {f"k{number}": b"%d" % number for number in range(1001)}
    async with KeyValueClient(nats_server.url, atomic.prefix, timeout_s=DEADLINE_S) as client:
        with pytest.raises(OtherError, match="an atomic batch has 1001 keys; the limit is 1000"):
            await client.set_many("b", entries)
        assert await client.get_many("b", list(entries)) == [None] * 1001
    async with KeyValueClient(nats_server.url, pipelined.prefix, timeout_s=DEADLINE_S) as client:
        await client.set_many("b", entries)
        assert await client.get_many("b", list(entries)) == list(entries.values())
        await client.delete_many("b", list(entries))
        assert (await client.list_keys("b")).keys == []


@pytest.mark.parametrize("ttl", [{}, {"ttl_ms": "3600000"}], ids=["kept", "timed"])
@pytest.mark.parametrize("keys", ["encoded", "plain"])
async def test_everything_that_an_instance_writes_is_read_quickly(
    launch: Launch, nats_server: NatsServer, keys: str, ttl: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server may add a header, or change the order of ours. Then each frame would be parsed, at three times the cost."""
    bucket = f"quick-{keys}-{len(ttl)}"
    named = {"jetstream_bucket": bucket} if keys == "encoded" else {"enable_bucket_auto_create": "true"}
    instance = launch({"keys": keys, **named, **ttl})
    connection = await Connection.open(ConnectionOptions(split_urls(nats_server.url), "test"))
    parsed: list[bytes] = []
    deliver = Core.deliver

    def counted(core: Core, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        if subject.startswith(b"$KV."):
            parsed.append(block)
        deliver(core, subject, reply, block, payload)

    monkeypatch.setattr(Core, "deliver", counted)
    async with KeyValueClient(nats_server.url, instance.prefix, timeout_s=DEADLINE_S) as client:
        await client.set(bucket, "first", b"")  # the first delivery of a consumer is always parsed
        follower = Follower(connection, options := ReplicaOptions(bucket, creates=False))
        if keys == "plain":
            store = Store(clock=(clock := ServerClock()), is_limited=False)
            company = Company(store, clock, Reservations(store), SharedWires(connection), ReadingOrder())
            follower = Follower(connection, options, PlainLayout(bucket, bucket.encode()), company)
        core = await follower.open(StoreOptions(), DEADLINE_S)
        follower.start(Bystander())
        await follower.wait_caught_up()
        await client.set_many(bucket, {"a": b"1", "b": b"2", "n": b"3"})
        await client.increment(bucket, "n", 1)
        await client.delete_many(bucket, ["a", "b"])
        await client.set(bucket, "c", b"4")
        await client.delete(bucket, "c")
        handle = core.store.bucket(bucket.encode())
        await core.barrier()
        assert (handle.get(b"n"), len(handle)) == (b"4", 2)
        assert len(parsed) == 1, parsed
        await follower.stop()
    await connection.close()


async def test_a_value_must_fit_into_a_message_and_a_full_bucket_says_so(
    launch: Launch, nats_server: NatsServer
) -> None:
    provider = launch({"jetstream_bytes_max": "6_000_000", "jetstream_history": "1"})
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        with pytest.raises(OtherError, match=r"value is 4194304 bytes; the limit is 4194048 \(max_payload of the NATS"):
            await client.set("b", "k", bytes(MAX_PAYLOAD))
        await client.set("b", "k", bytes(MAX_PAYLOAD - 256))
        with pytest.raises(OtherError, match="the KV bucket is full"):
            await client.set("b", "other", bytes(MAX_PAYLOAD - 256))
        assert await client.exists("b", "other") is False
