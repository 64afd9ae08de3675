"""The watchers with the replicated store: each is told by one of the instances.

    stream ── ChangeFeed ── DurableDelivery ── on-set, on-delete ──> component       (the pinned instance)
    engine ── a key expired ── Expiries ── a delete ──> stream                       (every instance)

`ChangeFeed` decides which instance tells a watcher, and `Expiries` makes deletes of expired keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from hashlib import sha256

from keyvalue_provider.host.links import LinkDefinition, LinkKey, Links
from keyvalue_provider.watching.durable_delivery import DurableDelivery
from keyvalue_provider.watching.patterns import Pattern
from keyvalue_provider.watching.queue import WatchCounts, WatchLimits
from keyvalue_provider.watching.routes import WatchRoutes, expiry_observer
from keyvalue_provider.watching.watchers import CANCEL_TIMEOUT_S, WatchingLinks, invoker_of
from keyvalue_replica.change_feed import ChangeFeed
from keyvalue_replica.expiries import Expiries
from keyvalue_replica.follower import Follower
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.invoker import Invoker

__all__ = ["ReplicatedWatchers"]


class Watcher:
    """One watching link."""

    __slots__ = ("delivery", "feed", "invoker")

    def __init__(self, delivery: DurableDelivery, feed: ChangeFeed, invoker: Invoker) -> None:
        self.delivery = delivery
        self.feed = feed
        self.invoker = invoker


class ReplicatedWatchers:
    """The watchers of one provider, as one instance serves them. It has the methods of `Watchers`.

    Use this class only in the event loop's thread. Other threads may read `counts` and `queue_length`.

    :param lattice: the lattice's name, which is the first part of components' subjects
    :param links: the host's links; call `links_changed` at the start and after each change
    """

    def __init__(
        self, connection: Connection, lattice: str, follower: Follower, links: Links, limits: WatchLimits
    ) -> None:
        self.counts = WatchCounts()
        self._connection = connection
        self._lattice = lattice
        self._follower = follower
        self._watching = WatchingLinks(links, lattice)
        self._limits = limits
        self._watchers: dict[LinkKey, Watcher] = {}
        self._deleting: dict[LinkKey, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._expiries = Expiries(follower.core, limits.queue_events, self._drop)
        self._routes: WatchRoutes[LinkKey] = WatchRoutes(
            follower.core.store, partial(expiry_observer, self._expiries.add)
        )
        self._stopped = False

    @property
    def queue_length(self) -> int:
        """The number of changes that this instance holds, for all watchers. Any thread may read this number."""
        return sum(watcher.delivery.queue_length for watcher in self._watchers.copy().values())

    def faults(self) -> list[str]:
        """Return why watchers are told nothing, one line for each."""
        return [f"{each.feed.about}: {each.feed.fault}" for each in self._watchers.values() if each.feed.fault]

    def links_changed(self, keys: Iterable[LinkKey]) -> None:
        """Apply the links with these keys. Record each faulty link in `links`.

        If a link has changed, its new options hold for changes after those that this instance has applied.
        """
        changed = self._watching.take(keys)
        if self._stopped:
            return
        for key, watching in changed.items():
            if watching is not None:
                link, watch = watching
                if key not in self._watchers:
                    self._watchers[key] = self._watcher(link)
                self._watchers[key].delivery.open(watch, self._follower.applied)
                self._observe(key, watch.patterns)
            elif key in self._watchers:
                self._observe(key, ())
                self._delete(key)

    async def stop(self, timeout_s: float) -> None:
        """Wait for the calls in flight for at most `timeout_s`. Leave the rest to other instances."""
        self._stopped = True
        self._follower.core.store.observe(None)
        self._follower.core.report_deletes(None)
        watchers = self._watchers.values()
        for watcher in watchers:
            watcher.delivery.pause()
        if calls := self._calls():
            await asyncio.wait(calls, timeout=timeout_s)
        tasks = [*self._calls(), *self._deleting.values(), *self._closing]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)
        await asyncio.gather(*(watcher.feed.stop() for watcher in watchers))

    def _calls(self) -> list[asyncio.Task[bool]]:
        return [call for watcher in self._watchers.values() for call in watcher.delivery.calls]

    def _watcher(self, link: LinkDefinition) -> Watcher:
        invoker = invoker_of(link, self._connection)
        name = f"{link.target} ({link.name})"
        delivery = DurableDelivery(
            name,
            f"{self._lattice}.{link.target}",
            invoker,
            lambda: self._connection.connected,
            self._limits,
            self.counts,
        )
        feed = ChangeFeed(
            self._connection,
            self._follower,
            consumer_of(link.key),
            f"watcher {name}",
            delivery,
            self._limits.queue_events,
        )
        delivery.feed = feed
        feed.start(self._deleting.get(link.key))
        return Watcher(delivery, feed, invoker)

    def _delete(self, key: LinkKey) -> None:
        watcher = self._watchers.pop(key)
        self._drop(watcher.delivery.close())
        before = self._deleting.get(key)
        deleting = self._deleting[key] = asyncio.create_task(self._delete_consumer(watcher, before))
        deleting.add_done_callback(lambda task: self._deleting.pop(key) if self._deleting.get(key) is task else None)

    async def _delete_consumer(self, watcher: Watcher, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        await watcher.feed.delete()
        closing = asyncio.create_task(_close(watcher))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _drop(self, number: int = 1) -> None:
        with self.counts.lock:
            self.counts.dropped += number

    def _observe(self, key: LinkKey, patterns: Iterable[Pattern]) -> None:
        """Let a delete be published for each expired key whose deletion is watched."""
        self._routes.put(key, [pattern for pattern in patterns if pattern.deletes])
        self._follower.core.report_deletes(self._expiries.note_delete if self._routes else None)


async def _close(watcher: Watcher) -> None:
    """Close the invoker after the last call."""
    if calls := watcher.delivery.calls:
        await asyncio.wait(calls)
    await watcher.invoker.close()


def consumer_of(key: LinkKey) -> str:
    """Return the name of a link's consumer. All instances of a provider use the same."""
    return f"watch-{sha256(chr(0).join(key).encode()).hexdigest()[:32]}"
