"""A bucket that an administrator backs up and restores, that loses its end, or that gets more replicas."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig

from keyvalue_replica.layout import Layout
from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import NoProviderError
from tests.conftest import DEADLINE_S, Launch, NatsServer, in_thread, launching, until
from tests.integration.conftest import until_it_serves
from tests.integration.test_replicated import JETSTREAM, admin, answered, jetstream, launch, nats_server
from tests.integration.test_replicated_operations import api
from tests.torture.cluster import Cluster
from tests.torture.replicated import ANSWER_TIMEOUT_S, History, NatsClient, chosen

__all__ = ["admin", "launch", "nats_server"]  # fixtures

OLD = {f"k{number}": b"old" for number in range(100)}
NEW = {**dict.fromkeys(OLD, b"new"), **{f"new{number}": b"new" for number in range(50)}}
GROWING = JETSTREAM | {"jetstream_bucket": "growing", "jetstream_timeout_ms": "2000", "connect_timeout_ms": "20000"}
LATER = {f"later{number}": b"later" for number in range(400)}
NAMES = [*NEW, *LATER]


class Backup(NamedTuple):
    """A stream's backup, as `nats stream backup` writes it."""

    about: dict[str, Any]
    chunks: list[bytes]

    @classmethod
    async def of(cls, client: Client, stream: str) -> Backup:
        inbox = client.new_inbox()
        pieces = await client.subscribe(inbox)
        answer = await api(client, f"STREAM.SNAPSHOT.{stream}", {"deliver_subject": inbox, "no_consumers": True})
        chunks = []
        while (piece := await pieces.next_msg(DEADLINE_S)).data:
            chunks.append(piece.data)
            if piece.reply:  # the server waits for it
                await client.publish(piece.reply, b"")
        return cls({"config": answer["config"], "state": answer["state"]}, chunks)

    async def restore(self, client: Client) -> None:
        stream = self.about["config"]["name"]
        to = (await api(client, f"STREAM.RESTORE.{stream}", self.about))["deliver_subject"]
        for piece in self.chunks:
            await client.request(to, piece, timeout=DEADLINE_S)
        ended = json.loads((await client.request(to, b"", timeout=DEADLINE_S)).data)
        assert "error" not in ended, ended


async def write_later(client: Client, bucket: str) -> None:
    """Write as another client of NATS does."""
    for name, value in LATER.items():
        await client.request(Layout(bucket).subject(b"b", name.encode()).decode(), value, timeout=DEADLINE_S)


async def change(client: KeyValueClient) -> None:
    """Turn the old keys into the new ones."""
    await asyncio.gather(*(client.set("b", name, value) for name, value in NEW.items()))


def present(values: dict[str, bytes]) -> list[bytes | None]:
    return [values.get(name) for name in NAMES]


