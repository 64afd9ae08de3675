"""Clients of a NATS server that goes away or stalls: a call that has ended is never carried out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest
from nats.errors import StaleConnectionError

from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.wrpc.errors import DisconnectedError, InvocationTimeoutError, NoProviderError
from tests.conftest import DEADLINE_S, Launch, NatsServer, in_thread
from tests.transport.nats.in_process import until

MIB = 1024 * 1024


async def set_once_served(client: KeyValueClient, bucket: str, key: str, value: bytes) -> None:
    """Set a key. Try again while nobody serves the call: the provider may connect again after the client."""
    while True:
        try:
            return await client.set(bucket, key, value)
        except NoProviderError:
            await asyncio.sleep(0.01)


async def test_calls_that_failed_while_nats_was_away_are_never_carried_out(
    new_nats_server: Callable[[], NatsServer], launch: Launch
) -> None:
    """They were sent after the reconnect, and overwrote what another client had written since."""
    server = new_nats_server()
    provider = launch(lattice_rpc_url=server.url)
    async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set_many("b", {"written": b"before", "deleted": b"before"})
        assert await client.increment("b", "counter") == 1
        await in_thread(server.kill)
        connection = client._connection
        await until(lambda: connection is not None and not connection.connected)
        client.timeout_s = 0.05
        failing = (
            *(client.increment("b", "counter") for _ in range(3)),
            *(client.set("b", "written", b"failed"), client.set("b", "new", b"failed"), client.delete("b", "deleted")),
            client.set("b", "large", bytes(4 * MIB)),
        )
        for outcome in await asyncio.gather(*failing, return_exceptions=True):
            assert isinstance(outcome, DisconnectedError)
            assert str(outcome).endswith("not sent within 0.05 s: NATS is not connected")
        client.timeout_s = DEADLINE_S
        cancelled = asyncio.create_task(client.increment("b", "counter"))
        patient = asyncio.create_task(set_once_served(client, "b", "patient", b"in time"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await in_thread(server.start)
        async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as other:
            await in_thread(provider.wait_for, "connected again")
            await other.set("b", "written", b"by another client")
            await patient
            for reader in (client, other):
                found = await reader.get_many("b", ["written", "deleted", "counter", "patient", "new", "large"])
                assert found == [b"by another client", b"before", b"1", b"in time", None, None]


async def test_a_call_that_found_no_room_is_never_carried_out(
    new_nats_server: Callable[[], NatsServer], launch: Launch
) -> None:
    """NATS reads nothing for a while. Such calls waited in nats-py's buffer, and some of them hung for ever."""
    server = new_nats_server()
    provider = launch(lattice_rpc_url=server.url)
    value = bytes(MIB - 4096)  # fits in one message
    async with KeyValueClient(server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.exists("b", "k")
        client.timeout_s = 0.5
        with server.silence():
            calls = (client.set("b", f"{number}", value) for number in range(40))
            async with asyncio.timeout(DEADLINE_S):
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
        client.timeout_s = DEADLINE_S
        kinds = [type(outcome) for outcome in outcomes]
        assert set(kinds) == {DisconnectedError, InvocationTimeoutError}
        unsent = [f"{number}" for number, kind in enumerate(kinds) if kind is DisconnectedError]
        assert "not sent within 0.5 s: the NATS server takes no more data" in str(outcomes[int(unsent[0])])
        assert [await client.exists("b", key) for key in unsent] == [False] * len(unsent)
        assert client._invoker is not None
        assert client._invoker._connection.reconnects == 0


@pytest.mark.parametrize("path", ["plain", "direct"])
async def test_a_lost_connection_takes_its_unsent_bytes_along(path: str) -> None:
    """A network that heals delivered them, long after the client had reconnected to another server."""
    first: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    first = asyncio.get_running_loop().create_future()
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"max_payload": 1048576}\r\n')
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        if not first.done():
            first.set_result((reader, writer))
        else:
            while line := await reader.readline():
                if line == b"PING\r\n":
                    writer.write(b"PONG\r\n")
            writer.close()
            ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        connection = await Connection.open(ConnectionOptions((f"nats://127.0.0.1:{port}",), path=path))
        reader, writer = await first
        sent = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    await connection.publish("a.subject", bytes(MIB))
                    sent += 1
        await connection._client._process_op_err(StaleConnectionError())
        await until(lambda: connection.reconnects == 1)
        received = 0
        with pytest.raises(ConnectionResetError):
            while piece := await reader.read(MIB):
                received += len(piece)
        assert received < sent * MIB
        await connection.close()
        await ended.wait()
        writer.close()
