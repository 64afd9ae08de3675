"""A store that answers later, through service, server, both paths and a client: every function, and errors that are raised while it is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import NamedTuple

import pytest

from keyvalue_engine import StoreOptions
from keyvalue_provider.host.links import LinkDefinition, Links
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.atomics import ATOMICS, atomics_handlers, atomics_tallies
from keyvalue_transport.keyvalue.batch import BATCH, batch_handlers, batch_tallies
from keyvalue_transport.keyvalue.errors import AccessDeniedError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.outcomes import OUTCOMES, Tally
from keyvalue_transport.keyvalue.store import STORE, store_handlers, store_tallies
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.server import Server
from keyvalue_transport.wrpc.errors import InvocationEndedError
from tests.conftest import DEADLINE_S, PATHS, NatsServer
from tests.provider.keyvalue.waiting_store import LATER, Later, WaitingStore

KEY = "kv"
COMPONENT = "component"
NUMBERS = count()
Link = Callable[..., None]


class Served(NamedTuple):
    """A store that is served, with a client of it."""

    store: WaitingStore
    client: KeyValueClient
    link: Link
    tallies: dict[str, Tally]

    def counted(self, function: str) -> dict[str, int]:
        """Return how often its calls ended how."""
        return {name: number for name, number in zip(OUTCOMES, self.tallies[function], strict=True) if number}


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    """The transport's path, in this process."""
    path: str = request.param
    return path


@pytest.fixture(params=LATER.values(), ids=[*LATER])
def later(request: pytest.FixtureRequest) -> Later:
    """The kind of thing that the store's answers are."""
    later: Later = request.param
    return later


@asynccontextmanager
async def serving(url: str, path: str, later: Later, options: StoreOptions | None = None) -> AsyncIterator[Served]:
    connection = await Connection.open(ConnectionOptions((url,), path=path))
    assert (connection.direct is not None) == (path == "direct")
    store, links = WaitingStore(later, options), Links(KEY)
    policy = Policy(store.options, links)
    service = Service(store, policy)
    tallies = store_tallies() | atomics_tallies() | batch_tallies()
    server = Server(connection, f"default.waiting-{next(NUMBERS)}")
    limits = service.parameter_limits
    server.add(STORE, store_handlers(service, limits, tallies))
    server.add(ATOMICS, atomics_handlers(service, limits, tallies))
    server.add(BATCH, batch_handlers(service, limits, tallies))
    await server.start()
    await connection.flush(DEADLINE_S)

    def link(**target_config: str) -> None:
        links.put(LinkDefinition(COMPONENT, KEY, "default", target_config=target_config))
        policy.links_changed()
        service.policy_changed()

    try:
        async with KeyValueClient(url, server.prefix, source_id=COMPONENT, timeout_s=DEADLINE_S) as client:
            yield Served(store, client, link, tallies)
            await server.stop(DEADLINE_S)
            assert server.in_flight == 0
    finally:
        await connection.close()


async def test_every_function(nats_server: NatsServer, path: str, later: Later) -> None:
    async with serving(nats_server.url, path, later) as served:
        kv, held = served.client, served.store.held.bucket(b"b")
        assert await kv.get("b", "k") is None
        await kv.set("b", "k", b"v")
        assert held.get(b"k") == await kv.get("b", "k") == b"v"
        assert await kv.exists("b", "k") is True
        assert await kv.list_keys("b") == ([b"k"], None)
        await kv.delete("b", "k")
        await kv.delete("b", "k")
        assert await kv.exists("b", "k") is False
        assert [await kv.increment("b", "n", delta) for delta in (2, 0, 3)] == [2, 2, 5]
        await kv.set_many("b", {"1": b"one", "2": b""})
        assert await kv.get_many("b", ["2", "no", "1", "n"]) == [b"", None, b"one", b"5"]
        await kv.delete_many("b", ["1", "no", "2"])
        assert await kv.list_keys("b") == ([b"n"], None)
        assert served.counted("get") == served.counted("exists") == {"ok": 1, "none": 1}
        assert served.counted("delete") == {"ok": 2}


async def test_many_calls_at_once_each_get_their_own_answer(nats_server: NatsServer, path: str, later: Later) -> None:
    async with serving(nats_server.url, path, later) as served:
        kv = served.client
        sums = await asyncio.gather(*(kv.increment("b", "n") for _ in range(100)))
        assert sorted(sums) == list(range(1, 101))
        assert served.counted("increment") == {"ok": 100}


async def test_errors_that_are_raised_while_the_answer_is_awaited(
    nats_server: NatsServer, path: str, later: Later
) -> None:
    async with serving(nats_server.url, path, later, StoreOptions(strict_buckets=True, keys_max=2)) as served:
        kv = served.client
        never_written: dict[str, Awaitable[object]] = {
            "get": kv.get("b", "k"),
            "exists": kv.exists("b", "k"),
            "delete": kv.delete("b", "k"),
            "get-many": kv.get_many("b", ["k"]),
            "delete-many": kv.delete_many("b", ["k"]),
        }
        for function, call in never_written.items():
            with pytest.raises(NoSuchStoreError):
                await call
            assert served.counted(function) == {"no_such_store": 1}
        await kv.set("b", "k", b"no number")
        with pytest.raises(OtherError, match=r"^value: found 'no number', allowed a decimal number"):
            await kv.increment("b", "k")
        with pytest.raises(OtherError, match=r"^the store would hold 3 keys; the limit is 2 \(keys_max\)$"):
            await kv.set_many("b", {"k": b"", "l": b"", "m": b""})
        served.link(keys_max="1")
        with pytest.raises(
            OtherError, match=r"^the buckets of this quota would hold 2 keys; the limit is 1 \(quota_keys\)$"
        ):
            await kv.set("b", "l", b"")
        assert served.counted("set") == {"ok": 1, "other": 1}
        assert await kv.get("b", "k") == b"no number"
        served.link(access="read-only")
        with pytest.raises(AccessDeniedError):  # before the store is asked
            await kv.set("b", "k", b"")


async def test_a_failure_of_the_store_ends_the_call_and_nothing_else(
    nats_server: NatsServer, path: str, later: Later, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> object:
        raise RuntimeError("a fault of ours")

    faulty = [True]

    def answer(function: Callable[..., object], *arguments: object) -> Awaitable[object]:
        return later(fail if faulty else function, *arguments)

    async with serving(nats_server.url, path, answer) as served:
        with pytest.raises(InvocationEndedError):
            await served.client.get("b", "k")
        assert served.counted("get") == {"failed": 1}
        faulty.clear()
        assert await served.client.get("b", "k") is None
    assert "RuntimeError: a fault of ours" in caplog.text
