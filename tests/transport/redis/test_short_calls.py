"""Short calls: whole reads, some of which are short calls, get the same answers as the same bytes one by one."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.config.redis_plan import plan_redis
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.redis_service import RedisService
from keyvalue_transport.redis.limits import Address
from keyvalue_transport.redis.listener import ClientConnection
from keyvalue_transport.redis.short_calls import MIDDLES, REST_BYTES_MAX
from tests.integration.redis_server import encode_request

TURNS_MAX = 1000
keys = st.sampled_from([b"k", b"", b"\r\n$1\r\n", b"x" * 9, b"x" * 10, b"x" * 99, b"x" * 100, b"long" * 40])
#: With the end of its request, this value looks like a short call.
CALL = encode_request([b"GET", b"k"]).removesuffix(b"\r\n")
values = st.sampled_from([CALL, b"", b"v", b"\r\n", b"1" * 9, b"1" * 10, b"1" * 99, b"1" * 498, b"1" * 600])
gets = st.tuples(st.sampled_from([b"GET", b"get"]), keys)
sets = st.tuples(st.sampled_from([b"SET", b"set"]), keys, values)
others = st.sampled_from(
    [
        *((b"PING",), (b"Get", b"k"), (b"GET",), (b"SET", b"k", b"v", b"NX"), (b"SELECT", b"1"), (b"HELLO", b"3")),
        *((b"AUTH", b"default", b"x"), (b"AUTH", b"default", b"secret"), (b"RESET",), (b"QUIT",)),
    ]
)
#: A byte that is replaced, or added: its place, the byte, and True if it is added.
faults = st.none() | st.tuples(st.floats(0, 0.99), st.sampled_from(b"*$123\r\nGk+>"), st.booleans())
#: A request, its fault, and a gap: none, a read that ends in its middle, or after it, also with time after the read.
steps = st.tuples(
    gets | sets | st.just((b"KEYS", b"k")) | others,
    faults,
    st.sampled_from(["", "middle", "end", "middle, time", "end, time"]),
)


class Transport:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = self.is_paused = False

    def write(self, out: bytes) -> None:
        assert not self.is_closed
        self.written += out

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int) -> None: ...

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Side:
    """A connection to a store of its own, which is full with four keys."""

    def __init__(self, **options: Any) -> None:
        store = Store(StoreOptions(keys_max=4, value_bytes_max=500, key_bytes_max=120))
        policy = Policy(store.options)
        plan = plan_redis(ProviderOptions(redis_address=(Address(path="/none"),), **options))
        assert plan is not None
        self.redis = RedisService(plan, Service(store, policy), policy, store, None)
        self.redis.is_open = True
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

    async def finish(self) -> tuple[bytes, bool, object]:
        """Wait for all answers. Return them, and whether the connection was closed, and the counts."""
        for _ in range(TURNS_MAX):
            if self.transport.is_closed or not (self.connection.unanswered or self.transport.is_paused):
                break
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        counts = self.redis.listener.counts
        return self.transport.written, self.transport.is_closed, (self.redis.tallies, counts.sent_bytes)


def reads_of(requests: list[tuple[tuple[bytes, ...], Any, str]]) -> list[bytes]:
    """Return the reads, with an empty one where time passes."""
    reads, read = [], b""
    for request, fault, gap in requests:
        part = encode_request(request)
        if fault is not None:
            at = int(fault[0] * len(part))
            part = part[:at] + bytes([fault[1]]) + part[at + (not fault[2]) :]
        at = (part.find(CALL) if CALL in part else len(part) // 2) if "middle" in gap else len(part)
        read += part[:at]
        if gap:
            reads += [read, b""] if "time" in gap else [read]
            read = part[at:]
    return [*reads, read]


@settings(max_examples=300)
@given(
    requests=st.lists(steps, max_size=12),
    options=st.sampled_from([{}, {"redis_request_bytes_max": 150}, {"redis_password": Secret("secret")}]),
)
def test_short_calls_get_the_answers_of_other_reads(requests: list[Any], options: dict[str, Any]) -> None:
    async def run() -> None:
        whole, single = Side(**options), Side(**options)
        for read in reads_of(requests):
            if read:
                await whole.receive(read)
            else:
                await asyncio.sleep(0)
            for byte in read:
                await single.receive(bytes([byte]))
        assert await whole.finish() == await single.finish()

    asyncio.run(run())


def test_the_rest_of_a_set_has_the_length_of_its_value() -> None:
    """Each length of a rest belongs to one length of a value, or to none."""
    found = {size: middle for size, (middle, _) in enumerate(MIDDLES) if middle != b"none"}
    for length in range(REST_BYTES_MAX):
        rest = encode_request([b"k", bytes(length)])[len(b"*2\r\n$1\r\nk") :]
        if len(rest) < REST_BYTES_MAX:
            assert rest.startswith(found.pop(len(rest)))
    assert not found
