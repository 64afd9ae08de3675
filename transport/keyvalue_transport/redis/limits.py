"""The addresses and limits of a listener."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Address", "ListenerLimits"]


class Address(NamedTuple):
    """A TCP address, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return self.path or (f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}")


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """The limits of a listener.

    :ivar request_bytes_max: limit for one request
    :ivar held_bytes_max: limit for the incomplete requests of all connections together
    :ivar unsent_bytes_max: limit for the output that all clients together do not read
    :ivar idle_timeout_s: time after which an idle connection is closed; 0 for never
    """

    connections_max: int = 10_000
    request_bytes_max: int = 64 * 1024 * 1024
    held_bytes_max: int = 256 * 1024 * 1024
    unsent_bytes_max: int = 256 * 1024 * 1024
    idle_timeout_s: float = 0.0
