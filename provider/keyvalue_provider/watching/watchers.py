"""Watchers: components that are told of changes. A link from the provider whose interfaces contain `watcher` makes one.

    Store ── observer of the bucket ──> WatchQueue ── Watcher ── on-set, on-delete ──> component
             under the stripe           bounded       event loop

Delivery is in the order of writes to a key, and at most once: a call that fails, or has no answer in time, is counted and not repeated (one
without an answer may still be carried out, and then later than the next of its key). Who writes never waits: where a queue is full its oldest
events are dropped. While NATS is away events wait; while nobody listens one is tried at a time, after growing pauses, and has failed. `keyvalue_provider.watching.patterns` says what is watched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

from keyvalue_engine import Store
from keyvalue_provider.config.options import OptionError, WatchingLinkOptions
from keyvalue_provider.host.links import LinkDefinition, LinkKey, Links
from keyvalue_provider.watching.patterns import Watch, observers
from keyvalue_provider.watching.queue import Event, WatchCounts, WatchLimits, WatchQueue
from keyvalue_transport.keyvalue.watcher import WATCHER, decode_nothing, encode_on_delete, encode_on_set
from keyvalue_transport.nats.client import Invoker
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.wrpc.errors import NoProviderError, TransportError
from keyvalue_transport.wrpc.subjects import check_subject, invocation_subject

__all__ = ["INTERFACE", "WATCHES_NOTHING", "WatchCounts", "WatchLimits", "Watcher", "Watchers", "watch_of"]

log = logging.getLogger(__name__)

#: In the interfaces of a link that makes a watcher.
INTERFACE = "watcher"
#: Calls in flight at a component.
CALLS_MAX = 16
#: While nobody listens, one call is tried after each pause; they grow from the first to the second.
ABSENT_PAUSE_MIN_S = 0.05
ABSENT_PAUSE_MAX_S = 1.0
DISCONNECTED_PAUSE_S = 0.25
#: For the calls that a stop ends to have ended.
CANCEL_TIMEOUT_S = 0.02
WATCHES_NOTHING = "it watches nothing: the option watch is not set"
#: A component that fails now and then is told of at most so often.
FAILURE_LOG_INTERVAL_S = 10.0


class Component(Protocol):
    """A component that can be called (`keyvalue_transport.nats.client.Invoker` calls one)."""

    async def invoke(
        self, subject: str, params: bytes, decode: Callable[[bytes, int, int], tuple[None, int]], timeout_s: float
    ) -> None: ...


class Watcher:
    """The calls to one component, from its queue. To be used on the event loop, but for the queue's `push`.

    :param name: for the log
    :param connected: whether a call has a chance at all
    :param on_end: told when it is closed and its last call has ended
    """

    __slots__ = (
        *("_calls", "_closed", "_component", "_connected", "_counts", "_failing", "_loop", "_on_end", "_pause", "_pause_s"),
        *("_quiet_until_s", "_subjects", "_timeout_s", "_told", "bucket_argument", "name", "queue"),
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        prefix: str,
        component: Component,
        connected: Callable[[], bool],
        limits: WatchLimits,
        counts: WatchCounts,
        on_end: Callable[[], None],
    ) -> None:
        self.name = name
        self.queue = WatchQueue(limits, counts, self._wake)
        self.bucket_argument: bytes | None = None
        self._subjects = invocation_subject(prefix, WATCHER, "on-set"), invocation_subject(prefix, WATCHER, "on-delete")
        self._component = component
        self._connected = connected
        self._timeout_s = limits.timeout_s
        self._counts = counts
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._calls: dict[asyncio.Task[None], Event] = {}
        self._closed = False
        self._pause: asyncio.TimerHandle | None = None
        self._pause_s = 0.0  # the last pause since nobody listens; 0: somebody does
        self._failing = False
        self._told = False  # the log knows that it fails
        self._quiet_until_s = 0.0

    @property
    def queue_length(self) -> int:
        """Events that are queued or in flight."""
        return len(self.queue) + len(self._calls)

    @property
    def calls(self) -> list[asyncio.Task[None]]:
        """What is in flight."""
        return list(self._calls)

    def open(self, bucket_argument: bytes | None) -> None:
        """Take events; those that are queued already have this bucket argument too."""
        self.bucket_argument = bucket_argument
        self._closed = False
        self.queue.open()
        self._start_calls()

    def close(self) -> None:
        """Take no more events and drop those that wait. Calls that are in flight go on to their end."""
        self._closed = True
        self.queue.close()
        self._stop_pausing()
        self._end_if_idle()

    def abandon(self) -> int:
        """Call no more, at the end of the process; how many events are left. O(1), however many they are."""
        self._closed = True
        self._stop_pausing()
        return len(self.queue)

    def check(self) -> None:
        """Assert every invariant. For tests, while no other thread pushes. O(n)."""
        self.queue.check(self._calls.values())
        assert len(self._calls) <= CALLS_MAX
        assert not self._closed or self._pause is None

    def _end_if_idle(self) -> None:
        if self._closed and not self._calls:
            self._on_end()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to deliver
            self._loop.call_soon_threadsafe(self._start_calls)

    def _start_calls(self) -> None:
        """As many as may be in flight. Called whenever that may have changed: an event came, a call ended, a pause is over."""
        while not self._closed and self._pause is None and len(self._calls) < (1 if self._pause_s else CALLS_MAX):
            if not self._connected():
                self._pause_for(DISCONNECTED_PAUSE_S)
                return
            event = self.queue.take()
            if event is None:
                return
            call = self._loop.create_task(self._call(event))
            self._calls[call] = event
            call.add_done_callback(self._end_call)

    async def _call(self, event: Event) -> None:
        bucket, key, value = event
        on_set, on_delete = self._subjects
        argument = bucket if self.bucket_argument is None else self.bucket_argument
        if value is None:
            subject, params = on_delete, encode_on_delete(argument, key)
        else:
            subject, params = on_set, encode_on_set(argument, key, value)
        await self._component.invoke(subject, params, decode_nothing, self._timeout_s)

    def _end_call(self, call: asyncio.Task[None]) -> None:
        self.queue.end(self._calls.pop(call))
        error = asyncio.CancelledError() if call.cancelled() else call.exception()
        if error is None:
            self._counts.delivered += 1
            self._note_answer()
        else:
            self._counts.failed += 1
            self._note_failure(error)
        self._start_calls()
        self._end_if_idle()

    def _note_answer(self) -> None:
        self._pause_s = 0.0
        if self._failing:
            self._failing = False
            if self._told:
                self._told = False
                log.info("watcher %s: it answers again", self.name)

    def _note_failure(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            return
        if not isinstance(error, NoProviderError):
            self._pause_s = 0.0
        elif self._pause is None and not self._closed:
            self._pause_s = min(max(2 * self._pause_s, ABSENT_PAUSE_MIN_S), ABSENT_PAUSE_MAX_S)
            self._pause_for(self._pause_s)
        if not self._failing:
            self._failing = True
            now_s = self._loop.time()
            if now_s >= self._quiet_until_s:
                self._quiet_until_s = now_s + FAILURE_LOG_INTERVAL_S
                self._told = True
                ours = None if isinstance(error, TransportError) else error
                log.warning("watcher %s: it is not told of changes: %s", self.name, error, exc_info=ours)

    def _pause_for(self, seconds: float) -> None:
        self._pause = self._loop.call_later(seconds, self._resume)

    def _stop_pausing(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _resume(self) -> None:
        self._pause = None
        self._start_calls()


class Definition(NamedTuple):
    """A link that makes a watcher, and what it says; None where that can't be used, or is nothing."""

    link: LinkDefinition
    watch: Watch | None


