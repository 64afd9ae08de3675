"""A client that requests many values and reads none of them. Other clients and the host must not wait for it.

When 48 MiB wait for such a client, the NATS server slows down the provider's connection. At 64 MiB, it gives the client
up. But it goes on slowing down the provider until the client's connection has ended, at most 10 s later.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import nats
import pytest

from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, Provider, in_thread

GIVEN_UP = "Slow Consumer Detected"
#: How often others try after the NATS server has given up the client.
TRIES = 20
#: Half of the calls wait less. The goal is 0.1 s on a quiet machine. Sets took more than 4 s before large results were
#: queued, and 8 to 16 s before calls were held.
WAIT_S_MAX = 0.5


def request_and_not_read(port: int, subject: str, gets: int) -> socket.socket:
    """Connect, request the value many times, and read nothing after the server's greeting."""
    client = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that the NATS server has to hold everything
    client.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nSUB slow.> 1\r\nPING\r\n')
    greeting = b""
    while not greeting.endswith(b"PONG\r\n"):
        greeting += client.recv(65_536)
    params = encode_bucket_key(b"b", b"large")
    client.sendall(
        b"".join(
            b"PUB %b slow.%d %d\r\n%b\r\n" % (subject.encode(), number, len(params), params) for number in range(gets)
        )
    )
    return client


def cpu_wait_s(provider: Provider) -> float:
    """Return the time that a provider and this process have waited for a processor because others ran."""
    files = (Path(f"/proc/{pid}/schedstat") for pid in (provider.process.pid, os.getpid()))
    return sum(int(file.read_text().split()[1]) for file in files) / 1e9


async def seconds(provider: Provider, call: Callable[[], Awaitable[object]]) -> float:
    """Return the time that a call takes, without the waiting for a processor."""
    began_s, waited_s = perf_counter(), cpu_wait_s(provider)
    await call()
    return perf_counter() - began_s - (cpu_wait_s(provider) - waited_s)


@pytest.mark.parametrize(
    ("value_bytes", "gets", "longest_s"),
    [(8 * 1024 * 1024, 300, 2.0), (64_000, 20_000, 4.0), (4_000, 60_000, 4.0)],
    ids=["8 MiB", "64 kB", "4 kB"],
)
async def test_nobody_waits_for_a_client_that_does_not_read(
    value_bytes: int, gets: int, longest_s: float, nats_server: NatsServer, launch: Launch
) -> None:
    """When the slowing begins, one call with 4 kB took 1.5 s on a quiet machine, and 2.8 s at a load of 12."""
    provider = launch({"stop_timeout_ms": "200"})
    async with (
        await nats.connect(nats_server.url) as host,
        KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client,
    ):
        await client.set("b", "large", bytes(value_bytes))
        given_up = nats_server.output.count(GIVEN_UP)
        slow = await in_thread(request_and_not_read, nats_server.port, provider.subject("get"), gets)
        with slow:
            sets, healths, tries = list[float](), list[float](), 0
            while tries < TRIES:
                tries += nats_server.output.count(GIVEN_UP) > given_up
                sets.append(await seconds(provider, partial(client.set, "b", "small", b"%d" % len(sets))))
                request = partial(host.request, provider.host_subject("health"), b"", timeout=DEADLINE_S)
                healths.append(await seconds(provider, request))
            assert median(sets) < WAIT_S_MAX
            assert median(healths) < WAIT_S_MAX
            assert max(sets + healths) < longest_s
        assert await asyncio.wait_for(client.get("b", "small"), DEADLINE_S) == b"%d" % (len(sets) - 1)
