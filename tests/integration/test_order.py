"""Messages on a connection take effect in their order: calls among changes by the host, on both of the transport's paths.

A scripted NATS server sends one stream, cut anywhere, to a real connection with a real server, policy and session.
Each call must be carried out under the changes that the host sent before it. Every call has its own key, so that only
changes decide its outcome: the plain path keeps no order among calls of different functions.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_engine import Store
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.health import Health
from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.host.links import Links
from keyvalue_provider.host.session import HostSession
from keyvalue_provider.keyvalue.handles import BucketStore
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.atomics import ATOMICS, atomics_handlers, encode_increment, encode_increment_result
from keyvalue_transport.keyvalue.batch import (
    BATCH,
    batch_handlers,
    encode_bucket_keys,
    encode_get_many_result,
    encode_set_many,
)
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import STORE, encode_get_result, encode_list_keys, encode_set, store_handlers
from keyvalue_transport.nats import plain
from keyvalue_transport.nats.connection import Connection, ConnectionOptions, Message
from keyvalue_transport.nats.direct import delayed_output
from keyvalue_transport.nats.server import Server
from keyvalue_transport.nats.subjects import invocation_subject, params_subject
from keyvalue_transport.wrpc.invocation import InvocationLimits
from tests.conftest import DEADLINE_S, options_of
from tests.provider.keyvalue.waiting_store import LATER, WaitingStore

PREFIX, PROVIDER = "default.order", "kv-order"
DENIED = b"\x01\x01"
UNIT = b"\x00"
#: A key that each bucket has. Its value is the bucket's prefix.
WHICH = b"which"
BUCKET = b"b"
PREFIXES = ("", "one-", "two-")
INSTANCES = {
    **dict.fromkeys(("get", "exists", "list-keys", "set", "delete"), STORE),
    "increment": ATOMICS,
    **dict.fromkeys(("get-many", "set-many", "delete-many"), BATCH),
}
READS = ("get", "exists", "list-keys", "get-many")


@pytest.fixture(autouse=True, scope="module")
def _pages_in_order() -> Iterator[None]:
    """Make all pages of a turn at once. On a slow machine, some would be made later, under the policy of then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delayed_output, "SLICE_S", math.inf)
        yield


class Call(NamedTuple):
    """A call of a function.

    Unless `cut` is None, only that many bytes of its parameters come with it, and `Rest` has the others.
    """

    function: str
    source_id: str
    cut: int | None


class Rest(NamedTuple):
    """The rest of the parameters of the call of this number."""

    call: int


class LinkPut(NamedTuple):
    source_id: str
    config: Mapping[str, str]


class LinkDelete(NamedTuple):
    source_id: str


class Config(NamedTuple):
    """The provider's whole configuration."""

    config: Mapping[str, str]


Change = LinkPut | LinkDelete | Config
Event = Call | Rest | Change


# The expected outcome.


@dataclass
class Model:
    """The host's changes so far."""

    config: Mapping[str, str] = field(default_factory=dict)
    links: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def take(self, change: Change) -> None:
        match change:
            case LinkPut(source_id, config):
                self.links[source_id] = config
            case LinkDelete(source_id):
                self.links.pop(source_id, None)
            case Config(config):
                self.config = config

    def bucket_of(self, call: Call) -> bytes | None:
        """Return the name of the store's bucket that a call reaches, or None if it is denied."""
        link = self.links.get(call.source_id)
        if link is None and "require_link" in self.config:
            return None
        options = {**self.config, **(link or {})}
        access = options.get("access", "read-write")
        if access not in ("read-write", "read-only") or (access == "read-only" and call.function not in READS):
            return None
        return options.get("bucket_prefix", "").encode() + BUCKET


def result_of(call: Call, bucket: bytes | None) -> bytes:
    if bucket is None:
        return DENIED
    value = bucket.removesuffix(BUCKET)
    match call.function:
        case "get":
            return encode_get_result(value)
        case "get-many":
            return encode_get_many_result([WHICH], [value], 1000)
        case "exists":
            return b"\x00\x01"
        case "list-keys":
            return b"\x00"  # and keys, which other calls write
        case "increment":
            return encode_increment_result(1)
        case _:
            return UNIT


