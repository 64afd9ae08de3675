"""Components that watch, over a real NATS server: the changes they receive, in which order, and what happens to the others.

The component is a double that serves `watcher` as a host does for a component. Most tests use the provider as a host
launches it. Tests that must look inside, write from threads, or redefine links at a known moment use only its
watchers, in this process. tests/provider/watching/test_patterns.py tests the patterns, and test_delivery.py the
delivery to one component.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats.aio.client import Client

from keyvalue_engine import Observer, ObserverOf, Store
from keyvalue_provider.host.links import LinkDefinition, Links
from keyvalue_provider.watching.delivery import CALLS_MAX
from keyvalue_provider.watching.queue import WatchLimits
from keyvalue_provider.watching.watchers import Watchers
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.keyvalue.watcher import WATCHER, watcher_handlers
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subjects import results_subject
from keyvalue_transport.wrpc.handler import Caller
from tests.conftest import DEADLINE_S, HOST_CAPTURE, Launch, NatsServer, in_thread
from tests.integration.test_host import HEALTHY, health, tell
from tests.integration.test_metrics import ON, scraped
from tests.log_lines import LogLines

LATTICE = "default"
LIMITS = WatchLimits(queue_events=100, queue_bytes=10_000_000, timeout_s=60)
EVERYTHING = {"watch": "SET@*,DEL@*"}
Change = tuple[bytes, bytes, bytes | None]


class Component:
    """A component that receives changes. It answers while `answering` is set.

    :ivar told: bucket, key and value of each call
    :ivar together: the most calls in flight at one time
    :ivar delay_s: how long it takes to answer
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[Change] = []
        self.callers: set[Caller] = set()
        self.answering = asyncio.Event()
        self.answering.set()
        self.together = 0
        self.delay_s = 0.0
        self._in_flight: list[tuple[bytes, bytes]] = []
        self._changed = asyncio.Event()

    async def on_set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> None:
        await self._tell(caller, bucket, key, value)

    async def on_delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> None:
        await self._tell(caller, bucket, key, None)

    async def _tell(self, caller: Caller, bucket: bytes, key: bytes, value: bytes | None) -> None:
        assert (bucket, key) not in self._in_flight, "two calls for one key at a time"
        self._in_flight.append((bucket, key))
        self.together = max(self.together, len(self._in_flight))
        self.told.append((bucket, key, value))
        self.callers.add(caller)
        self._changed.set()
        await asyncio.sleep(self.delay_s)
        await self.answering.wait()
        self._in_flight.remove((bucket, key))

    async def until(self, reached: Callable[[list[Change]], bool], timeout_s: float = DEADLINE_S) -> list[Change]:
        """Return the received changes, once the condition holds for them."""
        async with asyncio.timeout(timeout_s):
            while not reached(self.told):
                self._changed.clear()
                await self._changed.wait()
        return self.told

    async def told_of(self, times: int) -> list[Change]:
        """Return the received changes, once there are this many."""
        return await self.until(lambda told: len(told) >= times)

    async def told_last(self, key: bytes) -> list[Change]:
        """Return the received changes, once one is of this key."""
        return await self.until(lambda told: any(known == key for _, known, _ in told))


@asynccontextmanager
async def serving(url: str, component: Component, path: str) -> AsyncIterator[None]:
    """Serve the component."""
    connection = await Connection.open(ConnectionOptions((url,), path=path))
    server = Server(connection, f"{LATTICE}.{component.name}")
    server.add(WATCHER, watcher_handlers(component, ParameterLimits()))
    await server.start()
    await connection.flush(DEADLINE_S)
    try:
        yield
    finally:
        component.answering.set()
        await server.stop(DEADLINE_S)
        await connection.close()


@pytest.fixture
async def component(nats_server: NatsServer, path: str, bucket: str) -> AsyncIterator[Component]:
    """Serve a component during the whole test, on its own connection."""
    component = Component(component_name(bucket))
    async with serving(nats_server.url, component, path):
        yield component


def component_name(bucket: str) -> str:
    """Return the name of a component that no other test uses."""
    return f"component-{abs(hash(bucket)):x}"


def watch_link(source: str, target: str, config: Mapping[str, str], **fields: object) -> dict[str, Any]:
    """Return a link that makes a watcher."""
    link: dict[str, Any] = json.loads(HOST_CAPTURE["watch_link_put"]["payload"])
    return link | {"source_id": source, "target": target, "source_config": dict(config)} | fields


