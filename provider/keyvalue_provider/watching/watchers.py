"""Watchers: components that are told of changes. A link from the provider whose interfaces contain `watcher` makes one.

    Store ── observer of the bucket ──> WatchQueue ── ChangeDelivery ── on-set, on-delete ──> component
             under the stripe           bounded       event loop

A writer never waits: where a queue is full its oldest events are dropped. `keyvalue_provider.watching.patterns` says what is watched,
`delivery` how a component is called.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import NamedTuple

from keyvalue_engine import Store
from keyvalue_provider.config.options import OptionError, WatchingLinkOptions
from keyvalue_provider.host.links import LinkDefinition, LinkKey, Links
from keyvalue_provider.watching.delivery import ChangeDelivery
from keyvalue_provider.watching.patterns import Watch, observers
from keyvalue_provider.watching.queue import WatchCounts, WatchLimits
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.subjects import check_subject

__all__ = ["INTERFACE", "WATCHES_NOTHING", "Watchers", "watch_of"]

log = logging.getLogger(__name__)

#: In the interfaces of a link that makes a watcher.
INTERFACE = "watcher"
#: For the calls that a stop cancels to end.
CANCEL_TIMEOUT_S = 0.02
WATCHES_NOTHING = "it watches nothing: the option watch is not set"


class WatchingLink(NamedTuple):
    """A link that makes a watcher, and what it watches; None where that can't be used, or is nothing."""

    link: LinkDefinition
    watch: Watch | None


class Watchers:
    """The watchers of one provider: a delivery for each link that watches. To be made and used on the event loop, but for `counts` and `queue_length`.

    :param lattice: first part of the components' subjects
    :param links: what the host has put; `links_changed` is to be called at the start, and whenever they are others
    """

    def __init__(
        self,
        connection: Connection,
        lattice: str,
        provider_key: str,
        store: Store,
        links: Links,
        limits: WatchLimits,
    ) -> None:
        self.counts = WatchCounts()
        self._links = links
        self._connection = connection
        self._lattice = lattice
        self._provider_key = provider_key
        self._store = store
        self._limits = limits
        self._watching: dict[LinkKey, WatchingLink] = {}
        self._deliveries: dict[LinkKey, ChangeDelivery] = {}  # also those that are closed and have calls in flight
        self._closing: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def queue_length(self) -> int:
        """Events that are queued or in flight, of all watchers. From any thread."""
        return sum(delivery.queue_length for delivery in self._deliveries.copy().values())

    def links_changed(self) -> None:
        """Take the links as they are now; what is wrong with them is noted there. O(links), and O(buckets) where a watcher is another.

        A watcher whose link is as before goes on undisturbed. Where its definition changed, what is queued is delivered all the same, with the new
        bucket argument; where it is gone, what is queued is dropped.
        """
        watching = {}
        for link in self._links.callees():
            if INTERFACE in link.interfaces:
                known = self._watching.get(link.key)
                if known is None or known.link is not link:
                    known = WatchingLink(link, watch_of(link, self._links, self._lattice))
                watching[link.key] = known
        if watching == self._watching or self._stopped:
            return
        self._watching = watching
        watched = []
        for key, (link, watch) in watching.items():
            if watch is not None:
                delivery = self._deliveries.get(key)
                if delivery is None:
                    delivery = self._deliveries[key] = self._delivery(link)
                delivery.open(watch.bucket_argument)
                watched.append((watch, delivery.queue))
        self._store.observe(observers(watched))
        for key in self._deliveries.keys() - {key for key, (_, watch) in watching.items() if watch is not None}:
            self._deliveries[key].close()

    async def stop(self, timeout_s: float) -> None:
        """Watch no more. What is queued is delivered if that can be done within the time; the rest is dropped."""
        self._stopped = True
        self._store.observe(None)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        await asyncio.sleep(0)  # calls for what was pushed last are begun
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

    def _prefix(self, link: LinkDefinition) -> str:
        return f"{self._lattice}.{link.target}"

    def _delivery(self, link: LinkDefinition) -> ChangeDelivery:
        headers = {"source-id": self._provider_key, "target-id": link.target, "link-name": link.name}
        invoker = Invoker(self._connection, headers)
        return ChangeDelivery(
            f"{link.target} ({link.name})",
            self._prefix(link),
            invoker,
            lambda: self._connection.connected,
            self._limits,
            self.counts,
            partial(self._forget, link.key, invoker),
        )

    def _forget(self, key: LinkKey, invoker: Invoker) -> None:
        """Forget a delivery that is closed and whose last call has ended."""
        self._deliveries.pop(key, None)  # none are left where all were stopped
        if not self._stopped:  # then the connection is closed next
            closing = asyncio.create_task(invoker.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


def watch_of(link: LinkDefinition, links: Links, lattice: str) -> Watch | None:
    """What a link whose interfaces contain `watcher` watches; None where nothing. What is wrong with it is said, and noted in the links."""
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
