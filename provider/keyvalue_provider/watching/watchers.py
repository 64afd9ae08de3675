"""The watchers: components that are called when keys change.

A link from the provider with interface `watcher` makes its target component a watcher.

    Store ── observer of the bucket ──> WatchQueue ── ChangeDelivery ── on-set, on-delete ──> component
             holds the stripe lock      bounded       on the event loop

A writer never waits, because a full queue drops its oldest events. `routes.py` decides which changes are reported.
`delivery.py` calls the component.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from itertools import chain
from typing import NamedTuple

from keyvalue_engine import Store
from keyvalue_provider.config.options import OptionError, WatchingLinkOptions
from keyvalue_provider.host.links import LinkDefinition, LinkKey, Links
from keyvalue_provider.watching.delivery import ChangeDelivery
from keyvalue_provider.watching.patterns import Watch
from keyvalue_provider.watching.queue import WatchCounts, WatchLimits
from keyvalue_provider.watching.routes import WatchRoutes, queue_observer
from keyvalue_provider.watching.traced import TracedComponent
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.subjects import check_subject
from keyvalue_transport.nats.tracing import Tracer

__all__ = ["INTERFACE", "WATCHES_NOTHING", "Watchers", "WatchingLink", "WatchingLinks", "invoker_of", "watch_of"]

log = logging.getLogger(__name__)

#: The interface of a link that makes its target a watcher.
INTERFACE = "watcher"
#: Seconds that `stop` waits for the calls that it has cancelled.
CANCEL_TIMEOUT_S = 0.02
WATCHES_NOTHING = "it watches nothing: the option watch is not set"


class WatchingLink(NamedTuple):
    """A link that makes its target a watcher. If its options are missing or malformed, `watch` is None."""

    link: LinkDefinition
    watch: Watch | None


class WatchingLinks:
    """The links of one provider that make their targets watchers.

    :param lattice: the lattice's name, which is the first part of components' subjects
    """

    def __init__(self, links: Links, lattice: str) -> None:
        self.by_key: dict[LinkKey, WatchingLink] = {}
        self._links = links
        self._lattice = lattice

    def forget(self, keys: Iterable[LinkKey]) -> dict[LinkKey, None]:
        """Forget the links with these keys. Return the keys of those that made their targets watchers. O(keys)."""
        return {key: None for key in keys if self.by_key.pop(key, None) is not None}

    def take(self, keys: Iterable[LinkKey]) -> dict[LinkKey, tuple[LinkDefinition, Watch] | None]:
        """Take the links with these keys. Record each faulty link in `links`. O(keys).

        :return: the links that have changed, with their parsed options; None for a link that watches nothing now
        """
        changed: dict[LinkKey, tuple[LinkDefinition, Watch] | None] = {}
        for key in keys:
            if not self._links.is_to_callee(key):
                continue
            link = self._links.get(key)
            if link is None or INTERFACE not in link.interfaces:
                if self.by_key.pop(key, None) is not None:
                    changed[key] = None
            elif key not in self.by_key or self.by_key[key].link is not link:
                watch = watch_of(link, self._links, self._lattice)
                self.by_key[key] = WatchingLink(link, watch)
                changed[key] = None if watch is None else (link, watch)
        return changed


class Watchers:
    """The watchers of one provider: a delivery for each watching link.

    Use this class only in the event loop's thread. Other threads may read `counts` and `queue_length`.

    :param lattice: the lattice's name, which is the first part of components' subjects
    :param links: the host's links; call `links_changed` at the start and after each change
    :param tracer: notes the calls that sampled calls have caused; None to trace no calls
    """

    def __init__(
        self,
        connection: Connection,
        lattice: str,
        store: Store,
        links: Links,
        limits: WatchLimits,
        tracer: Tracer | None = None,
    ) -> None:
        self.counts = WatchCounts()
        self._watching = WatchingLinks(links, lattice)
        self._connection = connection
        self._lattice = lattice
        self._store = store
        self._limits = limits
        self._tracer = tracer
        self._routes = WatchRoutes(store, queue_observer)
        self._deliveries: dict[LinkKey, ChangeDelivery] = {}  # includes closed deliveries with calls in flight
        self._closing: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def queue_length(self) -> int:
        """The number of events that are queued or in flight, for all watchers. Any thread may read this number."""
        return sum(delivery.queue_length for delivery in self._deliveries.copy().values())

    def faults(self) -> list[str]:
        """Return why watchers are told nothing. Nothing can prevent it here."""
        return []

    def links_changed(self, keys: Iterable[LinkKey], deleted: Iterable[LinkKey] = ()) -> None:
        """Apply the links with these keys. Record each faulty link in `links`.

        If a watcher's link is unchanged, the watcher is not affected. If the link has changed, queued events are still
        delivered, with the new bucket argument. If the link was deleted, queued events are dropped. O(keys), as
        `WatchRoutes.put` explains.

        :param deleted: the keys of links that were deleted, even if they were put again
        """
        gone, changed = self._watching.forget(deleted), self._watching.take(keys)
        if self._stopped:
            return
        for key, watching in chain(gone.items(), changed.items()):
            delivery = self._deliveries.get(key)
            if watching is not None:
                link, watch = watching
                if delivery is None:
                    delivery = self._deliveries[key] = self._delivery(link)
                delivery.open(watch.bucket_argument)
                self._routes.put(delivery.queue, watch.patterns)
            elif delivery is not None:
                self._routes.put(delivery.queue, ())
                delivery.close()

    async def stop(self, timeout_s: float) -> None:
        """Stop watching. Deliver queued events for at most `timeout_s`, then drop the remaining events."""
        self._stopped = True
        self._store.observe(None)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        await asyncio.sleep(0)  # starts the calls for the latest events
        while (calls := self._calls()) and (left_s := deadline_s - loop.time()) > 0:
            await asyncio.wait(calls, timeout=left_s)
        tasks = [*self._calls(), *self._closing]
        dropped = sum(delivery.abandon() for delivery in self._deliveries.values())
        self._deliveries.clear()
        with self.counts.lock:
            self.counts.dropped += dropped
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)

    def _calls(self) -> list[asyncio.Task[None]]:
        return [call for delivery in self._deliveries.values() for call in delivery.calls]

    def _delivery(self, link: LinkDefinition) -> ChangeDelivery:
        invoker = invoker_of(link, self._connection)
        return ChangeDelivery(
            f"{link.target} ({link.name})",
            f"{self._lattice}.{link.target}",
            invoker,
            lambda: self._connection.connected,
            self._limits,
            self.counts,
            partial(self._forget, link.key, invoker),
            None if self._tracer is None else TracedComponent(self._tracer, link.target),
        )

    def _forget(self, key: LinkKey, invoker: Invoker) -> None:
        """Forget a closed delivery after its last call has ended."""
        self._deliveries.pop(key, None)  # `stop` may have removed the delivery already
        if not self._stopped:  # after a stop, the whole connection is closed anyway
            closing = asyncio.create_task(invoker.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def invoker_of(link: LinkDefinition, connection: Connection) -> Invoker:
    """Return an invoker that calls a link's target, as a host would for a component."""
    headers = {"source-id": link.source_id, "target-id": link.target, "link-name": link.name}
    return Invoker(connection, headers)


def watch_of(link: LinkDefinition, links: Links, lattice: str) -> Watch | None:
    """Return the parsed options of a watching link, or None. Log faults and record them in `links`."""
    try:
        options, remarks = WatchingLinkOptions.from_config(link.source_options)
        watch = Watch.of(options)
        check_subject(f"{lattice}.{link.target}", "target")
        if not link.name.isprintable():
            raise OptionError(f"name: found {link.name[:64]!r}, allowed printable characters")
    except ValueError as error:
        reason = error.discreet if isinstance(error, OptionError) else str(error)
        log.warning("link %s -> %s (%s) watches nothing: %s", *link.key, reason)
        links.refuse(link, reason)
        return None
    if watch is None:
        remarks.insert(0, WATCHES_NOTHING)
    if remarks:
        log.warning("link %s -> %s (%s): %s", *link.key, "; ".join(remarks))
        links.remark(link, "; ".join(remarks))
    return watch