def key_of(bucket: str) -> str:
    """Return a provider key that no other test uses."""
    return f"kv-watch-{abs(hash(bucket)):x}"


# The provider as a host launches it


async def test_every_change_is_delivered(
    launch: Launch, nats_server: NatsServer, component: Component, bucket: str, path: str
) -> None:
    key = key_of(bucket)
    expiring = {"source_id": "writer", "target": key, "target_config": {"ttl_ms": "1"}}
    links = [watch_link(key, component.name, EVERYTHING), expiring]
    provider = launch({"transport": path}, provider_key=key, link_definitions=links)
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        await client.set("b", "k", b"1")
        await client.set("b", "k", b"1")
        await client.delete("b", "k")
        await client.delete("b", "absent")
        assert await client.increment("b", "n", 41) == 41
        assert await client.increment("b", "n") == 42
        await client.set_many("b", {"x": b"X", "y": b""})
        await client.delete_many("b", ["y", "absent", "x"])
    async with KeyValueClient(nats_server.url, provider.prefix, source_id="writer", link_name="default") as client:
        await client.set("b", "short", b"lived")
    told = await component.told_of(11)
    of_key = {name: [value for _, key, value in told if key == name] for name in (b"k", b"n", b"x", b"y", b"short")}
    assert of_key == {
        b"k": [b"1", b"1", None],
        b"n": [b"41", b"42"],
        b"x": [b"X", None],
        b"y": [b"", None],
        b"short": [b"lived", None],
    }
    assert {bucket for bucket, _, _ in told} == {b"0"}
    assert component.callers == {Caller(provider.key, "default")}


async def test_an_eviction_is_told_as_a_delete(
    launch: Launch, nats_server: NatsServer, component: Component, bucket: str, path: str
) -> None:
    key = key_of(bucket)
    config = {"transport": path, "keys_max": "2", "eviction": "oldest", **ON}
    provider = launch(config, provider_key=key, link_definitions=[watch_link(key, component.name, EVERYTHING)])
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        for name in ("a", "b", "a", "c", "d"):
            await client.set("b", name, b"")
        assert await client.get_many("b", ["a", "b", "c", "d"]) == [None, None, b"", b""]
    told = await component.told_of(7)
    assert {name for _, name, value in told if value is None} == {b"a", b"b"}
    assert (await scraped(provider)).value("evicted_keys_total", limit="keys_max") == 2


async def test_the_bytes_are_those_of_the_interface(
    launch: Launch, nats_server: NatsServer, raw: Client, bucket: str
) -> None:
    key, name = key_of(bucket), component_name(bucket)
    subject = f"{LATTICE}.{name}.wrpc.0.0.1.wrpc:keyvalue/watcher@0.2.0-draft"
    sets = await raw.subscribe(f"{subject}.on-set")
    deletes = await raw.subscribe(f"{subject}.on-delete")
    inbox = raw.new_inbox()
    rest = await raw.subscribe(f"{inbox}.params")
    await raw.flush()
    link = watch_link(key, name, EVERYTHING, name="second")
    provider = launch(ON, provider_key=key, link_definitions=[link])
    headers = {"source-id": key, "target-id": name, "link-name": "second"}
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        await client.set("bucket", "key", b"value")
        await client.delete("bucket", "key")
    for calls, params in ((sets, b"\x010\x03key\x05value"), (deletes, b"\x010\x03key")):
        call = await calls.next_msg(DEADLINE_S)
        assert call.data == params
        assert call.headers == headers
        await raw.publish(call.reply, b"", reply=inbox)
        assert (await rest.next_msg(DEADLINE_S)).data == b""
        assert deletes.pending_msgs == 0, "one after another for each key"
        await raw.publish(results_subject(call.reply), b"")
    await raw.flush()
    async with asyncio.timeout(DEADLINE_S):
        while (scrape := await scraped(provider)).value("watch_queue_length"):
            pass
    assert scrape.value("watch_events_total", result="ok") == 2
    assert scrape.value("watch_events_total", result="failed") == 0


