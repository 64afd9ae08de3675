"""The needs of a follower: the server that answers calls, and the parts that the followers of many KV buckets share."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from keyvalue_engine import Store
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.reading_order import ReadingOrder
from keyvalue_replica.reservations import Reservations
from keyvalue_replica.wires import SharedWires

__all__ = ["Company", "Serving"]


class Serving(Protocol):
    """The server of a provider. It takes calls only while the instance follows the stream."""

    async def join(self) -> None: ...

    async def leave(self) -> None: ...


class Company(NamedTuple):
    """What the followers of many KV buckets with plain names share. Somebody else calls their `tick`.

    :ivar store: the engine, which holds each KV bucket as one bucket
    """

    store: Store
    clock: ServerClock
    reservations: Reservations
    wires: SharedWires
    reading: ReadingOrder
