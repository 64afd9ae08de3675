"""Components that watch, with the replicated store: real NATS servers with JetStream, and instances that are killed.

tests/provider/watching/test_durable_delivery.py tests the delivery to one component against a model of the consumer.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from nats.aio.client import Client

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import TransportError
from tests.conftest import DEADLINE_S, PATHS, Launch, NatsServer, Provider, in_thread, launching, until
from tests.integration import test_replicated, test_watch
from tests.integration.test_host import HEALTHY, health, tell
from tests.integration.test_metrics import ON, scraped
from tests.integration.test_moving import api
from tests.integration.test_replicated import JETSTREAM
from tests.integration.test_watch import (
    EVERYTHING,
    LATTICE,
    Change,
    Component,
    component_name,
    key_of,
    serving,
    watch_link,
)

admin, nats_server = test_replicated.admin, test_replicated.nats_server
component = test_watch.component
BOTH = pytest.mark.parametrize("keys", ["encoded", "plain"])


@pytest.fixture
def keys() -> str:
    """Return the form of names of the providers."""
    return "encoded"


@pytest.fixture
def launch(nats_server: NatsServer, tmp_path: Path, keys: str) -> Iterator[Launch]:
    """Return a function that launches providers. With plain names, a link creates the KV bucket with the provider's name."""
    with launching(nats_server.url, tmp_path, options=JETSTREAM | {"keys": keys}) as launch:

        def launch_replicated(config: Mapping[str, str] | None = None, **fields: Any) -> Provider:
            if keys == "plain":
                key = fields["provider_key"]
                naming = {"bucket": key, "enable_bucket_auto_create": "true"}
                link = {"source_id": "naming", "target": key, "target_config": naming}
                fields["link_definitions"] = [*fields.get("link_definitions", ()), link]
            return launch(config, **fields)

        yield launch_replicated


@pytest.fixture(scope="module")
def path() -> str:
    """Use the direct path."""
    return "direct"


async def consumers(admin: Client, bucket: str) -> list[dict[str, Any]]:
    """Return the durable consumers of a KV bucket."""
    answer = json.loads((await admin.request(f"$JS.API.CONSUMER.LIST.KV_{bucket}", timeout=DEADLINE_S)).data)
    return [consumer for consumer in answer["consumers"] or () if "durable_name" in consumer["config"]]


def of_keys(told: list[Change]) -> dict[bytes, list[bytes | None]]:
    """Return the values that were told of each key."""
    found: dict[bytes, list[bytes | None]] = {}
    for _, key, value in told:
        found.setdefault(key, []).append(value)
    return found


@BOTH
@pytest.mark.parametrize("path", PATHS)
async def test_every_change_is_told_once_by_one_of_the_instances(
    launch: Launch, nats_server: NatsServer, component: Component, admin: Client, bucket: str, path: str
) -> None:
    key = key_of(bucket)
    expiring = {"source_id": "writer", "target": key, "target_config": {"ttl_ms": "1000"}}
    links = [watch_link(key, component.name, EVERYTHING), expiring]
    first, second = (launch(ON | {"transport": path}, provider_key=key, link_definitions=links) for _ in range(2))
    async with KeyValueClient(nats_server.url, first.prefix, timeout_s=DEADLINE_S) as client:
        await client.set(key, "k", b"1")
        await client.set(key, "k", b"1")
        assert await client.increment(key, "n", 41) == 41
        assert await client.increment(key, "n") == 42
        await client.set_many(key, {"x": b"X", "y": b""})
        await component.told_of(6)  # a delete removes earlier changes of its key from the stream
        await client.delete(key, "k")
        await client.delete_many(key, ["y", "x"])
    async with KeyValueClient(nats_server.url, first.prefix, source_id="writer", link_name="default") as client:
        await client.set(key, "short", b"lived")
    told = await component.told_of(11)
    assert of_keys(told) == {
        b"k": [b"1", b"1", None],
        b"n": [b"41", b"42"],
        b"x": [b"X", None],
        b"y": [b"", None],
        b"short": [b"lived", None],
    }
    assert {bucket for bucket, _, _ in told} == {b"0"}
    await asyncio.sleep(1.5)  # the server's own marker of the expired key, if there is one
    assert len(component.told) == 11
    numbers = [(await scraped(each)).value("watch_events_total", result="ok") for each in (first, second)]
    assert sorted(numbers) == [0, 11]
    assert len(await consumers(admin, first.key)) == 1


