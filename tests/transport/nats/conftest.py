"""Servers and connections in this process, over a real NATS server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import nats
import pytest

from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.server import Server
from keyvalue_transport.wrpc.handler import Handler
from keyvalue_transport.wrpc.invocation import InvocationLimits
from tests.conftest import DEADLINE_S, NatsServer
from tests.transport.nats.in_process import INSTANCE, PREFIXES, Serve, Setup


@pytest.fixture
async def serve(
    nats_server: NatsServer, new_nats_server: Callable[[str], NatsServer], path: str
) -> AsyncIterator[Serve]:
    """Start servers of the handlers given by name. They stop before the NATS servers that the test started."""
    async with AsyncExitStack() as stack:

        async def start(
            handlers: dict[str, Handler], limits: InvocationLimits | None = None, url: str = nats_server.url
        ) -> Setup:
            connection = await Connection.open(ConnectionOptions((url,), path=path))
            stack.push_async_callback(connection.close)
            server = Server(connection, next(PREFIXES), limits)
            server.add(INSTANCE, handlers)
            await server.start()
            await connection.flush(DEADLINE_S)
            raw = await nats.connect(url)
            stack.push_async_callback(raw.close)
            setup = Setup(server, connection, raw)
            stack.push_async_callback(stop, setup)
            return setup

        async def stop(setup: Setup) -> None:
            if not setup.stopped:
                await setup.stop(0.5)

        yield start


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    yield connection
    await connection.close()
