"""Connections without sockets, to stores that are full with a few keys. Tests compare two of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.config.redis_plan import plan_redis
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.redis_service import RedisService
from keyvalue_transport.redis.limits import Address
from keyvalue_transport.redis.listener import ClientConnection
from keyvalue_transport.wrpc.in_flight import BytesInFlight
from tests.integration.redis_server import encode_request
from tests.provider.keyvalue.waiting_store import Later, WaitingStore

TURNS_MAX = 1000
#: The limits of each store.
LIMITS = StoreOptions(keys_max=4, value_bytes_max=550, key_bytes_max=120)


class Transport:
    """A transport that keeps what is written.

    :ivar largest_bytes: the size of the largest write
    """

    def __init__(self) -> None:
        self.written = bytearray()
        self.largest_bytes = 0
        self.is_closed = self.is_paused = False

    def write(self, out: bytes) -> None:
        assert not self.is_closed
        self.written += out
        self.largest_bytes = max(self.largest_bytes, len(out))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_extra_info(self, name: str) -> None: ...

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Side:
    """A connection to a store of its own.

    :param later: makes the answers of a store that answers later; None for a store that answers at once
    :param options: options of the provider
    """

    def __init__(self, later: Later | None = None, **options: Any) -> None:
        waiting = None if later is None else WaitingStore(later, LIMITS)
        self.store = Store(LIMITS) if waiting is None else waiting.held
        provider = replace(ProviderOptions.of_store(LIMITS), redis_address=(Address(path="/none"),), **options)
        policy = Policy(LIMITS, None, provider)
        plan = plan_redis(provider)
        assert plan is not None
        self.in_flight = BytesInFlight(1024 * 1024)
        service = Service(waiting or self.store, policy)
        self.redis = RedisService(plan, service, policy, self.store, None, self.in_flight)
        self.redis.is_open = True
        self.durations = self.redis.measure([1.0])
        self.transport = Transport()
        self.connection = ClientConnection(self.redis.listener, 1)
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    async def receive(self, read: bytes) -> None:
        """Receive a read, unless the connection is closed; first wait while it is paused."""
        for _ in range(TURNS_MAX):
            if not self.transport.is_paused or self.transport.is_closed:
                break
            await asyncio.sleep(0)
        if not self.transport.is_closed:
            assert not self.transport.is_paused
            self.connection.data_received(read)

    async def finish(self) -> tuple[bytearray, object]:
        """Wait for all answers. Return them, and everything else that the requests have changed."""
        for _ in range(TURNS_MAX):
            if self.transport.is_closed or not (self.connection.unanswered or self.transport.is_paused):
                break
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.store.check()
        assert not self.in_flight.held_bytes
        counts, is_closed = self.redis.listener.counts, self.transport.is_closed
        assert is_closed or self.redis.listener.held_bytes == self.connection._reader.scanner.held_bytes
        received: object = counts.received_bytes, {name: sum(row) for name, row in self.durations.counts.items()}
        if is_closed:
            received = None  # a read may have more bytes than the request that closed the connection
        entries = [dict(self.store.bucket(name).items()) for name in (b"default", b"1")]
        return self.transport.written, (is_closed, received, self.redis.tallies, counts.sent_bytes, entries)


async def compare(reads: list[bytes], later: Later | None = None, **options: Any) -> Side:
    """Send reads as they are, and byte by byte, to two sides. Let time pass at each empty read. Return the first side.

    The second side executes each request alone, after hiredis or the scanner has read it.
    """
    whole, single = Side(later, **options), Side(later, **options)
    for read in (encode_request([b"PING"]), *reads):  # the first request ends the check of a password
        if read:
            await whole.receive(read)
        else:
            await asyncio.sleep(0)
        for byte in read:
            await single.receive(bytes([byte]))
    assert await whole.finish() == await single.finish()
    return whole
