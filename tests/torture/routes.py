"""The network between the servers of a cluster: a proxy for each way, so that a server can be cut off."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

from tests.torture.cluster import free_ports
from tests.torture.proxy import DIRECTIONS, Proxy

__all__ = ["Routes"]


class Routes:
    """The proxies between servers. Each server connects to each other one, and the servers agree on one connection.

    :ivar ports: where each server must listen for others
    :ivar urls: where each server must connect to
    """

    def __init__(self, number: int = 3) -> None:
        self.ports = free_ports(number)
        self.urls = [[f"nats://127.0.0.1:{port}"] for port in self.ports]  # a server ignores its own
        self._proxies: dict[tuple[int, int], Proxy] = {}

    async def open(self) -> None:
        """Open the proxies."""
        for place, other in permutations(range(len(self.ports)), 2):
            self._proxies[place, other] = proxy = Proxy([self.ports[other]])
            self.urls[place].append(await proxy.open())

    def part(self, place: int) -> None:
        """Pass nothing on between a server and the others until `join`."""
        for proxy in self._of(place):
            for direction in DIRECTIONS:
                proxy.hold(direction)

    def join(self, place: int, with_loss: bool) -> None:
        """Let a server and the others reach each other again. The bytes that were held arrive now, or are lost."""
        for proxy in self._of(place):
            if with_loss:
                proxy.cut()
            for direction in DIRECTIONS:
                proxy.release(direction)

    async def close(self) -> None:
        """End all connections."""
        for proxy in self._proxies.values():
            await proxy.close()

    def _of(self, place: int) -> Iterator[Proxy]:
        return (proxy for pair, proxy in self._proxies.items() if place in pair)