class Watchers:
    """The watchers of one provider. To be made and used on the event loop, but for `counts` and `queue_length`.

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
        self._definitions: dict[LinkKey, Definition] = {}
        self._watchers: dict[LinkKey, Watcher] = {}  # also those that are closed and have calls in flight
        self._closing: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def queue_length(self) -> int:
        """Events that are queued or in flight, of all watchers. From any thread."""
        return sum(watcher.queue_length for watcher in self._watchers.copy().values())

    def links_changed(self) -> None:
        """Take the links as they are now; what is wrong with them is noted there. O(links), and O(buckets) where a watcher is another.

        A watcher whose link is as before goes on undisturbed. Where its definition changed, what is queued is delivered all the same, with the new
        bucket argument; where it is gone, what is queued is dropped.
        """
        definitions = {}
        for link in self._links.callees():
            if INTERFACE in link.interfaces:
                known = self._definitions.get(link.key)
                definitions[link.key] = (
                    Definition(link, watch_of(link, self._links, self._lattice))
                    if known is None or known.link is not link
                    else known
                )
        if definitions == self._definitions or self._stopped:
            return
        self._definitions = definitions
        watched = []
        for key, (link, watch) in definitions.items():
            if watch is not None:
                watcher = self._watchers.get(key)
                if watcher is None:
                    watcher = self._watchers[key] = self._watcher(link)
                watcher.open(watch.bucket_argument)
                watched.append((watch, watcher.queue))
        self._store.observe(observers(watched))
        for key in self._watchers.keys() - {key for key, (_, watch) in definitions.items() if watch is not None}:
            self._watchers[key].close()

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
        dropped = sum(watcher.abandon() for watcher in self._watchers.values())
        self._watchers.clear()
        with self.counts.lock:
            self.counts.dropped += dropped
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT_S)

    def _calls(self) -> list[asyncio.Task[None]]:
        return [call for watcher in self._watchers.values() for call in watcher.calls]

    def _prefix(self, link: LinkDefinition) -> str:
        return f"{self._lattice}.{link.target}"

    def _watcher(self, link: LinkDefinition) -> Watcher:
        headers = {"source-id": self._provider_key, "target-id": link.target, "link-name": link.name}
        invoker = Invoker(self._connection, headers)
        return Watcher(
            f"{link.target} ({link.name})",
            self._prefix(link),
            invoker,
            lambda: self._connection.connected,
            self._limits,
            self.counts,
            partial(self._forget, link.key, invoker),
        )

    def _forget(self, key: LinkKey, invoker: Invoker) -> None:
        """A watcher is closed, and its last call has ended."""
        self._watchers.pop(key, None)  # none are left where all were stopped
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
