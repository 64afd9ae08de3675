"""A cluster of real NATS servers with JetStream, which can be killed, stopped and started again one by one."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from tests.conftest import NatsServer

__all__ = ["Cluster", "free_ports"]

#: An address at which nobody listens.
NOBODY = '"127.0.0.1:1"'
#: Seconds in which a server becomes the leader.
ELECTION_S = 5

OPEN_TIMEOUT_S = 5.0


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Cluster:
    """Servers that form one cluster on this machine, with file storage.

    They do not tell clients of each other, so a client always uses its proxy.

    :param ports: where each server listens for the others; None for free ports
    :param routes: where each server connects to, and nowhere else; None for the ports of all
    :ivar servers: the servers, whose names are n0, n1 and so on
    """

    def __init__(
        self, directory: Path, ports: Sequence[int] | None = None, routes: Sequence[Sequence[str]] | None = None
    ) -> None:
        ports = ports or free_ports(3)
        self.servers: list[NatsServer] = []
        for place, port in enumerate(ports):
            own = directory / f"n{place}"
            own.mkdir()
            to = [f"nats://127.0.0.1:{each}" for each in ports] if routes is None else routes[place]
            advertised = "" if routes is None else f"advertise: {NOBODY}, "  # to the other servers
            config = f"server_name: n{place}\njetstream {{ store_dir: {json.dumps(str(own / 'streams'))} }}\n"
            config += f"cluster {{ name: torture, no_advertise: true, {advertised}"
            config += f"listen: 127.0.0.1:{port}, routes: {json.dumps(to)} }}\n"
            self.servers.append(NatsServer(own, config))

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    async def ask(
        self, subject: str, parameters: Mapping[str, Any] | None = None, timeout_s: float = 2.0
    ) -> dict[str, Any]:
        """Ask the JetStream API at any server that answers.

        This always ends, while the calls of nats-py's client may wait for ever if a server stands still.

        :raises TransportError: no server is reached
        :raises TimeoutError: the one that is reached does not answer
        """
        options = ConnectionOptions(tuple(self.urls), open_timeout_s=OPEN_TIMEOUT_S, path="plain")
        connection = await Connection.open(options)
        try:
            payload = json.dumps(parameters).encode() if parameters else b""
            answer: dict[str, Any] = json.loads(await connection.request(f"$JS.API.{subject}", payload, timeout_s))
            return answer
        finally:
            await connection.close()

    async def leader(self, stream: str) -> int:
        """Return the place of a stream's leader.

        :raises LookupError: it has none
        """
        name = (await self.ask(f"STREAM.INFO.{stream}")).get("cluster", {}).get("leader")
        if not name:
            raise LookupError(stream)
        return int(name.removeprefix("n"))

    async def lead(self, stream: str, place: int) -> None:
        """Make a server the leader of a stream.

        :raises TimeoutError: another one stays the leader
        """
        preferred = {"placement": {"preferred": f"n{place}"}}
        async with asyncio.timeout(ELECTION_S):
            while await self.leader(stream) != place:
                await self.ask(f"STREAM.LEADER.STEPDOWN.{stream}", preferred)
                await asyncio.sleep(0.2)

    def stop(self) -> None:
        """Stop all servers."""
        for server in self.servers:
            if server._process.running:
                server._process.signal(signal.SIGCONT)
                server._process.signal(signal.SIGKILL)
            server._process.wait()