def expected(events: Sequence[Event]) -> tuple[list[bytes], set[tuple[bytes, bytes]]]:
    """Return the result of each call, and the keys written by bucket, if the events are carried out one by one."""
    model = Model()
    calls = [event for event in events if isinstance(event, Call)]
    results = [b""] * len(calls)
    written: set[tuple[bytes, bytes]] = set()
    numbers = itertools.count()
    for event in events:
        match event:
            case Call(cut=cut):
                number = next(numbers)
                if cut is not None:
                    continue
            case Rest(number):
                pass
            case _:
                model.take(event)
                continue
        bucket = model.bucket_of(calls[number])
        results[number] = result_of(calls[number], bucket)
        if bucket is not None and calls[number].function in ("set", "set-many", "increment"):
            written.add((bucket, key_of(number)))
    return results, written


def key_of(number: int) -> bytes:
    return b"key-%d" % number


def params_of(function: str, number: int) -> bytes:
    match function:
        case "get" | "exists":
            return encode_bucket_key(BUCKET, WHICH)
        case "delete":
            return encode_bucket_key(BUCKET, key_of(number))
        case "set":
            return encode_set(BUCKET, key_of(number), b"value")
        case "list-keys":
            return encode_list_keys(BUCKET, None)
        case "increment":
            return encode_increment(BUCKET, key_of(number), 1)
        case "get-many":
            return encode_bucket_keys(BUCKET, [WHICH])
        case "set-many":
            return encode_set_many(BUCKET, [(key_of(number), b"value")])
        case _:
            return encode_bucket_keys(BUCKET, [key_of(number)])


# A scripted NATS server.


