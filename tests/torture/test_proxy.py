"""The proxy passes bytes on, holds them, delays them, and cuts connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import monotonic

import pytest

from tests.torture.cluster import free_ports
from tests.torture.proxy import DIRECTIONS, PIECES_MAX, READ_BYTES, Proxy

pytestmark = pytest.mark.timeout(30)


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """Return a proxy. Its first target does not listen, and the second one sends back what it gets."""

    async def send_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(1000):
                writer.write(piece)
        writer.close()

    server = await asyncio.start_server(send_back, "127.0.0.1", 0)
    proxy = Proxy([*free_ports(1), server.sockets[0].getsockname()[1]])
    yield proxy
    await proxy.close()
    server.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Ends]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    writer.write(b"1")
    assert await reader.readexactly(1) == b"1"
    yield reader, writer
    writer.close()


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_held_bytes_arrive_later_in_order_and_delays_do_not_add_up(proxy: Proxy, direction: str) -> None:
    async with connected(await proxy.open()) as (reader, writer):
        proxy.hold(direction)
        writer.write(b"2")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        proxy.release(direction)
        assert await reader.readexactly(1) == b"2"
        proxy.delays_s[direction] = 0.3
        began_s = monotonic()
        for piece in (b"3", b"4", b"5"):
            writer.write(piece)
            await asyncio.sleep(0.02)
        assert await reader.readexactly(3) == b"345"
        assert 0.3 <= monotonic() - began_s < 0.6


async def test_a_cut_connection_is_reset_and_another_one_works(proxy: Proxy) -> None:
    url = await proxy.open()
    async with connected(url) as (reader, _):
        proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    async with connected(url) as (reader, writer):
        writer.write_eof()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)


async def test_the_proxy_names_the_consumer_and_the_server(proxy: Proxy) -> None:
    async with connected(await proxy.open()) as (reader, writer):
        assert proxy.consumer == ""
        frame = b"PUB $JS.API.CONSUMER.CREATE.KV_b.c1.$KV.b.> _INBOX.x 2\r\n{}\r\n"
        writer.write(frame)
        assert await reader.readexactly(len(frame)) == frame
        assert proxy.consumer == "c1"
        assert proxy.target == proxy._targets[1]


async def test_answers_are_lost_after_the_server_has_taken_a_message(proxy: Proxy) -> None:
    url = await proxy.open()
    async with connected(url) as (reader, writer):
        losing = asyncio.create_task(proxy.lose_answers(b"PUB x", 0.1))
        writer.write(b"other\r\nHPUB x\r\n")
        assert await reader.readexactly(15) == b"other\r\nHPUB x\r\n"
        writer.write(b"before\r\nPUB x 1\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
        await losing
    async with connected(url):
        pass  # answers pass again


async def test_a_full_connection_that_is_held_can_be_cut(proxy: Proxy) -> None:
    async with connected(await proxy.open()) as (_, writer):
        for direction in ("down", "up"):  # what comes back fills the way down
            proxy.hold(direction)
            for _ in range(4 * PIECES_MAX):
                writer.write(b"2" * READ_BYTES)
                await asyncio.sleep(0)
            await asyncio.sleep(0.2)
        proxy.cut()
        for direction in DIRECTIONS:
            proxy.release(direction)
        await asyncio.wait_for(proxy.close(), 5)
