"""`KeyValueClient` while it is not open, and after its connection is closed. tests/integration/ calls its functions."""

from __future__ import annotations

import pytest

from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.wrpc.errors import DisconnectedError, NoProviderError
from tests.conftest import NatsServer


async def test_a_client_must_be_open(nats_server: NatsServer, connection: Connection) -> None:
    client = KeyValueClient(nats_server.url, "default.nobody")
    with pytest.raises(RuntimeError, match="the client is not open: use `async with`, or `open`"):
        await client.get("b", "k")
    await client.close()  # it was never opened, so this does nothing
    async with client:
        with pytest.raises(NoProviderError):
            await client.get("b", "k")
    with pytest.raises(RuntimeError, match="the client is not open"):
        await client.get("b", "k")
    async with KeyValueClient(connection, "default.nobody") as client:
        with pytest.raises(NoProviderError):
            await client.get("b", "k")
    assert connection.connected  # it belongs to the caller


async def test_a_client_of_a_closed_connection(nats_server: NatsServer) -> None:
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    async with KeyValueClient(connection, "default.nobody") as client, KeyValueClient(connection, "default.b") as fresh:
        with pytest.raises(NoProviderError):
            await client.get("b", "k")
        await connection.close()
        for closed in (client, fresh):
            with pytest.raises(DisconnectedError, match="connection closed"):
                await closed.get("b", "k")


@pytest.mark.parametrize("prefix", ["", "a b", "a.*", ">", "a..b", ".a"])
def test_a_prefix_is_a_subject(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"prefix: found .* allowed printable tokens without white space"):
        KeyValueClient("127.0.0.1", prefix)