@BOTH
async def test_links_change_while_instances_run(
    launch: Launch, nats_server: NatsServer, admin: Client, component: Component, bucket: str
) -> None:
    """A change of a link is in force for the calls after it. The consumer of a deleted link is deleted."""
    key = key_of(bucket)
    provider, other = launch(provider_key=key), launch(provider_key=key)

    async def settle(line: str, times: int = 1) -> None:
        """Wait until both instances have handled the host's message, whose line each of them logs."""
        for each in (provider, other):
            await in_thread(each.wait_for, line, times)
        for _ in range(10):
            assert await health(admin, provider) == HEALTHY

    async def put(number: int, **config: str) -> None:
        await tell(admin, provider, "linkdefs.put", watch_link(provider.key, component.name, config))
        await settle("link put: ", number)

    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        await client.set(key, "a", b"before")
        await put(1, watch="SET@a")
        await client.set(key, "a", b"1")
        await client.set(key, "b", b"1")
        await component.told_of(1)
        await put(2, watch="SET@b", watch_bucket="7")
        await client.set(key, "a", b"2")
        await client.set(key, "b", b"2")
        await component.told_of(2)
        await tell(admin, provider, "linkdefs.del", watch_link(provider.key, component.name, {}))
        await settle("link deleted: ")
        await until(lambda: no_consumer(admin, provider), "the consumer is deleted")
        await client.set(key, "b", b"3")
        await put(3, watch="SET@*")
        await client.set(key, "c", b"4")
        await component.told_of(3)
    assert component.told == [(b"0", b"a", b"1"), (b"7", b"b", b"2"), (b"0", b"c", b"4")]
    (consumer,) = await consumers(admin, provider.key)
    assert consumer["config"]["description"].startswith(f"watcher {component.name} (default)")
    assert consumer["config"]["inactive_threshold"] == 24 * 3600 * 10**9


async def test_a_link_that_is_deleted_and_put_together_is_a_new_one(
    launch: Launch, nats_server: NatsServer, admin: Client, component: Component, bucket: str
) -> None:
    """Another instance handles the deletion alone, and deletes the consumer that both use."""
    key = key_of(bucket)
    link = watch_link(key, component.name, EVERYTHING)
    provider = launch(provider_key=key, link_definitions=[link])

    async def is_there() -> bool:
        return not await no_consumer(admin, provider)

    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        for number in range(5):
            await client.set(key, f"k{number}", b"old")
        await component.told_of(5)
        provider.signal(signal.SIGSTOP)
        for end in ("del", "put"):
            await tell(admin, provider, f"linkdefs.{end}", link)
        (consumer,) = await consumers(admin, key)
        await admin.request(f"$JS.API.CONSUMER.DELETE.KV_{key}.{consumer['name']}", timeout=DEADLINE_S)
        provider.signal(signal.SIGCONT)
        await until(is_there, "the consumer is created again")
        await client.set(key, "k", b"new")
        await component.until(lambda told: (b"0", b"k", b"new") in told)
    assert len(component.told) == 6, "the old changes are not told again"


async def no_consumer(admin: Client, provider: Provider) -> bool:
    return not await consumers(admin, provider.key)


