"""The parts of a running provider, and how they stop in order.

A signal and the host may ask for the stop together, for example with Ctrl-C at a terminal that runs the host. A host kills
the process soon after its request. So its request shortens a stop that a signal has begun.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from keyvalue_engine import Store
from keyvalue_provider.host.links import Links
from keyvalue_provider.host.session import HostSession
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.keyvalue.snapshots import Snapshots
from keyvalue_provider.observe.exports import Exports
from keyvalue_provider.observe.other_instances import OtherInstances
from keyvalue_provider.watching.watchers import Watchers
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.server import Server
from keyvalue_transport.wrpc.errors import DisconnectedError

if TYPE_CHECKING:
    # Imported by functions only if they are used, because these imports take time.
    from keyvalue_provider.observe.metrics import Metrics
    from keyvalue_provider.redis_service import RedisService
    from keyvalue_provider.replicated import Replicated
    from keyvalue_provider.watching.replicated_watchers import ReplicatedWatchers
    from keyvalue_replica.kv_stores import StoreSum

__all__ = ["EXPORT_STOP_TIMEOUT_S", "HOST_STOP_TIMEOUT_S", "Parts"]

log = logging.getLogger("keyvalue_provider")

#: A host kills the process 300 ms after the shutdown request. The whole stop, with the flush, takes about 200 ms.
HOST_STOP_TIMEOUT_S = 0.11
FLUSH_TIMEOUT_S = 0.05
HOST_STOP_WHOLE_S = 0.2
#: Time limit for reporting the last changes to watching components.
WATCH_STOP_TIMEOUT_S = 0.02
#: Time limit for exporting the last spans and lines of the log, unless the host stops the provider.
EXPORT_STOP_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running provider, except the host session.

    :param store: the engine; with the replicated store, the copies of what is stored
    :param replicated: the replicated store; None for a store in memory
    :param snapshots: None if the store is not saved
    :param metrics: None if metrics are off
    :param redis: None if Redis clients are not served
    """

    connection: Connection
    links: Links
    store: Store | StoreSum
    replicated: Replicated | None
    snapshots: Snapshots | None
    policy: Policy
    service: Service
    watchers: Watchers | ReplicatedWatchers
    others: OtherInstances
    server: Server
    metrics: Metrics | None
    exports: Exports
    redis: RedisService | None
    background: tuple[asyncio.Task[None], ...]

    def stop_background(self) -> None:
        """Cancel the background tasks."""
        for task in self.background:
            task.cancel()

    async def stop(self, host: HostSession | None, timeout_s: float) -> bool:
        """Stop cleanly: answer the calls in flight, flush, save, and acknowledge the host's request.

        Return False if the snapshot was not saved.

        :param timeout_s: time limit for the calls in flight, unless the host asks for the stop
        """
        if host is not None:
            host.stop()
        self.others.leave()
        await self._answer_calls(host, timeout_s)
        await self.watchers.stop(WATCH_STOP_TIMEOUT_S)
        self.exports.stop()
        self.stop_background()
        try:
            await self.connection.flush(FLUSH_TIMEOUT_S)
        except DisconnectedError as error:
            log.warning("the last answers may be lost: %s", error)
        saved = self.snapshots is None or await save(self.snapshots, host)
        log.info("stopped: %d invocations answered", self.server.counts.answered)
        by_host = host is not None and host.asks_to_stop
        await self.exports.wait_stopped(ends_s_of(host) - monotonic() if by_host else EXPORT_STOP_TIMEOUT_S)
        if host is not None:
            await host.acknowledge_stop()
        return saved

    async def _answer_calls(self, host: HostSession | None, timeout_s: float) -> None:
        if host is None or not host.asks_to_stop:
            answering = self._answer_within(timeout_s)
            if await is_done_first(answering, host):
                answering.result()  # raises its error, if there is one
                return
            answering.cancel()
            await asyncio.wait((answering,))
        await self._answer_within(HOST_STOP_TIMEOUT_S)

    def _answer_within(self, timeout_s: float) -> asyncio.Future[Any]:
        if self.replicated is not None:
            self.replicated.give_up_after(timeout_s)
        return asyncio.gather(*(part.stop(timeout_s) for part in (self.server, self.redis) if part is not None))


async def save(snapshots: Snapshots, host: HostSession | None) -> bool:
    """Save the last changes. Return False if that failed. If the host asks for the stop, a fork saves."""
    if host is None or not host.asks_to_stop:
        saving = asyncio.create_task(snapshots.save_last())
        if await is_done_first(saving, host):
            return saving.result()
        saving.cancel()
        await asyncio.wait((saving,))
    return await snapshots.save_apart(ends_s_of(host))


async def is_done_first(work: asyncio.Future[Any], host: HostSession | None) -> bool:
    """Wait until the work is done, or the host asks for the stop. Return True if the work is done."""
    if host is None:
        await asyncio.wait((work,))
        return True
    asking = asyncio.create_task(host.stop_asked.wait())
    await asyncio.wait((work, asking), return_when=asyncio.FIRST_COMPLETED)
    asking.cancel()
    return work.done()


def ends_s_of(host: HostSession | None) -> float:
    """Return when a stop must end that the host asked for, on the monotonic clock."""
    assert host is not None
    return host.stop_asked_s + HOST_STOP_WHOLE_S