async def becomes(client: KeyValueClient, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Read all keys until they are as they must be. Until then, they must be as before, or a read must be refused."""

    async def is_after() -> bool:
        try:
            found = await client.get_many("b", NAMES)
        except (OtherError, NoProviderError):
            await asyncio.sleep(0.02)
            return False
        if found[: len(NEW)] != present(before)[: len(NEW)]:
            assert found[: len(NEW)] == present(after)[: len(NEW)], "a mix of two states"
        return found == present(after)

    await until(is_after, "the restored keys are served")


async def test_no_old_value_comes_back_when_the_server_removes_the_newest(
    launch: Launch, nats_server: NatsServer, admin: Client
) -> None:
    """Old values of keys with a deadline, and of deleted keys, are removed with the write."""
    lasting, expiring = launch({"jetstream_bucket": "gone"}), launch({"jetstream_bucket": "gone", "ttl_ms": "300"})
    expire, delete = ["set", "set_many", "n"], ["deleted", "deleted_many", "also"]
    url = nats_server.url
    async with (
        KeyValueClient(url, lasting.prefix, timeout_s=DEADLINE_S) as of_lasting,
        KeyValueClient(url, expiring.prefix, timeout_s=DEADLINE_S) as of_expiring,
    ):
        for value in (b"1", b"2"):
            await of_lasting.set_many("b", dict.fromkeys([*expire, *delete], value))
        await of_expiring.set("b", "set", b"3")
        await of_expiring.set_many("b", {"set_many": b"3", "more": b"3"})
        await of_expiring.increment("b", "n", 1)
        await of_lasting.delete("b", "deleted")
        await of_lasting.delete_many("b", ["deleted_many", "also"])
    layout = Layout("gone")
    subjects = {name: layout.subject(b"b", name.encode()).decode() for name in (*expire, *delete)}

    async def expired_are_removed() -> bool:
        info = await api(admin, "STREAM.INFO.KV_gone", {"subjects_filter": "$KV.gone.*.*"})
        return not {subjects[name] for name in expire} & info["state"]["subjects"].keys()

    await until(expired_are_removed, "the server has removed the expired keys, and its markers of them")
    info = await api(admin, "STREAM.INFO.KV_gone", {"subjects_filter": "$KV.gone.*.*"})
    assert [info["state"]["subjects"][subjects[name]] for name in delete] == [1, 1, 1]
    late = launch({"jetstream_bucket": "gone"})
    async with KeyValueClient(url, late.prefix, timeout_s=DEADLINE_S) as of_late:
        assert (await of_late.list_keys("b")).keys == []


async def test_a_restored_stream_is_read_again_and_keeps_the_order_of_keys(
    launch: Launch, nats_server: NatsServer, admin: Client
) -> None:
    """One instance runs and another is stopped while the stream is deleted and restored, and others write to it.

    Others have created the stream, without a secret for the order of keys.
    """
    await admin.jetstream().create_key_value(KeyValueConfig("kept", history=64))
    first = launch({"jetstream_bucket": "kept"})
    config = {"jetstream_bucket": "kept", "jetstream_create": "false"}
    running, stopped = launch(config), launch(config)
    url = nats_server.url
    async with (
        KeyValueClient(url, running.prefix, timeout_s=DEADLINE_S) as of_running,
        KeyValueClient(url, stopped.prefix, timeout_s=DEADLINE_S) as of_stopped,
    ):
        await of_running.set_many("b", OLD)
        backup = await Backup.of(admin, "KV_kept")
        await change(of_running)
        assert await of_stopped.get_many("b", NAMES) == present(NEW)
        assert await in_thread(first.stop) == 0  # it would create the stream again
        stopped.signal(signal.SIGSTOP)
        await api(admin, "STREAM.DELETE.KV_kept")
        await backup.restore(admin)
        await write_later(admin, "kept")
        stopped.signal(signal.SIGCONT)
        await asyncio.gather(*(becomes(client, NEW, OLD | LATER) for client in (of_running, of_stopped)))
        late = await in_thread(lambda: launch(config))
        async with KeyValueClient(url, late.prefix, timeout_s=DEADLINE_S) as of_late:
            orders = [(await client.list_keys("b")).keys for client in (of_running, of_stopped, of_late)]
        assert orders[0] == orders[1] == orders[2]
        await of_stopped.set("b", "k0", b"again")
        assert await of_running.get("b", "k0") == b"again"


async def test_a_stream_that_lost_its_end_and_grew_again_is_read_again(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    """A power failure loses what was not synced. Other clients then use its sequences, before the instance is back."""
    streams, kept = tmp_path / "streams", tmp_path / "kept"
    server = new_nats_server(jetstream(streams))
    with launching(server.url, tmp_path) as launch:
        provider = launch(JETSTREAM | {"jetstream_bucket": "cut"})
        async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
            await client.set_many("b", OLD)
            await in_thread(server.kill)
            shutil.copytree(streams, kept)
            await in_thread(server.start)
            await answered(lambda: change(client))
            await becomes(client, OLD, NEW)
            provider.signal(signal.SIGSTOP)
            await in_thread(server.kill)
            shutil.rmtree(streams)
            kept.rename(streams)
            await in_thread(server.start)
            async with await nats.connect(server.url) as other:
                await write_later(other, "cut")
            provider.signal(signal.SIGCONT)
            await becomes(client, NEW, OLD | LATER)


async def test_a_stream_that_is_created_again_keeps_the_order_of_keys_or_is_refused(
    launch: Launch, nats_server: NatsServer, admin: Client
) -> None:
    maker, waiting = launch({"jetstream_bucket": "again"}), launch({"jetstream_bucket": "again"})
    config = (await api(admin, "STREAM.INFO.KV_again"))["config"]
    await api(admin, "STREAM.DELETE.KV_again")
    for provider in (maker, waiting):
        await in_thread(provider.wait_for, "caught up", 2)
    assert (await api(admin, "STREAM.INFO.KV_again"))["config"]["metadata"] == config["metadata"]
    assert await in_thread(maker.stop) == 0

    other = launch({"jetstream_bucket": "again", "jetstream_create": "false"})
    assert await in_thread(waiting.stop) == 0
    await api(admin, "STREAM.DELETE.KV_again")
    await in_thread(other.wait_for, "the KV bucket again does not exist, and jetstream_create is false")
    secret = {"wrpc-keyvalue-secret": "00" * 16}
    await api(admin, "STREAM.CREATE.KV_again", {**config, "metadata": secret})
    await in_thread(other.wait_for, "another secret of the order of keys now: restart this instance")
    health = json.loads((await admin.request(other.host_subject("health"), timeout=DEADLINE_S)).data)
    assert not health["healthy"]
    assert "restart this instance" in health["message"]
    async with KeyValueClient(nats_server.url, other.prefix, timeout_s=DEADLINE_S) as client:
        with pytest.raises(NoProviderError):
            await client.get("b", "k")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    servers = Cluster(tmp_path)
    yield servers
    servers.stop()


async def test_a_stream_grows_from_one_replica_to_three_under_load(cluster: Cluster, tmp_path: Path) -> None:
    """Afterwards, the server that had the stream alone is killed. The answers to all calls are linearizable."""
    history, ended = History(), asyncio.Event()

    async def call_on(url: str, seed: int) -> None:
        chance = Random(seed)
        async with KeyValueClient(url, first.prefix, timeout_s=ANSWER_TIMEOUT_S) as client:
            while not ended.is_set():
                await history.call([NatsClient(client)], 0, *chosen(chance, False))
                await asyncio.sleep(0.005)

    async def more_calls() -> None:
        """Wait until more calls are answered."""
        answered = len(history) - history.unknown

        async def are_answered() -> bool:
            await asyncio.sleep(0.05)
            return len(history) - history.unknown > answered + 400

        await until(are_answered, "calls are answered")

    with launching(",".join(cluster.urls), tmp_path) as launch:
        first = await in_thread(lambda: launch(GROWING))
        await in_thread(lambda: launch(GROWING, provider_key=first.key))
        one = await cluster.leader("KV_growing")
        urls = [url for place, url in enumerate(cluster.urls) if place != one]
        calling = asyncio.gather(*(call_on(urls[seed % 2], seed) for seed in range(6)))
        await more_calls()
        config = (await cluster.ask("STREAM.INFO.KV_growing"))["config"]
        grown = await cluster.ask("STREAM.UPDATE.KV_growing", {**config, "num_replicas": 3})
        assert "error" not in grown, grown

        async def is_current() -> bool:
            await asyncio.sleep(0.05)
            replicas = (await cluster.ask("STREAM.INFO.KV_growing"))["cluster"].get("replicas", [])
            return len(replicas) == 2 and all(replica["current"] for replica in replicas)

        await until(is_current, "all servers have the stream")
        await more_calls()
        await in_thread(cluster.servers[one].kill)
        await more_calls()
        ended.set()
        await calling
    assert history.failure() is None


async def test_calls_wait_while_the_server_stands_still(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    """Silence alone does not make an instance leave. The one that has really lost its consumer follows again at once."""
    server = new_nats_server(jetstream(tmp_path / "streams"))
    with launching(server.url, tmp_path, options=JETSTREAM | {"jetstream_timeout_ms": "20000"}) as launch:
        provider = launch({"jetstream_bucket": "still"})
        async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
            await client.set("b", "k", b"0")
            with server.silence():
                calls = asyncio.gather(client.set("b", "k", b"1"), client.get("b", "k"), client.increment("b", "n", 1))
                await asyncio.sleep(3.2)  # silence is what is tested
            assert (await calls)[2] == 1
            assert await client.get("b", "k") == b"1"
            assert provider.output.count("caught up") == 1, "it has left, and joined again"
            async with await nats.connect(server.url) as admin:
                (consumer,) = (await api(admin, "CONSUMER.LIST.KV_still"))["consumers"]
                await api(admin, f"CONSUMER.DELETE.KV_still.{consumer['name']}")
            await in_thread(provider.wait_for, "the consumer is gone")
            await in_thread(provider.wait_for, "caught up", 2)
            await until_it_serves(client)  # it joins the queue group after it has logged this
            assert await client.get("b", "k") == b"1"


async def test_many_atomic_batches_at_once(launch: Launch, nats_server: NatsServer) -> None:
    """A server that stores many batches sends neither deliveries nor heartbeats for seconds. No call is refused."""
    provider = launch({"jetstream_bucket": "busy", "jetstream_timeout_ms": "60000"})
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=2 * DEADLINE_S) as client:
        batches = [{f"{batch}-{key}": b"%064d" % batch for key in range(50)} for batch in range(200)]
        await asyncio.gather(*(client.set_many("b", batch) for batch in batches))
        assert await client.get_many("b", list(batches[-1])) == list(batches[-1].values())
    assert provider.output.count("caught up") == 1, "it has left, and joined again"