@BOTH
async def test_a_missing_component_is_told_the_newest_changes_by_a_later_instance(
    launch: Launch, nats_server: NatsServer, path: str, bucket: str
) -> None:
    """Nobody listens, and no instance survives: one stops, the other is killed. A key expires meanwhile."""
    key = key_of(bucket)
    component = Component(component_name(bucket))
    expiring = {"source_id": "w", "target": key, "target_config": {"ttl_ms": "400"}}
    links = [watch_link(key, component.name, EVERYTHING), expiring]
    first, second = (launch(provider_key=key, link_definitions=links) for _ in range(2))
    async with KeyValueClient(nats_server.url, first.prefix, timeout_s=DEADLINE_S) as client:
        async with KeyValueClient(nats_server.url, first.prefix, source_id="w", link_name="default") as writer:
            await writer.set(key, "short", b"lived")
        for number in range(50):
            await client.set(key, f"k{number % 5}", b"%d" % number)
        await client.delete(key, "k4")
        await asyncio.sleep(1)  # both find that the key has expired, and publish its delete
        assert await client.get(key, "short") is None
    assert await in_thread(first.stop) == 0
    await in_thread(second.kill)
    launch(provider_key=key, link_definitions=links)
    async with serving(nats_server.url, component, path):
        last = {b"k%d" % number: b"%d" % (45 + number) for number in range(4)} | {b"k4": None, b"short": None}
        await component.until(lambda told: last_of(told) == last)


async def test_a_stop_hands_over_at_once_and_the_server_may_be_killed(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path, path: str, bucket: str
) -> None:
    server = new_nats_server(test_replicated.jetstream(tmp_path / "streams"))
    component = Component("component")
    links = [watch_link("kv", component.name, EVERYTHING)]
    with launching(server.url, tmp_path) as launch:
        running = [launch(JETSTREAM | ON, provider_key="kv", link_definitions=links) for _ in range(2)]
        async with (
            serving(server.url, component, path),
            KeyValueClient(server.url, running[0].prefix, timeout_s=DEADLINE_S) as client,
        ):
            await client.set("b", "k", b"1")
            await component.told_of(1)
            numbers = [(await scraped(each)).value("watch_events_total", result="ok") for each in running]
            pinned = running.pop(numbers.index(1))
            assert await in_thread(pinned.stop) == 0
            began_s = monotonic()
            await client.set("b", "k", b"2")
            await component.told_of(2)
            assert monotonic() - began_s < 3, "it does not wait until the pin of the other one ends"
            await in_thread(server.kill)
            await in_thread(server.start)
            await test_replicated.answered(lambda: client.set("b", "k", b"3"))
            await component.until(lambda told: told[-1] == (b"0", b"k", b"3"))


@BOTH
async def test_the_permissions_in_the_documents_suffice(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path, path: str, keys: str
) -> None:
    """The provider may do only what docs/replication.md lists."""
    text = (Path(__file__).parents[2] / "docs" / "replication.md").read_text().partition("### Permissions\n")[2]
    of_all, of_watchers = text.partition("publish: [")[2], text.partition("With watching links, ")[2]
    listed = re.findall('"([^"]+)"', of_all.partition("]")[0]) + re.findall(
        "`([^`]+)`", of_watchers.partition("\n- ")[0]
    )
    publish = json.dumps([each.replace("visits", "kv").replace("default.*", f"{LATTICE}.*") for each in listed])
    subscribe = json.dumps([f"{LATTICE}.kv.wrpc.>", f"wasmbus.rpc.{LATTICE}.>", "_INBOX.>"])
    users = f"{{ user: p, password: p, permissions: {{ publish: {publish}, subscribe: {subscribe} }} }}"
    config = f"authorization {{ users: [ {{ user: all, password: all }}, {users} ] }}\n"
    server = new_nats_server(test_replicated.jetstream(tmp_path / "streams") + config)
    url, component = server.url.replace("//", "//all:all@"), Component("component")
    with launching(server.url.replace("//", "//p:p@"), tmp_path) as launch:
        options = JETSTREAM | {"keys": keys, "enable_bucket_auto_create": "true"}
        link = watch_link("kv", "component", EVERYTHING | {"bucket": "kv"})
        provider = launch(options, provider_key="kv", link_definitions=[link])
        async with (
            serving(url, component, path),
            KeyValueClient(url, provider.prefix, timeout_s=DEADLINE_S) as client,
        ):
            await client.set("kv", "k", b"v")
            await component.told_of(1)
        assert await in_thread(provider.stop) == 0
        denied = [line for line in provider.output.splitlines() if "ermission" in line]
        assert not [line for line in denied if "wasmbus.ctl" not in line]


