"""Watchers that never answer: the memory of their events is counted."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import pytest

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.watching.delivery import CALLS_MAX, ChangeDelivery
from keyvalue_provider.watching.queue import WatchCounts, WatchLimits
from keyvalue_provider.watching.routes import WatchRoutes, queue_observer
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.invoker import Invoker
from tests.conftest import DEADLINE_S, NatsServer, until
from tests.provider.watching.test_patterns import watch

MIB = 1024 * 1024
#: A call in flight takes about 8 KiB besides its event: a task, coroutines, and the state of the invocation.
CALLS_BYTES = CALLS_MAX * 16 * 1024


async def listen(port: int) -> None:
    """Subscribe to everything, and answer nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b'CONNECT {"verbose": false}\r\nSUB silent.> 1\r\n')
        while await reader.read(MIB):
            pass
    finally:
        writer.close()


@pytest.fixture
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize(("name_bytes", "value_bytes", "count"), [(1_000, 1, 3_000), (1, 3 * MIB, 30), (1, 300, 9_000)])
async def test_the_queue_counts_what_a_silent_watcher_holds(
    nats_server: NatsServer, name_bytes: int, value_bytes: int, count: int
) -> None:
    """Each key is deleted after it was set. So the events alone hold the keys, the values and the names of buckets."""
    listening = asyncio.create_task(listen(nats_server.port))
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    invoker = Invoker(connection)
    limits, counts = WatchLimits(100_000, 64 * MIB, 10 * DEADLINE_S), WatchCounts()
    delivery = ChangeDelivery(
        "silent", "silent.component", invoker, lambda: connection.connected, limits, counts, lambda: None
    )
    store = Store(StoreOptions())
    WatchRoutes(store, queue_observer).put(delivery.queue, watch("SET@*").patterns)
    store.bucket(b"warm").set(b"up", b"v")
    await asyncio.sleep(0.1)
    gc.collect()
    before_bytes, _ = tracemalloc.get_traced_memory()
    for number in range(count):
        bucket = store.bucket(b"%0*d" % (name_bytes, number))
        bucket.set(b"%d" % number, bytes(value_bytes))
        bucket.delete(b"%d" % number)
        if not number % 100 or value_bytes > MIB:
            await asyncio.sleep(0)

    async def are_sent() -> bool:
        await asyncio.sleep(0)
        return len(delivery.calls) == CALLS_MAX and all(each.subjects for each in invoker._calls.values())

    await until(are_sent, "the calls are sent")
    await connection.flush(DEADLINE_S)
    gc.collect()
    held_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    queue = delivery.queue
    counted_bytes = (queue._places - queue._room + len(queue.waiting)) * queue._place_bytes
    assert delivery.queue_length > 20
    assert held_bytes <= 1.5 * counted_bytes + CALLS_BYTES
    for call in delivery.calls:
        call.cancel()
    delivery.close()
    listening.cancel()
    with suppress(asyncio.CancelledError):
        await listening
    await connection.close()
