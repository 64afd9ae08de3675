"""The watchers with the replicated store: each is told by one of the instances.

    stream ── ChangeFeed ── DurableDelivery ── on-set, on-delete ──> component       (the pinned instance)
    engine ── a key expired ── Expiries ── a delete ──> stream                       (every instance)

With encoded names, a link has one feed: that of the provider's own KV bucket. With plain names, it has one for each KV
bucket that its patterns name. A pattern that names none follows the KV buckets that other links name.

`ChangeFeed` decides which instance tells a watcher, and `Expiries` makes deletes of expired keys.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Protocol, TypeAlias

from keyvalue_engine import StoreError
from keyvalue_provider.config.options import PLAIN
from keyvalue_provider.host.links import LinkDefinition, LinkKey, Links
from keyvalue_provider.watching.durable_delivery import DurableDelivery
from keyvalue_provider.watching.patterns import Pattern, Watch
from keyvalue_provider.watching.queue import WatchCounts, WatchLimits
from keyvalue_provider.watching.routes import WatchRoutes, expiry_observer
from keyvalue_provider.watching.watchers import CANCEL_TIMEOUT_S, WatchingLinks, invoker_of
from keyvalue_replica.change_feed import ChangeFeed
from keyvalue_replica.core import Core
from keyvalue_replica.errors import NotStoredError
from keyvalue_replica.expiries import Expiries
from keyvalue_replica.follower import Follower
from keyvalue_replica.open_bucket import KvPlace
from keyvalue_replica.open_buckets import OpenBuckets
from keyvalue_replica.plain_layout import check_bucket_name, check_key
from keyvalue_replica.watched_bucket import WatchedBucket
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.invoker import Invoker

__all__ = ["ReplicatedWatchers"]

log = logging.getLogger(__name__)

NO_BUCKET = "no pattern names a bucket (SET@bucket/key), and no link names a KV bucket"
#: A link, and the KV bucket that is watched; None for the provider's own one.
WatcherKey: TypeAlias = tuple[LinkKey, KvPlace | None]


class Stores(Protocol):
    """The replicated store of the provider.

    :ivar follower: follows the provider's own KV bucket; None if it has none
    :ivar plain: the KV buckets with plain names
    :ivar keys: the form of names if a link sets none: `encoded` or `plain`
    :ivar js_domain: the JetStream domain of KV buckets with plain names if a link sets none
    """

    follower: Follower | None
    plain: OpenBuckets
    keys: str
    js_domain: str


class Watcher:
    """One watching link at one KV bucket."""

    __slots__ = ("delivery", "feed", "invoker", "replica")

    def __init__(
        self, replica: Follower | WatchedBucket, delivery: DurableDelivery, feed: ChangeFeed, invoker: Invoker
    ) -> None:
        self.replica = replica
        self.delivery = delivery
        self.feed = feed
        self.invoker = invoker


class ExpiredKeys:
    """Lets a delete be published for each expired key whose deletion is watched, in any number of KV buckets.

    :param keys_max: the number of keys of a KV bucket whose deletes are not stored yet
    """

    def __init__(self, stores: Stores, keys_max: int, counts: WatchCounts) -> None:
        self._keys_max = keys_max
        self._counts = counts
        self._plain: dict[bytes, Expiries] = {}  # by the engine's name of the KV bucket
        self._watched: dict[bytes, dict[WatcherKey, WatchedBucket]] = {}  # those whose deletes are watched
        self._own: tuple[Core, Expiries] | None = None
        self._engines = [stores.plain.store]
        self._routes: dict[bool, WatchRoutes[WatcherKey]] = {}
        if stores.follower is not None:
            core = stores.follower.core
            self._own = core, self._expiries(core)
            self._engines.append(core.store)
            self._routes[False] = WatchRoutes(core.store, partial(expiry_observer, self._own[1].add))
        self._routes[True] = WatchRoutes(stores.plain.store, partial(expiry_observer, self._add_plain))
        stores.plain.on_closed = self._forget

    def observe(self, key: WatcherKey, replica: Follower | WatchedBucket, patterns: Iterable[Pattern]) -> None:
        """Replace the patterns of a watcher."""
        deletes = [pattern for pattern in patterns if pattern.deletes]
        if isinstance(replica, WatchedBucket):
            name = replica.layout.bucket
            if deletes:
                self._watched.setdefault(name, {})[key] = replica
            elif (watched := self._watched.get(name)) is not None:
                watched.pop(key, None)
                if not watched:
                    del self._watched[name]
            deletes = [replace(pattern, bucket=name) for pattern in deletes]
        routes = self._routes[isinstance(replica, WatchedBucket)]
        routes.put(key, deletes)
        if self._own is not None:
            core, expiries = self._own
            core.report_deletes(expiries if self._routes[False] else None)

    def stop(self) -> None:
        """Observe nothing any more."""
        for engine in self._engines:
            engine.observe(None)
        if self._own is not None:
            self._own[0].report_deletes(None)
        for name in list(self._plain):
            self._forget(name)

    def _expiries(self, core: Core) -> Expiries:
        return Expiries(core, self._keys_max, self._drop)

    def _drop(self) -> None:
        with self._counts.lock:
            self._counts.dropped += 1

    def _add_plain(self, name: bytes, key: bytes) -> None:
        expiries = self._plain.get(name)
        if expiries is None:
            try:
                core = next(iter(self._watched[name].values())).core
            except NotStoredError:
                return  # it is being closed
            expiries = self._plain[name] = self._expiries(core)
            # Deletes before now do not matter: had one been applied, the key would not have expired.
            core.report_deletes(expiries)
        expiries.add(name, key)

    def _forget(self, name: bytes) -> None:
        """Forget the expired keys of a KV bucket that is closed."""
        expiries = self._plain.pop(name, None)
        if expiries is not None:
            expiries.close()


class ReplicatedWatchers:
    """The watchers of one provider, as one instance serves them. It has the methods of `Watchers`.

    Use this class only in the event loop's thread. Other threads may read `counts` and `queue_length`.

    :param lattice: the lattice's name, which is the first part of components' subjects
    :param links: the host's links; call `links_changed` at the start and after each change
    """

    def __init__(self, connection: Connection, lattice: str, stores: Stores, links: Links, limits: WatchLimits) -> None:
        self.counts = WatchCounts()
        self._connection = connection
        self._lattice = lattice
        self._stores = stores
        self._links = links
        self._watching = WatchingLinks(links, lattice)
        self._limits = limits
        self._known: dict[LinkKey, tuple[LinkDefinition, Watch]] = {}  # links that watch
        self._watchers: dict[WatcherKey, Watcher] = {}
        self._watched_at: dict[LinkKey, tuple[KvPlace | None, ...]] = {}  # where each link watches
        self._idle: dict[LinkKey, str] = {}  # links that watch no KV bucket, and the component
        self._linked: frozenset[KvPlace] = frozenset()
        self._js_domain = stores.js_domain
        self._deleting: dict[WatcherKey, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._expired = ExpiredKeys(stores, limits.queue_events, self.counts)
        self._stopped = False

    @property
    def queue_length(self) -> int:
        """The number of changes that this instance holds, for all watchers. Any thread may read this number."""
        return sum(watcher.delivery.queue_length for watcher in self._watchers.copy().values())

    def faults(self) -> list[str]:
        """Return why watchers are told nothing, one line for each."""
        faults = [f"{each.feed.about}: {each.feed.fault}" for each in self._watchers.copy().values() if each.feed.fault]
        return faults + [f"watcher {name}: {NO_BUCKET}" for name in self._idle.copy().values()]

    def links_changed(self, keys: Iterable[LinkKey], deleted: Iterable[LinkKey] = ()) -> None:
        """Apply the links with these keys. Record each faulty link in `links`.

        If a link has changed, its new options hold for changes after those that this instance has applied. If it was
        deleted and put again, it is a new link: another instance may have deleted the consumer in between.

        O(changed links), or O(links that watch) if the KV buckets have changed that links name.

        :param deleted: the keys of links that were deleted, even if they were put again
        """
        gone, changed = self._watching.forget(deleted), self._watching.take(keys)
        if self._stopped:
            return
        for key in gone:
            self._known.pop(key, None)
            self._apply(key)
        for key, watching in changed.items():
            if watching is None:
                self._known.pop(key, None)
            else:
                self._known[key] = watching
        linked, js_domain = frozenset(self._stores.plain.linked), self._stores.js_domain
        if (linked, js_domain) != (self._linked, self._js_domain):
            self._linked, self._js_domain = linked, js_domain
            changed |= dict.fromkeys(self._known)
        for key in changed:
            self._apply(key)

    def _apply(self, key: LinkKey) -> None:
        """Watch the KV buckets that a link needs now, and no others."""
        self._idle.pop(key, None)
        link, watch = self._known.get(key, (None, None))
        needed: Mapping[KvPlace | None, Watch] = {}
        if link is not None and watch is not None:
            try:
                needed = self._needed(watch)
                if not needed:
                    self._idle[key] = _name(link)
            except StoreError as error:
                log.warning("link %s -> %s (%s) watches nothing: %s", *key, error)
                self._links.refuse(link, f"watch: {error}")
        for before in self._watched_at.pop(key, ()):
            if before not in needed:
                self._delete((key, before))
        if needed:
            self._watched_at[key] = tuple(needed)
        for place, part in needed.items():
            assert link is not None
            watcher = self._watchers.get((key, place))
            if watcher is None:
                watcher = self._watchers[key, place] = self._watcher(link, place)
            watcher.delivery.open(part, watcher.replica.applied)
            self._expired.observe((key, place), watcher.replica, part.patterns)

    def _needed(self, watch: Watch) -> Mapping[KvPlace | None, Watch]:
        """Return the KV buckets that are watched, each with its part of the patterns.

        :raises StoreError: a pattern can match no key
        """
        if (watch.keys or self._stores.keys) != PLAIN:
            if self._stores.follower is None:
                raise NotStoredError("keys=encoded needs a provider with keys=encoded")
            return {None: watch}
        for pattern in watch.patterns:
            check_key(pattern.key + (b"k" if pattern.is_prefix else b""))  # a prefix is a part of a key
        return {place: watch.at(place.kv_bucket.encode()) for place in self._places(watch)}

    def _places(self, watch: Watch) -> Iterator[KvPlace]:
        domain = self._js_domain if watch.domain is None else watch.domain
        buckets = dict.fromkeys(pattern.bucket for pattern in watch.patterns)
        for bucket in buckets:
            if bucket is not None:
                yield KvPlace(domain, check_bucket_name(bucket))
        if None in buckets:
            yield from self._linked

    async def stop(self, timeout_s: float) -> None:
        """Wait for the calls in flight for at most `timeout_s`. Leave the rest to other instances."""
        self._stopped = True
        self._expired.stop()
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

    def _watcher(self, link: LinkDefinition, place: KvPlace | None) -> Watcher:
        invoker = invoker_of(link, self._connection)
        name, follower = _name(link), self._stores.follower
        replica: Follower | WatchedBucket
        if place is not None:
            replica = self._stores.plain.watch(place)
            name += f" of {place.kv_bucket}"
        else:
            assert follower is not None
            replica = follower
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
            replica,
            consumer_of(link.key),
            f"watcher {name}",
            delivery,
            self._limits.queue_events,
        )
        delivery.feed = feed
        if isinstance(replica, WatchedBucket):
            replica.on_missing = feed.note_missing
        feed.start(self._deleting.get((link.key, place)))
        return Watcher(replica, delivery, feed, invoker)

    def _delete(self, key: WatcherKey) -> None:
        watcher = self._watchers.pop(key)
        self._expired.observe(key, watcher.replica, ())
        if key[1] is not None and isinstance(watcher.replica, WatchedBucket):
            self._stores.plain.unwatch(key[1], watcher.replica)
        dropped = watcher.delivery.close()
        with self.counts.lock:
            self.counts.dropped += dropped
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


async def _close(watcher: Watcher) -> None:
    """Close the invoker after the last call."""
    if calls := watcher.delivery.calls:
        await asyncio.wait(calls)
    await watcher.invoker.close()


def _name(link: LinkDefinition) -> str:
    return f"{link.target} ({link.name})"


def consumer_of(key: LinkKey) -> str:
    """Return the name of a link's consumer. All instances of a provider use the same."""
    return f"watch-{sha256(chr(0).join(key).encode()).hexdigest()[:32]}"