async def test_a_stuck_component_is_told_everything_later_within_the_limits(
    launch: Launch, nats_server: NatsServer, component: Component, bucket: str
) -> None:
    """It is stuck for longer than the consumer waits for an acknowledgement, and the values fill the limit.

    A value that is larger than the limit is dropped and counted.
    """
    key = key_of(bucket)
    config = ON | {"watch_queue_bytes": "100_000", "watch_timeout_ms": "60_000"}
    component.answering.clear()
    provider = launch(config, provider_key=key, link_definitions=[watch_link(key, component.name, EVERYTHING)])
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        for number in range(3):
            await client.set(key, "small", b"%d" % number)
        for number in range(10):
            await client.set(key, f"k{number}", bytes(40_000))
        await component.told_of(3)
        await asyncio.sleep(7)
        assert await held([provider], 5) == [5]
        component.answering.set()
        told = of_keys(await component.told_of(13))
        assert len(told) == 11
        assert told[b"small"] == [b"0", b"1", b"2"], "in order, and none is left out"
        await client.set(key, "large", bytes(200_000))
        await client.set(key, "last", b"v")
        await component.told_last(b"last")
    assert b"large" not in of_keys(component.told)
    assert (await scraped(provider)).value("watch_dropped_total") == 1


@BOTH
async def test_an_instance_that_stood_still_tells_nothing_old(
    launch: Launch, nats_server: NatsServer, component: Component, bucket: str
) -> None:
    """It holds changes that wait for a call. Another instance tells newer changes while this one is stopped."""
    key = key_of(bucket)
    links = [watch_link(key, component.name, EVERYTHING)]
    component.answering.clear()
    async with (
        instances(launch, key, links, 2) as running,
        KeyValueClient(nats_server.url, f"{LATTICE}.{key}", timeout_s=2) as client,
    ):
        for number in range(1, 4):
            await client.set(key, "k", b"%d" % number)
        lengths = await held(running, 3)
        assert sorted(lengths) == [0, 3]
        stopped = running[lengths.index(3)]
        stopped.signal(signal.SIGSTOP)
        component.answering.set()
        await test_replicated.answered(lambda: set_soon(client, key, b"4"))
        await component.until(lambda told: told[-1:] == [(b"0", b"k", b"4")])
        stopped.signal(signal.SIGCONT)
        await asyncio.sleep(2)
        assert component.told[-1] == (b"0", b"k", b"4")
        await client.set(key, "k", b"5")
        await component.until(lambda told: told[-1] == (b"0", b"k", b"5"))


async def held(running: list[Provider], least: int = 1) -> list[float]:
    """Return the number of changes that each instance holds, once they hold at least `least` together."""
    lengths: list[float] = []

    async def hold_enough() -> bool:
        lengths[:] = [(await scraped(each)).value("watch_queue_length") for each in running]
        return sum(lengths) >= least

    await until(hold_enough, f"instances hold {least} changes")
    return lengths


async def set_soon(client: KeyValueClient, bucket: str, value: bytes) -> None:
    """Set a key. The call may reach an instance that is stopped: then it is repeated."""
    try:
        await client.set(bucket, "k", value)
    except TransportError as error:
        raise OtherError(str(error)) from None


@asynccontextmanager
async def instances(launch: Launch, key: str, links: list[Any], number: int) -> AsyncIterator[list[Provider]]:
    """Launch instances of one provider. Continue those that stand still at the end."""
    running = [launch(ON, provider_key=key, link_definitions=links) for _ in range(number)]
    try:
        yield running
    finally:
        for each in running:
            if each.running:
                each.signal(signal.SIGCONT)


class Writer:
    """Writes increasing numbers, and remembers the value that each key has at the end."""

    def __init__(self, bucket: str, client: KeyValueClient, expiring: KeyValueClient, chance: random.Random) -> None:
        self.state: dict[bytes, bytes | None] = {}
        self._bucket = bucket
        self._client = client
        self._expiring = expiring
        self._chance = chance
        self._number = 0

    async def write_all(self) -> None:
        """Write each of twelve keys several times."""
        await asyncio.gather(*(self._write_one(b"k%d" % number) for number in range(12)))

    async def _write_one(self, key: bytes) -> None:
        for _ in range(self._chance.randint(3, 10)):
            self._number += 1
            value = b"%d" % self._number
            kind = self._chance.choice(("set", "set", "set", "delete", "expire"))
            if kind == "set":
                await self._client.set(self._bucket, key, value)
            elif kind == "delete":
                await self._client.delete(self._bucket, key)
            else:
                await self._expiring.set(self._bucket, key, value)
            self.state[key] = value if kind == "set" else None


