"""Keys that expire while calls never pause: their memory is freed in time, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json
from time import monotonic

import pytest

from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_set
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer
from tests.integration.test_metrics import ON, scraped

TTL_MS = 500
#: Calls in flight. More would not make the provider answer faster.
IN_FLIGHT = 2_048
BATCH = 256


class Flood:
    """A connection that makes calls as fast as they are answered. It counts the answers.

    All calls have the same reply subject, since only the number of answers matters.
    """

    def __init__(self, port: int, subject: str) -> None:
        self.answered = 0
        self.is_over = False
        self._port = port
        self._subject = subject.encode()

    async def run(self, *, gets: bool = False) -> None:
        """Make calls until `is_over`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"CONNECT %b\r\nSUB flood.results 1\r\n" % json.dumps({"verbose": False}).encode())
        sent, end, rest = 0, b"MSG flood.results 1 0\r\n", b""
        try:
            while not self.is_over:
                while sent - self.answered < IN_FLIGHT:
                    for number in range(sent, sent + BATCH):
                        key = b"%d" % number
                        call = encode_bucket_key(b"b", key) if gets else encode_set(b"b", key, b"v")
                        writer.write(b"PUB %b flood %d\r\n%b\r\n" % (self._subject, len(call), call))
                    sent += BATCH
                async with asyncio.timeout(DEADLINE_S):
                    read = await reader.read(1 << 20)
                assert read, "the server has closed the connection"
                await asyncio.sleep(0)  # `read` does not wait if bytes have arrived
                self.answered += (rest + read).count(end)
                rest = read[-len(end) + 1 :]
        finally:
            writer.close()


@pytest.mark.parametrize("gets", [False, True])
async def test_expired_keys_are_removed_while_calls_never_pause(
    nats_server: NatsServer, launch: Launch, gets: bool
) -> None:
    """A second flood of gets must not starve the sweep either."""
    provider = launch(ON | {"ttl_ms": str(TTL_MS)})
    floods = [Flood(nats_server.port, provider.subject("set")), Flood(nats_server.port, provider.subject("get"))]
    running = [asyncio.create_task(flood.run(gets=number == 1)) for number, flood in enumerate(floods[: 1 + gets])]
    held: list[float] = []
    rates: list[float] = []
    last_s, answered = monotonic(), 0
    for _ in range(12):
        await asyncio.sleep(0.25)
        held.append((await scraped(provider)).value("keys"))
        now_s, before = monotonic(), answered
        answered = floods[0].answered
        rates.append((answered - before) / (now_s - last_s))
        last_s = now_s
        assert not any(task.done() for task in running)
    for flood in floods:
        flood.is_over = True
    await asyncio.gather(*running)
    assert answered > 10_000
    # The documents promise a delay of about 0.1 s. The bound leaves room for a busy machine.
    assert max(held[4:]) <= 1.5 * max(rates) * TTL_MS / 1_000 + 2_000


async def test_a_page_of_a_bucket_whose_keys_have_expired_has_the_keys_that_are_left(
    nats_server: NatsServer, launch: Launch
) -> None:
    """The page removes the expired keys itself, step by step, and is not empty although many steps find no key."""
    provider = launch({"batch_keys_max": "100000"})
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "stays", b"v")
        assert (await client.list_keys("b")).keys == [b"stays"]
