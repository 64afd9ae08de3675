"""The routes between servers pass bytes on, and part one server from the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress

import pytest

from tests.torture.routes import Routes

pytestmark = pytest.mark.timeout(30)

Lines = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def routes() -> AsyncIterator[Routes]:
    """Return routes between three servers that send back each line."""

    async def send_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    routes = Routes()
    await routes.open()
    async with AsyncExitStack() as stack:
        for port in routes.ports:
            await stack.enter_async_context(await asyncio.start_server(send_back, "127.0.0.1", port))
        yield routes
        await routes.close()


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Lines]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    with closing(writer):
        yield reader, writer


async def echo(connection: Lines, line: bytes, timeout_s: float = 10) -> bytes:
    connection[1].write(line)
    return await asyncio.wait_for(connection[0].readline(), timeout_s)


@pytest.mark.parametrize("with_loss", [False, True])
async def test_a_server_is_parted_from_the_others_and_joins_them(routes: Routes, with_loss: bool) -> None:
    assert [urls[0].endswith(f":{port}") for urls, port in zip(routes.urls, routes.ports, strict=True)] == [True] * 3
    urls = [url for urls in routes.urls for url in urls[1:]]
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(url)) for url in urls]
        for connection in connections:
            assert await echo(connection, b"before\n") == b"before\n"
        routes.part(1)
        between_0_and_2 = connections[1], connections[4]
        away = [each for each in connections if each not in between_0_and_2]
        for connection in away:
            with pytest.raises(TimeoutError):
                await echo(connection, b"parted\n", 0.2)
        for connection in between_0_and_2:
            assert await echo(connection, b"parted\n") == b"parted\n"
        routes.join(1, with_loss)
        for reader, _ in away:
            arrived = b"" if with_loss else b"parted\n"
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.readline(), 10) == arrived
        for url in urls:
            assert await echo(await stack.enter_async_context(connected(url)), b"after\n") == b"after\n"
