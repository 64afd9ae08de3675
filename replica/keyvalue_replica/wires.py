"""The subscriptions of followers: how acknowledgements and deliveries reach their cores.

OwnWire       two subscriptions and four quick readers for one core
SharedWires   the same for any number of cores: a number in the reply subject, or the consumer's name, names the core

<inbox>.<number>.<token>        an acknowledgement for the core with this number
<inbox>.<number>.<consumer>.d   where a consumer delivers; a delivery's own subject is that of its key
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from keyvalue_replica.core import Core
from keyvalue_replica.headed import HeadedDeliveries, SharedHeadedDeliveries
from keyvalue_replica.quick import Acknowledgements, Barriers, Deliveries
from keyvalue_replica.shared_quick import SharedAcknowledgements, SharedBarriers, SharedDeliveries
from keyvalue_transport.nats.connection import Connection, Subscription

__all__ = ["OwnWire", "SharedWires", "Wire"]


class Wire(Protocol):
    """The subscriptions of one core.

    :ivar inbox: the prefix of the subjects for its acknowledgements, without the last point
    """

    @property
    def inbox(self) -> str: ...

    async def open(self, core: Core, /) -> None:
        """Pass acknowledgements to the core from now on."""

    async def follow(self, consumer: str, /) -> str:
        """Pass the deliveries of a new consumer to the core from now on. Return the subject to deliver to."""

    async def unfollow(self) -> None:
        """Pass no more deliveries of the last consumer to the core. They could advance the position of an emptied engine."""

    async def close(self) -> None:
        """Pass nothing to the core any more."""


class OwnWire:
    """The wire of a core that shares its subscriptions with nobody."""

    def __init__(self, connection: Connection) -> None:
        self.inbox = connection.new_inbox()
        self._connection = connection
        self._core: Core
        self._acknowledgements: Acknowledgements
        self._deliveries: Subscription | None = None

    async def open(self, core: Core) -> None:
        """Subscribe to acknowledgements."""
        self._core = core
        self._acknowledgements = Acknowledgements(core, self.inbox)
        await self._connection.subscribe_frames(f"{self.inbox}.*", core.acknowledge, (self._acknowledgements,))

    async def follow(self, consumer: str) -> str:
        """Subscribe to deliveries."""
        core, inbox = self._core, self._connection.new_inbox()
        plain = Deliveries(core, consumer, self._acknowledgements)
        quick = plain, HeadedDeliveries(core, consumer), Barriers(core, consumer)
        self._deliveries = await self._connection.subscribe_frames(inbox, core.deliver, quick)
        return inbox

    async def unfollow(self) -> None:
        """Unsubscribe from deliveries."""
        deliveries, self._deliveries = self._deliveries, None
        if deliveries is not None:
            await self._connection.drain([deliveries], 0.0)

    async def close(self) -> None:
        """Do nothing, because the connection is about to be closed."""


class SharedWires:
    """What many cores share: a subscription to acknowledgements, and quick readers."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.inbox = connection.new_inbox()
        self.cores: dict[bytes, Core] = {}
        self.by_consumer: dict[bytes, Core] = {}
        self._numbers = 0
        self._opening = asyncio.Lock()
        self._subscription: Subscription | None = None

    def wire(self) -> SharedWire:
        """Return the wire of one more core."""
        self._numbers += 1
        return SharedWire(self, f"{self._numbers}")

    async def open(self) -> None:
        """Subscribe, unless that is done.

        :raises DisconnectedError: the connection is closed or lost
        """
        async with self._opening:
            if self._subscription is None:
                quick = (
                    SharedAcknowledgements(self.inbox, self.cores),
                    SharedDeliveries(self.by_consumer),
                    SharedHeadedDeliveries(self.by_consumer, SharedBarriers(self.by_consumer)),
                )
                self._subscription = await self.connection.subscribe_frames(f"{self.inbox}.*.*", self._take, quick)

    def _take(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        core = self.cores.get(subject.rsplit(b".", 2)[1])
        if core is not None:
            core.acknowledge(subject, reply, block, payload)


class SharedWire:
    """One core's part of what is shared, and its subscription to deliveries."""

    def __init__(self, wires: SharedWires, number: str) -> None:
        self.inbox = f"{wires.inbox}.{number}"
        self._wires = wires
        self._number = number.encode()
        self._consumer = b""
        self._deliveries: Subscription | None = None

    async def open(self, core: Core) -> None:
        """Pass acknowledgements to the core."""
        await self._wires.open()
        self._wires.cores[self._number] = core

    async def follow(self, consumer: str) -> str:
        """Pass the deliveries of a consumer to the core."""
        core, connection = self._wires.cores[self._number], self._wires.connection
        subject = connection.new_inbox()
        self._deliveries = await connection.subscribe_frames(subject, core.deliver)
        self._consumer = consumer.encode()
        self._wires.by_consumer[self._consumer] = core
        return subject

    async def unfollow(self) -> None:
        """Ignore the deliveries of the last consumer."""
        self._wires.by_consumer.pop(self._consumer, None)
        deliveries, self._deliveries = self._deliveries, None
        if deliveries is not None:
            await self._wires.connection.drain([deliveries], 0.0)

    async def close(self) -> None:
        """Ignore everything."""
        self._wires.cores.pop(self._number, None)
        await self.unfollow()
