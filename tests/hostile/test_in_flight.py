"""Callers whose writes wait for a KV bucket, or whose answers nobody reads: the provider's memory stays bounded."""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

import nats
import pytest
from hiredis import ReplyError

from keyvalue_transport.keyvalue.interface import encode_unit_result
from keyvalue_transport.keyvalue.store import encode_set
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, NatsServer, Process, free_port, in_thread, launching, until
from tests.integration.redis_provider import RedisProvider, redis_provider
from tests.integration.redis_server import Wire, encode_request
from tests.integration.test_metrics import ON, Endpoint, scraped

MIB = 1024 * 1024
VALUE = bytes(1_000_000)
LIMIT_BYTES = 32 * MIB
#: The limit does not count copies on their way, the buffer of the socket, and free memory that malloc keeps.
GROWTH_BYTES_MAX = 200 * MIB
#: The calls of the test: many times the limit.
SETS = 300
STORE = {"store": "jetstream", "jetstream_domain": "js", "jetstream_timeout_ms": "60000"}


@pytest.fixture
def servers(new_nats_server: Callable[[str], NatsServer], tmp_path: Path) -> tuple[NatsServer, NatsServer]:
    """Return the server of the provider and its callers, and the one that has the stream."""
    port = free_port()
    near = new_nats_server(
        f'max_pending: 2GB\nwrite_deadline: "60s"\nleafnodes {{ listen: "127.0.0.1:{port}", write_deadline: "60s" }}\n'
    )
    far = new_nats_server(
        f"jetstream {{ domain: js, store_dir: {json.dumps(str(tmp_path / 'far'))} }}\n"
        f'leafnodes {{ remotes: [{{ url: "nats-leaf://127.0.0.1:{port}" }}] }}\n'
    )
    far.wait_for("Leafnode connection created")
    return near, far


class Memory:
    """The memory of a process, above what it took at first."""

    def __init__(self, process: Process) -> None:
        self._status = Path(f"/proc/{process.process.pid}/status")
        self._first_bytes = self._bytes("VmRSS:")

    def _bytes(self, name: str) -> int:
        return int(self._status.read_text().partition(name)[2].split()[0]) * 1024

    def check(self, growth_bytes_max: int = GROWTH_BYTES_MAX) -> None:
        """Check the largest growth so far."""
        assert self._bytes("VmHWM:") - self._first_bytes < growth_bytes_max


@pytest.mark.parametrize("path", ["direct", "plain"])
async def test_writes_over_nats_that_wait(servers: tuple[NatsServer, NatsServer], tmp_path: Path, path: str) -> None:
    """The server of the stream is silent. Sets above the limit are refused, and those of others are not."""
    near, far = servers
    options = ON | STORE | {"in_flight_bytes_max": str(LIMIT_BYTES), "transport": path}
    with launching(near.url, tmp_path) as launch:
        provider = launch(options)
        memory = Memory(provider)
        client = await nats.connect(near.url)
        inbox = client.new_inbox()
        results = await client.subscribe(f"{inbox}.*.results", pending_msgs_limit=4 * SETS)

        async def send(number: int, value: bytes, source_id: str) -> None:
            params, reply = encode_set(b"b", b"%d" % number, value), f"{inbox}.{number}"
            await client.publish(provider.subject("set"), params, reply, {"source-id": source_id})

        with far.silence():
            for number in range(SETS):
                await send(number, VALUE, "bad")
                await client.flush()
            await send(SETS, b"small", "good")

            async def all_have_begun() -> bool:
                found = await scraped(provider)
                refused = found.value("refused_invocations_total")
                return found.value("invocations_in_flight") + refused == SETS + 1 and refused > 0

            await until(all_have_begun, "all sets wait, or were refused")
            found = await scraped(provider)
            assert 0 < found.value("in_flight_bytes") < LIMIT_BYTES
            refused = found.value("refused_invocations_total")
            memory.check(2 * LIMIT_BYTES)
        answers: dict[int, bytes] = {}
        ended: set[int] = set()
        while len(ended) <= SETS:
            message = await results.next_msg(DEADLINE_S)
            number = int(message.subject.split(".")[-2])
            if message.data:
                answers[number] = message.data
            else:
                ended.add(number)
        await client.close()
        written = {number for number, answer in answers.items() if answer == encode_unit_result(None)}
        assert SETS in written, "another caller was refused"
        # A call that is held while the server reads slowly may be refused without a result.
        assert all(b"in_flight_bytes_max" in answer for number, answer in answers.items() if number not in written)
        assert len(answers) > len(written)
        assert SETS + 1 - len(written) == refused > SETS - 2 * LIMIT_BYTES / len(VALUE)
        found = await scraped(provider)
        assert found.value("in_flight_bytes") == 0
        async with KeyValueClient(near.url, provider.prefix, timeout_s=DEADLINE_S) as reader:
            assert {int(key) async for key in reader.keys("b")} == written


