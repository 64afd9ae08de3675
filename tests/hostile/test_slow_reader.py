"""A client that requests large values and reads none of them. Other clients and the host must not wait for it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from statistics import median
from time import perf_counter

import nats

from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, in_thread

GETS = 300
VALUE = bytes(8 * 1024 * 1024)
TRIES = 7
#: The goal is 0.1 s on a quiet machine. Without the queue of large results, the first try took more than 4 s.
WAIT_S_MAX = 1.0


def request_and_not_read(port: int, subject: str) -> socket.socket:
    """Connect, request the value many times, and read nothing after the server's greeting."""
    client = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    client.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nSUB slow.> 1\r\nPING\r\n')
    greeting = b""
    while not greeting.endswith(b"PONG\r\n"):
        greeting += client.recv(65_536)
    params = encode_bucket_key(b"b", b"large")
    client.sendall(
        b"".join(
            b"PUB %b slow.%d %d\r\n%b\r\n" % (subject.encode(), number, len(params), params) for number in range(GETS)
        )
    )
    return client


async def seconds(call: Callable[[], Awaitable[object]]) -> float:
    began_s = perf_counter()
    await call()
    return perf_counter() - began_s


async def test_nobody_waits_for_a_client_that_does_not_read(nats_server: NatsServer, launch: Launch) -> None:
    provider = launch({"stop_timeout_ms": "200"})
    host = await nats.connect(nats_server.url)
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "large", VALUE)
        slow = await in_thread(request_and_not_read, nats_server.port, provider.subject("get"))
        with slow:
            sets, healths = [], []
            for number in range(TRIES):
                sets.append(await seconds(lambda number=number: client.set("b", "small", b"%d" % number)))  # type: ignore[misc]
                healths.append(
                    await seconds(lambda: host.request(provider.host_subject("health"), b"", timeout=DEADLINE_S))
                )
            assert median(sets) < WAIT_S_MAX
            assert median(healths) < WAIT_S_MAX
            assert sets[0] < 2 * WAIT_S_MAX, "the first set came directly after the gets"
        assert await asyncio.wait_for(client.get("b", "small"), DEADLINE_S) == b"%d" % (TRIES - 1)
    await host.close()
