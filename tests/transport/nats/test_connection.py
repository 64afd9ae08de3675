"""The life of a connection where nats-py's client ends before it; tests/integration/test_server.py and test_credentials.py have the rest."""

from __future__ import annotations

import asyncio

import pytest

from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from tests.conftest import DEADLINE_S, NatsServer


class Back:
    """Tells that a connection is back."""

    def __init__(self, connection: Connection) -> None:
        self._back = asyncio.Event()
        connection.on_reconnected = self._back.set

    async def wait(self) -> None:
        await asyncio.wait_for(self._back.wait(), DEADLINE_S)


async def test_a_client_that_is_given_up_as_it_comes_back_is_replaced(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py says that it has given up a client once, and nobody listens while another one takes its place."""
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    back, flush = Back(connection), connection.flush
    lost: list[object] = []

    async def flush_and_lose(timeout_s: float) -> None:
        await flush(timeout_s)
        if not lost:
            lost.append(connection._client)
            await connection._client.close()

    with monkeypatch.context() as patches:
        patches.setattr(connection, "flush", flush_and_lose)
        await connection._client.close()
        await back.wait()
    assert lost
    await connection.flush(DEADLINE_S)
    assert (connection.connected, connection.reconnects, connection.failed) == (True, 1, None)
    await connection.close()
