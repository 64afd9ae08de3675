"""Keys that expire while calls never pause: their memory is freed in time, and nobody waits for it."""

from __future__ import annotations

import asyncio
import json
from bisect import bisect
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import pytest

from keyvalue_transport.keyvalue.batch import BATCH, encode_set_many
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_set
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.subjects import invocation_subject
from tests.conftest import DEADLINE_S, Launch, NatsServer
from tests.integration.test_metrics import ON, scraped

TTL_MS = 500


class Flood:
    """A connection that makes calls as fast as they are answered. It counts the answers.

    All calls have the same reply subject, since only the number of answers matters.

    :param call_of: returns the parameters of a call, from its number
    :param in_flight: number of calls in flight. More would not make the provider answer faster
    """

    def __init__(self, port: int, subject: str, call_of: Callable[[int], bytes], in_flight: int) -> None:
        self.answered = 0
        self.is_over = False
        self.in_flight = in_flight
        self._port = port
        self._subject = subject.encode()
        self._call_of = call_of

    async def run(self) -> None:
        """Make calls until `is_over`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"CONNECT %b\r\nSUB flood.results 1\r\n" % json.dumps({"verbose": False}).encode())
        sent, end, rest = 0, b"MSG flood.results 1 0\r\n", b""
        try:
            while not self.is_over:
                while sent - self.answered < self.in_flight:
                    call = self._call_of(sent)
                    writer.write(b"PUB %b flood %d\r\n%b\r\n" % (self._subject, len(call), call))
                    sent += 1
                async with asyncio.timeout(DEADLINE_S):
                    read = await reader.read(1 << 20)
                assert read, "the server has closed the connection"
                await asyncio.sleep(0)  # `read` does not wait if bytes have arrived
                self.answered += (rest + read).count(end)
                rest = read[-len(end) + 1 :]
        finally:
            writer.close()


def set_call(number: int) -> bytes:
    return encode_set(b"b", b"%d" % number, b"v")


def get_call(number: int) -> bytes:
    return encode_bucket_key(b"b", b"%d" % number)


def batch_call(keys: int, number: int) -> bytes:
    return encode_set_many(b"b", [(b"%d" % each, b"v") for each in range(number * keys, (number + 1) * keys)])


class Sample(NamedTuple):
    """The number of keys written until a moment, and the time that the provider waited for a processor, in seconds."""

    at_s: float
    keys: int
    waited_s: float


class Samples:
    """The writes of a flood over time."""

    def __init__(self, flood: Flood, keys_per_call: int, pid: int) -> None:
        self._flood = flood
        self._keys_per_call = keys_per_call
        self._schedstat = Path(f"/proc/{pid}/schedstat")
        self._samples = [self._now()]

    def _now(self) -> Sample:
        waited_ns = int(self._schedstat.read_text().split()[1])
        return Sample(monotonic(), self._flood.answered * self._keys_per_call, waited_ns / 1e9)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self._samples.append(self._now())

    def written(self, until_s: float, window_s: float) -> int:
        """Return the number of keys that may have been written in the last `window_s` before a moment.

        The time during which other processes kept the provider from running does not count: no key was removed then.
        """
        now, start = self._now(), self._at(until_s - window_s)
        for _ in range(4):
            start = self._at(until_s - window_s - (now.waited_s - start.waited_s))
        return now.keys - start.keys + self._flood.in_flight * self._keys_per_call

    def _at(self, at_s: float) -> Sample:
        return self._samples[max(0, bisect(self._samples, at_s, key=attrgetter("at_s")) - 1)]


@pytest.mark.parametrize(("keys_per_call", "gets"), [(1, False), (1, True), (100, False), (1_000, False)], ids=str)
async def test_expired_keys_are_removed_while_calls_never_pause(
    nats_server: NatsServer, launch: Launch, keys_per_call: int, gets: bool
) -> None:
    """Batches write a key in less time than a single set. A second flood of gets must not starve the sweep either."""
    provider = launch(ON | {"ttl_ms": str(TTL_MS)})
    if keys_per_call == 1:
        writer = Flood(nats_server.port, provider.subject("set"), set_call, 2_048)
    else:
        subject = invocation_subject(provider.prefix, BATCH, "set-many")
        writer = Flood(nats_server.port, subject, partial(batch_call, keys_per_call), max(2, 4_000 // keys_per_call))
    floods = [writer, Flood(nats_server.port, provider.subject("get"), get_call, 2_048)][: 1 + gets]
    samples = Samples(writer, keys_per_call, provider.process.pid)
    running = [asyncio.create_task(flood.run()) for flood in floods]
    running.append(asyncio.create_task(samples.run()))
    for _ in range(12):
        await asyncio.sleep(0.25)
        began_s = monotonic()
        held = (await scraped(provider)).value("keys")
        assert held <= samples.written(began_s, 1.5 * TTL_MS / 1_000)
        assert not any(task.done() for task in running)
    assert writer.answered * keys_per_call > 10_000
    for flood in floods:
        flood.is_over = True
    await asyncio.gather(*running[: len(floods)])
    running[-1].cancel()


async def test_a_page_of_a_bucket_whose_keys_have_expired_has_the_keys_that_are_left(
    nats_server: NatsServer, launch: Launch
) -> None:
    """The page removes the expired keys itself, step by step, and is not empty although many steps find no key."""
    provider = launch({"batch_keys_max": "100000"})
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "stays", b"v")
        assert (await client.list_keys("b")).keys == [b"stays"]
