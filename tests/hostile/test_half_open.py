"""Half-open invocations end to end: long headers, one caller that takes everything, and many large sets at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import nats
import pytest
from nats.aio.client import Client

from keyvalue_transport.keyvalue.interface import encode_unit_result
from keyvalue_transport.keyvalue.store import encode_set
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, PATHS, Launch, NatsServer, Provider, RawInvocation, in_thread, settled
from tests.integration.test_metrics import ON, Endpoint, scraped

MIB = 1024 * 1024
OK = encode_unit_result(None)
#: The parameters of a set, up to its value, which does not come.
PIECE = encode_set(b"b", b"k", b"x")[:-1]
#: In this time, a provider reads a few MB.
MOMENT_S = 0.003
#: Half-open invocations stay until the test ends.
HELD = ON | {"half_open_timeout_ms": "600_000", "stop_timeout_ms": "100"}


def resident_bytes(provider: Provider) -> int:
    text = Endpoint.of(provider).get("/metrics").text
    (line,) = (line for line in text.splitlines() if line.startswith("process_resident_memory_bytes "))
    return int(float(line.split()[1]))


@pytest.mark.parametrize("path", PATHS)
async def test_long_headers_take_no_memory(path: str, launch: Launch, raw: Client) -> None:
    """A source id of almost 1 MB took 4 MB for each call, and only its parameters were counted."""
    provider = launch(HELD | {"transport": path, "half_open_bytes_max": str(MIB)})
    source_id = "a\U0001f600" * (900_000 // 5)
    before = await in_thread(resident_bytes, provider)
    for _ in range(100):
        invocation = await RawInvocation.begin(raw, provider.subject("set"), PIECE, {"source-id": source_id})
        await invocation.handshake()
    assert (await scraped(provider)).value("half_open_invocations") == 100
    assert await in_thread(resident_bytes, provider) - before < 32 * MIB


@pytest.mark.parametrize("path", PATHS)
async def test_one_caller_leaves_places_to_others(
    path: str, launch: Launch, raw: Client, nats_server: NatsServer
) -> None:
    provider = launch(HELD | {"transport": path})
    params = encode_set(b"b", b"k", bytes(16_000_000))[:10]
    for _ in range(3_000):
        await raw.publish(provider.subject("set"), params, "nobody", {"source-id": "greedy"})
    await settled(raw)
    async with KeyValueClient(nats_server.url, provider.prefix, source_id="modest", timeout_s=DEADLINE_S) as client:
        await client.set("b", "k", bytes(16 * MIB))
    found = await scraped(provider)
    assert found.value("half_open_invocations") == 256
    assert found.value("refused_invocations_total") == 3_000 - 256


class LargeSet:
    """A client with a connection of its own, which sets one large value."""

    def __init__(self, client: Client, provider: Provider, value_bytes: int, source_id: str) -> None:
        params = encode_set(b"b", source_id.encode(), bytes(value_bytes))
        piece_bytes = client.max_payload - 1024
        self._pieces = [params[at : at + piece_bytes] for at in range(0, len(params), piece_bytes)]
        self._client = client
        self._subject = provider.subject("set")
        self._headers = {"source-id": source_id}

    async def begin(self) -> None:
        self._invocation = await RawInvocation.begin(self._client, self._subject, self._pieces[0], self._headers)

    async def send_rest(self) -> None:
        """Send everything else at once when the handshake comes, as clients in other languages do."""
        await self._invocation.send(await self._invocation.handshake(), *self._pieces[1:], b"")

    async def is_accepted(self) -> bool:
        """Return True if the handshake has arrived."""
        await settled(self._client)
        return self._invocation.unread[0] > 0

    async def result(self) -> bytes:
        return await self._invocation.result()


@contextmanager
def stopped(provider: Provider) -> Iterator[None]:
    """Stop a provider for a while, as if it were very late."""
    provider.signal(signal.SIGSTOP)
    os.waitpid(provider.process.pid, os.WUNTRACED)
    try:
        yield
    finally:
        provider.signal(signal.SIGCONT)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("number", "value_bytes", "callers"), [(12, 8 * MIB, 12), (12, 8 * MIB, 1), (60, 3 * MIB, 60)])
async def test_many_large_sets_at_once_succeed(
    number: int, value_bytes: int, callers: int, path: str, launch: Launch, new_nats_server: Callable[..., NatsServer]
) -> None:
    """All handshakes at once made the NATS server cut the provider off, as a slow consumer. Now most of them wait.

    The provider runs for moments only, and its callers are quick. The NATS server counts output until all of it is
    written that it began to write together. So the parameters of those that were admitted later are added.
    """
    nats_server = new_nats_server()
    provider = launch(HELD | {"transport": path}, lattice_rpc_url=nats_server.url)
    async with AsyncExitStack() as stack:
        sets = []
        for index in range(number):
            client = await nats.connect(nats_server.url, pending_size=2 * value_bytes)
            stack.push_async_callback(client.close)
            sets.append(LargeSet(client, provider, value_bytes, f"caller {index % callers}"))
            await sets[-1].begin()
        begun = await scraped(provider)
        async with asyncio.timeout(DEADLINE_S):
            while begun.value("half_open_invocations") < number:  # the provider may not have read all of them yet
                begun = await scraped(provider)
        waiting = sets
        numbers = []
        while waiting:
            with stopped(provider):
                accepted = [one for one in waiting if await one.is_accepted()]
                await asyncio.gather(*(one.send_rest() for one in accepted))
                for one in accepted:
                    assert await one.is_accepted() is False  # the NATS server has the pieces
            numbers.append(len(accepted))
            waiting = [one for one in waiting if one not in accepted]
            await asyncio.sleep(MOMENT_S)
        assert await asyncio.gather(*(one.result() for one in sets)) == [OK] * number
    found = await scraped(provider)
    assert found.value("nats_reconnects_total") == found.value("refused_invocations_total") == 0
    assert found.value("half_open_invocations") == 0
    assert {begun.value("half_open_queued"), found.value("half_open_queued")} == {number - numbers[0], 0}
    assert begun.value("half_open_expected_bytes") <= 32 * MIB
    assert found.value("half_open_bytes") == found.value("half_open_expected_bytes") == 0