@contextmanager
def floods(provider: RedisProvider, connections: int, requests: bytes) -> Iterator[list[Wire]]:
    """Send requests over many connections at once, as far as the provider takes them. Then disconnect."""
    wires = [Wire(provider.socket) for _ in range(connections)]

    def send(wire: Wire) -> None:
        with suppress(OSError):  # the provider closes it, or this test does
            wire.send(requests)

    threads = [Thread(target=send, args=(wire,)) for wire in wires]
    try:
        for thread in threads:
            thread.start()
        yield wires
    finally:
        for wire in wires:
            with suppress(OSError):
                wire.socket.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for wire in wires:
            wire.socket.close()


def users(*names: str) -> str:
    return json.dumps({name: {"password": "p"} for name in names})


def logged_in(provider: RedisProvider, user: str) -> Wire:
    wire = Wire(provider.socket)
    assert wire.call(b"AUTH", user.encode(), b"p") == b"OK"
    return wire


def in_flight_bytes(provider: RedisProvider) -> float:
    value = Endpoint.of(provider.process).scrape().value("in_flight_bytes")
    assert value is not None
    return value


async def test_writes_of_redis_clients_that_wait(servers: tuple[NatsServer, NatsServer], tmp_path: Path) -> None:
    """Clients write more than the limit, disconnect, and come again. Their writes still count."""
    near, far = servers
    options = STORE | ON | {"in_flight_bytes_max": str(LIMIT_BYTES), "redis_users": users("bad", "good")}
    with redis_provider(tmp_path, near, **options) as provider, logged_in(provider, "good") as good:
        memory = Memory(provider.process)
        requests = encode_request([b"AUTH", b"bad", b"p"]) + encode_request([b"SET", b"k", VALUE]) * 3
        with far.silence():
            for _ in range(5):
                with floods(provider, 40, requests) as wires:
                    refused = await in_thread(first_refusal, wires)
                    assert "in_flight_bytes_max" in refused
            assert 0 < in_flight_bytes(provider) < LIMIT_BYTES
            good.send(encode_request([b"SET", b"good", b"v"]))
            memory.check()
        assert await in_thread(good.answer) == b"OK"
        assert good.call(b"GET", b"k") == VALUE

        async def is_empty() -> bool:
            return in_flight_bytes(provider) == 0

        await until(is_empty, "all writes are stored or given up")


def first_refusal(wires: list[Wire]) -> str:
    """Return the first error TRYAGAIN that one of the connections gets."""
    selector = selectors.DefaultSelector()
    for wire in wires:
        selector.register(wire.socket, selectors.EVENT_READ, wire)
    while ready := selector.select(DEADLINE_S):
        for key, _ in ready:
            answer = key.data.answer()
            if isinstance(answer, ReplyError) and str(answer).startswith("TRYAGAIN"):
                return str(answer)
    raise AssertionError("no request was refused")


def test_writes_while_the_nats_server_does_not_read(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    """The bytes for the server stay in the socket's buffer, also when their calls have ended."""
    server = new_nats_server(f"jetstream {{ store_dir: {json.dumps(str(tmp_path / 'stream'))} }}\n")
    options = {"store": "jetstream", "in_flight_bytes_max": str(10**12), "jetstream_timeout_ms": "1000"}
    with redis_provider(tmp_path, server, **options) as provider:
        memory = Memory(provider.process)
        request = encode_request([b"SET", b"k", VALUE])
        with server.silence(), ExitStack() as stack:
            wires = [stack.enter_context(Wire(provider.socket)) for _ in range(SETS)]
            for wire in wires:
                wire.send(request)
            answers = [str(wire.answer()) for wire in wires]
            memory.check()
        assert sum("does not read: nothing was sent" in answer for answer in answers) > SETS // 2


def test_requests_that_wait_for_earlier_ones(servers: tuple[NatsServer, NatsServer], tmp_path: Path) -> None:
    """A write waits for the read before it. It counts as a request that is not complete does."""
    near, far = servers
    with (
        redis_provider(tmp_path, near, **STORE, redis_held_bytes_max=str(LIMIT_BYTES)) as provider,
        ExitStack() as stack,
    ):
        memory = Memory(provider.process)
        requests = encode_request([b"GET", b"k"]) + encode_request([b"SET", b"k", VALUE * 8])
        closed = 0
        with far.silence():
            for _ in range(75):
                wire = stack.enter_context(Wire(provider.socket))
                try:
                    wire.send(requests)
                except OSError:
                    closed += 1
            memory.check()
        assert closed > 60


def test_answers_that_no_client_reads(nats_server: NatsServer, tmp_path: Path) -> None:
    """Each connection has less than 1 MiB of them. Clients that read are served."""
    options = {"redis_unsent_bytes_max": str(LIMIT_BYTES)}
    with redis_provider(tmp_path, nats_server, **options) as provider, Wire(provider.socket) as good:
        memory = Memory(provider.process)
        assert good.call(b"SET", b"k", VALUE[:60_000]) == b"OK"
        with ExitStack() as stack:
            for _ in range(450):
                wire = stack.enter_context(Wire(provider.socket))
                wire.send(encode_request([b"GET", b"k"]) * 15)
                assert wire.socket.recv(1, socket.MSG_PEEK)
            assert good.call(b"GET", b"k") == VALUE[:60_000]
            memory.check()