@pytest.mark.parametrize("path", ["direct"])
async def test_links_change_while_it_runs(
    launch: Launch, nats_server: NatsServer, raw: Client, component: Component, bucket: str
) -> None:
    provider = launch(provider_key=key_of(bucket))

    async def put(**config: str) -> None:
        await tell(raw, provider, "linkdefs.put", watch_link(provider.key, component.name, config))

    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        await client.set("b", "a", b"before")
        await put(watch="SET@a")
        assert await health(raw, provider) == HEALTHY
        await client.set("b", "a", b"1")
        await client.set("b", "b", b"1")
        await component.told_of(1)
        await put(watch="SET@b", watch_bucket="7")
        await health(raw, provider)
        await client.set("b", "a", b"2")
        await client.set("b", "b", b"2")
        await component.told_of(2)
        await put()
        link = f"link {provider.key} -> {component.name} (default): "
        note = f"serving; {link}it watches nothing: the option watch is not set"
        assert await health(raw, provider) == {"healthy": True, "message": note}
        await client.set("b", "b", b"3")
        await put(watch="SET@b,GET@b")
        ailment = f"{link}watch[1]: found 5 characters, allowed SET@ or DEL@, followed by a key"
        assert await health(raw, provider) == {"healthy": False, "message": ailment}
        await client.set("b", "b", b"4")
        await put(watch="SET@*")
        assert await health(raw, provider) == HEALTHY
        await client.set("b", "c", b"5")
        await component.told_of(3)
    assert component.told == [(b"0", b"a", b"1"), (b"7", b"b", b"2"), (b"0", b"c", b"5")]


@pytest.mark.parametrize("path", ["direct"])
async def test_a_stuck_component_delays_nobody_else(
    launch: Launch, nats_server: NatsServer, component: Component, bucket: str
) -> None:
    """Writes continue, the oldest events are dropped, and a stop does not wait for the calls: their timeout is longer than the test."""
    key = key_of(bucket)
    component.answering.clear()
    config = ON | {"watch_queue_events": "100", "watch_timeout_ms": "600_000", "stop_timeout_ms": "600_000"}
    provider = launch(config, provider_key=key, link_definitions=[watch_link(key, component.name, EVERYTHING)])
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await asyncio.gather(*(client.set("b", f"k{number}", b"v") for number in range(300)))
        assert await client.get("b", "k299") == b"v"
    scrape = await scraped(provider)
    assert scrape.value("watch_queue_length") == 100
    assert scrape.value("watch_dropped_total") == 200
    await component.told_of(CALLS_MAX)
    assert await in_thread(provider.stop) == 0
    assert "Traceback" not in provider.output


# Only the watchers