@BOTH
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [1])
async def test_the_newest_change_of_each_key_is_told_whatever_fails(
    launch: Launch, nats_server: NatsServer, admin: Client, path: str, bucket: str, seed: int
) -> None:
    """After a burst of writes, kill or stop the instance that tells them, or take the component away.

    The component stops answering during the burst, so that an instance holds changes when it is killed.
    """
    key, chance = key_of(bucket), random.Random(seed)
    component = Component(component_name(bucket))
    component.delay_s = 0.15
    links = [
        watch_link(key, component.name, EVERYTHING),
        {"source_id": "w", "target": key, "target_config": {"ttl_ms": "150"}},
    ]
    url, prefix = nats_server.url, f"{LATTICE}.{key}"
    async with instances(launch, key, links, 2) as running, AsyncExitStack() as stack:
        client = await stack.enter_async_context(KeyValueClient(url, prefix, timeout_s=DEADLINE_S))
        expiring = await stack.enter_async_context(
            KeyValueClient(url, prefix, source_id="w", link_name="default", timeout_s=DEADLINE_S)
        )
        writer = Writer(key, client, expiring, chance)
        for what in ["kill", "stop", "kill", "absent", "kill all"]:
            async with AsyncExitStack() as component_stack:
                await component_stack.enter_async_context(serving(url, component, path))
                writing = asyncio.create_task(writer.write_all())
                await component.told_of(len(component.told) + 3)
                component.answering.clear()
                await writing
                if what == "kill all":  # no instance would notice that keys expire
                    await until(lambda: none_expires(admin, key), "deletes of the expired keys are stored")
                if what == "absent":
                    await component_stack.aclose()
                    await asyncio.sleep(1)
                else:
                    await fail(what, running, component)
                    for place, each in enumerate(running):
                        if not each.running:
                            running[place] = await in_thread(
                                lambda: launch(ON, provider_key=key, link_definitions=links)
                            )
            async with serving(url, component, path):
                await told_all(component, writer.state, what)
                for each in running:
                    each.signal(signal.SIGCONT)
                await asyncio.sleep(1)
                assert last_of(component.told) == writer.state, "nothing old is told afterwards"


async def told_all(component: Component, state: dict[bytes, bytes | None], what: str) -> None:
    """Wait until the component was told the last value of each key. After a kill, changes wait for JetStream's timers."""
    try:
        await component.until(lambda told: last_of(told) == state, 2 * DEADLINE_S)
    except TimeoutError:
        told = last_of(component.told)
        different = {key: (value, told.get(key)) for key, value in state.items() if told.get(key) != value}
        raise AssertionError(f"after {what}, these were written and told: {different}") from None


async def fail(what: str, running: list[Provider], component: Component) -> None:
    """Kill or stop the instance that tells the component, or kill all. Then the component answers again."""
    lengths = await held(running)
    for each, length in zip(running, lengths, strict=True):
        if what == "stop" and length == max(lengths):
            each.signal(signal.SIGSTOP)
        elif what == "kill all" or length == max(lengths):
            await in_thread(each.kill)
    component.answering.set()


async def none_expires(admin: Client, bucket: str) -> bool:
    """Return True if no key's last message in the stream has a deadline."""
    info = await api(admin, f"STREAM.INFO.KV_{bucket}", {"subjects_filter": f"$KV.{bucket}.>"})
    for subject in info["state"].get("subjects", ()):
        found = await api(admin, f"STREAM.MSG.GET.KV_{bucket}", {"last_by_subj": subject})
        if b"Kv-Ttl-Ms" in b64decode(found.get("message", {}).get("hdrs", "")):
            return False
    return True


def last_of(told: list[Change]) -> dict[bytes, bytes | None]:
    """Return the value that was told last of each key."""
    return {key: values[-1] for key, values in of_keys(told).items()}
