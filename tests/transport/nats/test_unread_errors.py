"""The error of a server at its limit of connections, at the first connection and at a reconnect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.wrpc.errors import ConnectError
from tests.conftest import PATHS, NatsServer, in_thread
from tests.transport.nats.in_process import until

EXCEEDED = "'maximum connections exceeded'"


@pytest.mark.parametrize("path", PATHS)
async def test_a_server_at_its_limit_of_connections_says_so(
    new_nats_server: Callable[[str], NatsServer], caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """A reconnect logs the reason once, although each attempt fails for this reason."""
    caplog.set_level(logging.DEBUG, "keyvalue_transport")
    server = new_nats_server("max_connections: 1")
    connection = await Connection.open(ConnectionOptions((server.url,), path=path))
    with pytest.raises(ConnectError, match=rf"no NATS server reached within 1\.5 s: {EXCEEDED}$"):
        await Connection.open(ConnectionOptions((server.url,), open_timeout_s=1.5, path=path))
    assert f"NATS: {EXCEEDED}; trying again for up to 1.5 s" in caplog.messages
    await in_thread(server.kill)

    attempts = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.write(b"INFO {}\r\n-ERR %b\r\n" % EXCEEDED.encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", server.port):
        await until(lambda: attempts >= 6)
    await connection.close()
    assert caplog.messages.count(f"NATS: {EXCEEDED}") == 1
    assert caplog.messages.count("NATS: Connection refused") <= 1