class ObservedStore(Store):
    """A store that records each observer it is given."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[ObserverOf | None] = []

    def observe(self, observer_of: ObserverOf | None) -> None:
        self.asked.append(observer_of)
        super().observe(observer_of)

    def observe_bucket(self, name: bytes) -> None:
        self.asked.append(self.asked[-1])
        super().observe_bucket(name)

    def observer(self, bucket: bytes) -> Observer | None:
        observer_of = self.asked[-1]
        return None if observer_of is None else observer_of(bucket)


class Home:
    """The watchers of a store, with their links, on their own connection."""

    KEY = "kv-home"

    def __init__(self, connection: Connection) -> None:
        self.store = ObservedStore()
        self.links = Links(self.KEY)
        self.connection = connection
        self.watchers = Watchers(connection, LATTICE, self.store, self.links, LIMITS)
        self.bucket = self.store.bucket(b"b")

    def put(self, target: str, watch: str | None = "SET@*,DEL@*", name: str = "default", **config: str) -> None:
        """Put a link, as a host does."""
        source_config = config if watch is None else {"watch": watch} | config
        link = watch_link(self.KEY, target, source_config, name=name)
        self.links.put(LinkDefinition.from_json(link))
        self.watchers.links_changed(self.links.take_changed(), self.links.take_deleted())

    def delete(self, target: str, name: str = "default") -> None:
        self.links.delete((self.KEY, target, name))
        self.watchers.links_changed(self.links.take_changed(), self.links.take_deleted())

    def write(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.bucket.set(key, b"v")

    async def settled(self) -> None:
        """Return once no event is queued or in flight."""
        async with asyncio.timeout(DEADLINE_S):
            while self.watchers.queue_length:
                await self.connection.flush(DEADLINE_S)

    @property
    def counted(self) -> tuple[int, int, int, int]:
        """Return the numbers of events that were delivered, failed and dropped, and that are queued."""
        counts = self.watchers.counts
        return counts.delivered, counts.failed, counts.dropped, self.watchers.queue_length


@asynccontextmanager
async def at_home(url: str, path: str) -> AsyncIterator[Home]:
    connection = await Connection.open(ConnectionOptions((url,), path=path))
    home = Home(connection)
    try:
        yield home
        await home.watchers.stop(0)
        assert home.watchers.queue_length == 0
    finally:
        await connection.close()


@pytest.fixture
async def home(nats_server: NatsServer, path: str) -> AsyncIterator[Home]:
    async with at_home(nats_server.url, path) as home:
        yield home


def keys(begin: int, end: int) -> list[bytes]:
    return [b"k%03d" % number for number in range(begin, end)]


async def test_a_changed_link_keeps_its_queued_events(home: Home, component: Component) -> None:
    component.answering.clear()
    home.put(component.name)
    home.write(keys(0, 20))
    await component.told_of(CALLS_MAX)
    home.put(component.name, "SET@k02*", watch_bucket="7")
    home.write(keys(15, 25))
    component.answering.set()
    told = await component.told_of(25)
    await home.settled()
    assert home.counted == (25, 0, 0, 0)
    assert [key for _, key, _ in told[:CALLS_MAX]] == keys(0, CALLS_MAX)
    assert {bucket for bucket, _, _ in told[:CALLS_MAX]} == {b"0"}
    assert told[CALLS_MAX:] == [(b"7", key, b"v") for key in keys(CALLS_MAX, 25)]


async def test_a_link_that_is_deleted_and_put_together_drops_them_too(home: Home, component: Component) -> None:
    component.answering.clear()
    home.put(component.name)
    home.write(keys(0, 50))
    await component.told_of(CALLS_MAX)
    home.links.delete((home.KEY, component.name, "default"))
    home.put(component.name)
    assert home.counted == (0, 0, 50 - CALLS_MAX, CALLS_MAX)
    component.answering.set()
    home.write([b"again"])
    await component.told_last(b"again")
    assert [key for _, key, _ in component.told] == [*keys(0, CALLS_MAX), b"again"]


async def test_a_deleted_link_drops_its_queued_events(home: Home, component: Component) -> None:
    component.answering.clear()
    home.put(component.name)
    home.write(keys(0, 50))
    await component.told_of(CALLS_MAX)
    home.delete(component.name)
    assert home.counted == (0, 0, 50 - CALLS_MAX, CALLS_MAX)
    home.write(keys(50, 60))
    component.answering.set()
    await home.settled()
    assert home.counted == (CALLS_MAX, 0, 50 - CALLS_MAX, 0)
    assert home.store.observer(b"b") is None
    home.put(component.name)
    home.write([b"again"])
    await component.told_last(b"again")
    await home.settled()
    assert home.counted == (CALLS_MAX + 1, 0, 50 - CALLS_MAX, 0), "totals never go back"
    assert [key for _, key, _ in component.told] == [*keys(0, CALLS_MAX), b"again"]


async def test_other_links_do_not_disturb_a_watcher(home: Home, component: Component) -> None:
    component.answering.clear()
    home.put(component.name)
    home.write(keys(0, 30))
    await component.told_of(CALLS_MAX)
    asked = len(home.store.asked)
    home.watchers.links_changed(home.links.take_changed())
    assert len(home.store.asked) == asked, "nothing has changed"
    home.put("another", "SET@never")
    home.delete("another")
    home.put("malformed", "SET@")
    assert home.counted == (0, 0, 0, 30)
    component.answering.set()
    assert [key for _, key, _ in await component.told_of(30)] == keys(0, 30)
    assert len(home.links.unusable) == 1


@pytest.mark.parametrize("path", ["direct"])
async def test_without_watchers_no_observer_is_set(home: Home) -> None:
    """Links of others, links without a watcher interface, and unusable links make no watcher."""
    for link in (
        watch_link("component", home.KEY, EVERYTHING),
        watch_link(home.KEY, "c", EVERYTHING, interfaces=["store"]),
    ):
        home.links.put(LinkDefinition.from_json(link))
    home.watchers.links_changed(home.links.take_changed())
    assert len(home.store.asked) == 1, "observed from the start"
    home.put("component", None)
    assert len(home.links.remarks) == 1
    refused = {
        ("component", "pattern", "GET@k"): "watch[0]: found 5 characters, allowed SET@ or DEL@, followed by a key",
        ("a component", "default", "SET@*"): "target: found 'default.a component', allowed printable tokens",
        ("a.*", "default", "SET@*"): "target: found 'default.a.*', allowed printable tokens",
        ("component", "a\r\nname: b", "SET@*"): "name: found 'a\\r\\nname: b', allowed printable characters",
        ("component", "\ud800", "SET@*"): "name: found '\\ud800', allowed printable characters",
    }
    for target, name, watch in refused:
        home.put(target, watch, name)
    for line, ((target, name, _), reason) in zip(home.links.unusable, refused.items(), strict=True):
        assert line.startswith(f"link {home.KEY} -> {target} ({name}): {reason}")
    assert len(home.store.asked) == 1


async def test_a_value_of_many_pieces(home: Home, component: Component) -> None:
    large = b"0123456789abcdef" * 200_000
    home.put(component.name)
    home.bucket.set(b"large", large)
    assert await component.told_of(1) == [(b"0", b"large", large)]


async def test_a_component_that_comes_back(home: Home, nats_server: NatsServer, path: str, bucket: str) -> None:
    component = Component(component_name(bucket))
    home.put(component.name)
    for number in range(100):
        home.bucket.set(b"k", b"%d" % number)
    async with asyncio.timeout(DEADLINE_S):
        while home.watchers.counts.failed == 0:
            await home.connection.flush(DEADLINE_S)
    async with serving(nats_server.url, component, path):
        told = await component.until(lambda told: told[-1:] == [(b"0", b"k", b"99")])
        await home.settled()
    numbers = [int(value or b"") for _, _, value in told]
    assert numbers == list(range(numbers[0], 100)), "in order; only the events that were tried are lost"
    assert home.counted == (len(numbers), numbers[0], 0, 0)


async def test_events_wait_for_nats(
    new_nats_server: Callable[[str], NatsServer], path: str, log_lines: LogLines
) -> None:
    server = new_nats_server("")
    component = Component("component")
    async with at_home(server.url, path) as home:
        home.put(component.name)
        async with serving(server.url, component, path):
            home.write([b"before"])
            await component.told_of(1)
            await home.settled()
            await in_thread(server.kill)
            await log_lines.wait_for("the connection is lost", 2)  # one of the component, one of the watchers
            home.write(keys(0, 30))
            assert home.counted == (1, 0, 0, 30)
            await in_thread(server.start)
            told = await component.until(lambda told: told[-1][1] == b"k029")
        assert [key for _, key, _ in told if key in keys(CALLS_MAX, 30)] == keys(CALLS_MAX, 30)
        assert home.counted[2] == 0


async def test_a_stop_delivers_the_events_that_it_can(home: Home, component: Component) -> None:
    home.put(component.name)
    home.put("absent", name="absent")
    home.write(keys(0, 50))
    await home.watchers.stop(DEADLINE_S)
    delivered, failed, dropped, queued = home.counted
    assert (delivered, failed + dropped, queued) == (50, 50, 0)
    assert CALLS_MAX <= failed < 50, "an absent component is tried, but not waited for"
    assert [key for _, key, _ in component.told] == keys(0, 50)
    home.write([b"after"])
    home.put(component.name, "SET@*")
    home.write([b"after"])
    assert home.store.asked[-1] is None
    assert home.watchers.queue_length == 0


async def test_a_stop_leaves_nothing_to_do(home: Home, component: Component, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = asyncio.all_tasks()
    component.answering.clear()
    home.put(component.name)
    home.put("another")
    home.write(keys(0, 50))
    await component.told_of(CALLS_MAX)
    home.delete("another")
    await home.watchers.stop(0.05)
    assert home.counted[3] == 0
    assert home.counted[2] >= 50 - CALLS_MAX
    assert sum(home.counted) == 100
    names = {task.get_coro().__qualname__ for task in asyncio.all_tasks() - before}  # type: ignore[union-attr] # coroutines
    assert not {name for name in names if "Watch" in name or "Invoker" in name}
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.WARNING] == []