class ScriptedServer:
    """A NATS server for one client. It records the client's subscriptions and publications by subject."""

    def __init__(self) -> None:
        self.subscriptions: dict[str, int] = {}
        self.published: dict[str, list[tuple[bytes, str]]] = {}
        self._changed = asyncio.Condition()
        self._writer: asyncio.StreamWriter | None = None

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        """Return the server's URL."""
        async with await asyncio.start_server(self._take, "127.0.0.1", 0) as listener:
            yield f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        writer.write(
            b'INFO {"server_id": "scripted", "version": "2.10.0", "headers": true, "max_payload": 1048576}\r\n'
        )
        while line := await reader.readline():
            verb, *words = line.decode().split()
            match verb:
                case "PING":
                    writer.write(b"PONG\r\n")
                case "SUB":
                    self.subscriptions[words[0]] = int(words[-1])
                case "PUB":
                    payload = await reader.readexactly(int(words[-1]) + 2)
                    message = payload[:-2], words[1] if len(words) == 3 else ""
                    self.published.setdefault(words[0], []).append(message)
                    async with self._changed:
                        self._changed.notify_all()
        writer.close()

    def say(self, piece: bytes) -> None:
        assert self._writer is not None
        self._writer.write(piece)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds for the publications."""
        async with asyncio.timeout(DEADLINE_S), self._changed:
            await self._changed.wait_for(condition)

    def frame(self, subject: str, payload: bytes, reply: str = "", source_id: str = "") -> bytes:
        """Return a message to a subscription as a server sends it."""
        subscription = self.subscriptions.get(subject) or self.subscriptions[_wildcard(subject)]
        to = f"{subject} {subscription} {reply}".strip()
        if not source_id:
            return f"MSG {to} {len(payload)}\r\n".encode() + payload + b"\r\n"
        block = f"NATS/1.0\r\nsource-id: {source_id}\r\nlink-name: default\r\n\r\n".encode()
        return f"HMSG {to} {len(block)} {len(block) + len(payload)}\r\n".encode() + block + payload + b"\r\n"


def _wildcard(subject: str) -> str:
    before, _, last = subject.rpartition(".")
    return f"{before.rpartition('.')[0]}.*.{last}"


class Capability:
    """The provider's handling of the host's messages, without the log."""

    def __init__(self, links: Links, policy: Policy, service: Service) -> None:
        self._links, self._policy, self._service = links, policy, service

    def health(self) -> Health:
        return Health([], [], [])

    def is_empty(self) -> bool:
        return True

    def configure(self, config: Mapping[str, str]) -> None:
        if self._policy.configure(options_of(config)):
            self._service.policy_changed()

    def refuse_configuration(self, reason: str) -> None:
        raise AssertionError(reason)

    def links_changed(self) -> None:
        self._service.policy_changed(self._policy.links_changed(self._links.take_changed()))


class Way(NamedTuple):
    """A way to receive a stream.

    :ivar later: the kind of awaitable that the store answers with, or None
    :ivar cuts: lengths of the pieces, repeated to the end of the stream
    :ivar pauses: turns of the loop after each piece
    """

    path: str = "direct"
    alike: bool = True
    later: str | None = None
    cuts: Sequence[int] = ()
    pauses: Sequence[int] = (1,)


async def receive(events: Sequence[Event], way: Way) -> tuple[list[bytes], set[tuple[bytes, bytes]]]:
    """Return the result of each call and the keys that are written, if a connection receives the events."""
    scripted = ScriptedServer()
    held = Store()
    for prefix in PREFIXES:
        held.bucket(prefix.encode() + BUCKET).set(WHICH, prefix.encode())
    links = Links(PROVIDER)
    policy = Policy(held.options, links, ProviderOptions())
    store: BucketStore = held
    if way.later is not None:
        store = waiting = WaitingStore(LATER[way.later])
        waiting.held = held
    service = Service(store, policy)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(scripted.listen())
        connection = await Connection.open(ConnectionOptions((url,), path=way.path))
        stack.push_async_callback(connection.close)
        if connection.direct is not None:
            connection.direct.alike.is_on = way.alike
        server = Server(connection, PREFIX, InvocationLimits(half_open_timeout_s=2 * DEADLINE_S))
        for instance, handlers in ((STORE, store_handlers), (ATOMICS, atomics_handlers), (BATCH, batch_handlers)):
            server.add(instance, handlers(service, service.parameter_limits))
        host_data = HostData(provider_key=PROVIDER)
        session = HostSession(connection, host_data, links, "", Capability(links, policy, service), asyncio.Event())
        await session.start()
        session.stop()  # nobody answers for the lattice
        await server.start()
        await connection.flush(DEADLINE_S)
        await _say(scripted, events, way)
        calls = sum(isinstance(event, Call) for event in events)
        results = [f"r.{number}.results" for number in range(calls)]
        await scripted.until(lambda: all((b"", "") in scripted.published.get(subject, ()) for subject in results))
        assert server.in_flight == 0
        await server.stop(0.0)
    buckets = {name: held.bucket(name) for name in held.bucket_names()}
    written = {(name, key) for name, bucket in buckets.items() for key in set(bucket.keys()) - {WHICH}}
    return [b"".join(payload for payload, _ in scripted.published[subject]) for subject in results], written


async def _say(scripted: ScriptedServer, events: Sequence[Event], way: Way) -> None:
    """Send the events in pieces. The rest of the parameters follows the handshake, as with every client."""
    numbers = itertools.count()
    calls = [event for event in events if isinstance(event, Call)]
    cuts, pauses = itertools.cycle(way.cuts or [2**20]), itertools.cycle(way.pauses)
    stream = b""

    async def flush() -> None:
        nonlocal stream
        while stream:
            at = next(cuts)
            scripted.say(stream[:at])
            stream = stream[at:]
            for _ in range(next(pauses)):
                await asyncio.sleep(0)

    host = f"wasmbus.rpc.default.{PROVIDER}"
    for event in events:
        match event:
            case Call(function, source_id, cut):
                number = next(numbers)
                params = params_of(function, number)[:cut]
                subject = invocation_subject(PREFIX, INSTANCES[function], function)
                stream += scripted.frame(subject, params, f"r.{number}", source_id)
            case Rest(number):
                await flush()
                await scripted.until(lambda number=number: f"r.{number}" in scripted.published)  # type: ignore[misc]
                ((_, inbox),) = scripted.published[f"r.{number}"]
                call = calls[number]
                stream += scripted.frame(params_subject(inbox), params_of(call.function, number)[call.cut :])
            case LinkPut(source_id, config):
                link = link_of(source_id) | {"target_config": config}
                stream += scripted.frame(f"{host}.linkdefs.put", json.dumps(link).encode())
            case LinkDelete(source_id):
                stream += scripted.frame(f"{host}.linkdefs.del", json.dumps(link_of(source_id)).encode())
            case Config(config):
                stream += scripted.frame(f"{host}.config.update", json.dumps(config).encode())
    await flush()


def link_of(source_id: str) -> dict[str, Any]:
    return {"source_id": source_id, "target": PROVIDER, "name": "default", "source_config": {}, "target_config": {}}


def check(events: Sequence[Event], way: Way) -> None:
    results, written = asyncio.run(receive(events, way))
    expected_results, expected_written = expected(events)
    shown = [
        result[:1] if isinstance(event, Call) and event.function == "list-keys" and result != DENIED else result
        for event, result in zip((event for event in events if isinstance(event, Call)), results, strict=True)
    ]
    assert shown == expected_results
    assert written == expected_written


# Streams.

BOOLEANS: st.SearchStrategy[bool] = st.booleans()
SOURCES = st.sampled_from(["", "a", "b"])
LINKED = st.sampled_from(["a", "b"])
CALLS = st.builds(Call, st.sampled_from(list(INSTANCES)), SOURCES, st.none() | st.integers(0, 2))
CONFIGS = st.sampled_from([{}, {"require_link": "true"}, {"access": "read-only"}])
LINK_CONFIGS = st.sampled_from(
    [
        {},
        {"access": "read-only"},
        {"bucket_prefix": "one-"},
        {"bucket_prefix": "two-", "access": "read-write"},
        {"access": "no such access"},  # everything is denied
    ]
)
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(LinkPut, LINKED, LINK_CONFIGS), st.builds(LinkDelete, LINKED), st.builds(Config, CONFIGS)
)


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    """Draw calls and changes. The rest of cut parameters comes anywhere after them."""
    events: list[Call | Change] = []
    for event in draw(st.lists(CALLS | CALLS | CHANGES, max_size=24)):
        # Frames of one caller and one function come in runs, so that their shape is learned.
        events += [event] * (draw(st.integers(1, 6)) if isinstance(event, Call) and event.cut is None else 1)
    half_open: list[int] = []
    stream: list[Event] = []
    number = 0
    for event in events:
        stream.append(event)
        if isinstance(event, Call):
            if event.cut is not None:
                half_open.append(number)
            number += 1
        elif draw(BOOLEANS) and half_open:
            stream.append(Rest(half_open.pop()))
    return [*stream, *map(Rest, half_open)]


WAYS = st.builds(
    Way,
    st.sampled_from(["direct", "plain"]),
    st.booleans(),
    st.sampled_from([None, *LATER]),
    st.lists(st.integers(1, 700), max_size=6),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
)


@settings(max_examples=100)
@given(events=streams(), way=WAYS)
def test_calls_are_carried_out_under_the_changes_sent_before_them(events: list[Event], way: Way) -> None:
    check(events, way)


READ_ONLY, PREFIXED = {"access": "read-only"}, {"bucket_prefix": "one-"}
#: One of each kind of change in one read, with calls before and after.
ALL_KINDS: list[Event] = [
    *[Call("set", "a", None)] * 8,
    Call("set-many", "a", 2),
    LinkPut("a", READ_ONLY),
    *[Call("set", "a", None)] * 8,
    *[Call("get", "a", None)] * 8,
    LinkPut("a", PREFIXED),
    *[Call("set", "a", None)] * 8,
    *[Call("get", "a", None)] * 8,
    Config({"require_link": "true"}),
    *[Call("get", "b", None)] * 8,
    LinkPut("b", {}),
    Call("get", "b", None),
    LinkDelete("a"),
    *[Call("get", "a", None)] * 8,
    Rest(8),
    Config({}),
    Call("get", "a", None),
]


@pytest.mark.parametrize("alike", [True, False], ids=["alike", "apart"])
@pytest.mark.parametrize("later", [None, *LATER])
@pytest.mark.parametrize("path", ["direct", "plain"])
def test_changes_of_all_kinds(path: str, later: str | None, alike: bool) -> None:
    for cuts in ((), (1,), (300, 5)):
        check(ALL_KINDS, Way(path, alike, later, cuts))


def test_calls_that_wait_for_the_next_turn_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change may arrive between the moment when nats-py passes a call on and the next turn of the loop."""
    monkeypatch.setattr(plain, "TURN_S_MAX", -1.0)
    for cuts in ((), (1,), (300, 5)):
        check(ALL_KINDS, Way("plain", cuts=cuts))


@contextmanager
def late_changes(patches: pytest.MonkeyPatch) -> Iterator[None]:
    """Make changes take effect only when nats-py handles them, as before the order was kept."""

    async def subscribe(connection: Connection, subject: str, handle: Callable[[bytes], None]) -> object:
        async def take(message: Message) -> None:
            handle(message.data)

        return await connection.subscribe(subject, take)

    with patches.context() as context:
        context.setattr(Connection, "subscribe_in_order", subscribe)
        yield


@pytest.mark.parametrize("path", ["direct", "plain"])
def test_late_changes_are_found(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with late_changes(monkeypatch), pytest.raises(AssertionError):
        check(ALL_KINDS, Way(path))
