"""The KV buckets with plain names that an instance holds copies of. Each is opened at its first use.

    call ── handle ──┬── the KV bucket is served: the handle of its copy, which is kept for later calls
                     └── otherwise: a handle whose calls wait until it is, for `jetstream_timeout_ms` at most

    absent ── first use ──> opening ── caught up ──> served <──> not served: its follower says why
      ^                        │                        │             │
      └──────── refused ───────┘                        └── unused ───┴── for too long ──> closing ──> absent

Callers can invent names. So a KV bucket counts for `open_buckets_max`, and may displace an unused one, only once it is
known to exist, or when it is about to be created.

All copies are in one engine, each as one bucket. Whenever a KV bucket begins or ends to be served, all kept handles are
dropped (`on_change`), and later calls open them again. They are also dropped every few seconds. So a KV bucket whose
handle is not opened again is not used any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import monotonic

from keyvalue_engine import BucketOptions, Quota, Store, StoreError, StoreOptions
from keyvalue_engine.errors import Limit, LimitError
from keyvalue_replica.answers import Barrier
from keyvalue_replica.bucket import ReplicaBucket, ReplicaStore
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.company import Company
from keyvalue_replica.core import Core
from keyvalue_replica.errors import MissingBucketError, NoStreamError, NotStoredError, StreamError
from keyvalue_replica.follower import Follower
from keyvalue_replica.open_bucket import KvPlace, OpenBucket
from keyvalue_replica.options import LinkedOptions, ReplicaOptions
from keyvalue_replica.plain_layout import PlainLayout, check_bucket_name
from keyvalue_replica.promise import Promise
from keyvalue_replica.publications import CountSum
from keyvalue_replica.reading_order import ReadingOrder
from keyvalue_replica.rehearsal import Nowhere, rehearse
from keyvalue_replica.reservations import Reservations
from keyvalue_replica.waiting_bucket import RefusingBucket, WaitingBucket
from keyvalue_replica.watched_bucket import WatchedBucket
from keyvalue_replica.wires import SharedWires
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["OpenBuckets"]

log = logging.getLogger(__name__)

OPEN_BUCKETS = Limit("the provider would hold {} KV buckets open", "open_buckets_max")
#: Number of KV buckets that may be looked up, or wait for that, beside those that are open.
LOOKED_UP_MAX = 1_024
LOOKED_UP = Limit("{} KV buckets would be open or looked up", f"open_buckets_max and {LOOKED_UP_MAX} more")
#: Number of KV buckets that are looked up or created at a time. `reading_order.py` decides how many are read.
OPENING_MAX = 16
#: Seconds between two looks which KV buckets are used.
LOOK_S = 5.0
#: Seconds after which a KV bucket that is not served is closed. Its next use opens it again.
FAULTY_S = 15.0
#: Seconds until a KV bucket of a link that could not be opened is tried again.
RETRY_S = 4.0
#: Number of KV buckets that health names.
NAMED_MAX = 5


class OpenBuckets:
    """All KV buckets with plain names that an instance has open. It opens handles for them.

    :param options: how KV buckets are opened; the name is ignored
    :param limits: the limits of the store
    :param again: makes the answer of a `get` that must be made again in a callback of the barrier
    :param buckets_max: the number of KV buckets that may be open
    :param idle_s: seconds after which a KV bucket that nobody uses is closed
    :ivar linked: those that links name, with True for those that may be created
    :ivar on_change: called when kept handles must be dropped
    :ivar on_closed: called with the engine's name of each one that was closed
    :ivar observe: given to each core (`Publications.observe`)
    """

    def __init__(
        self,
        connection: Connection,
        options: ReplicaOptions,
        limits: StoreOptions,
        again: Callable[[Barrier], object],
        buckets_max: int,
        idle_s: float,
    ) -> None:
        self.options = limits
        clock = ServerClock()
        self.store = Store(limits, clock=clock, is_limited=False)
        self._ended = CountSum()  # of those that are closed
        self.reservations = Reservations(self.store)
        self._reading_order = ReadingOrder()
        self._company = Company(self.store, clock, self.reservations, SharedWires(connection), self._reading_order)
        self._connection = connection
        self._of_provider = options
        self._again = again
        self._buckets_max = buckets_max
        self._idle_s = idle_s
        self._open: dict[KvPlace, OpenBucket] = {}
        self.linked: dict[KvPlace, bool] = {}
        self._watched: dict[KvPlace, set[WatchedBucket]] = {}
        self._wanted: dict[KvPlace, bool] = {}  # `linked`, and those that are watched
        self._refused: dict[KvPlace, tuple[Exception, float]] = {}  # why a wanted one is not open, and since when
        self._opening = asyncio.Semaphore(OPENING_MAX)
        self._task: asyncio.Task[None] | None = None
        self._torn_s = 0.0  # of those that are closed
        self._is_stopping = False
        self.on_change: Callable[[], None] = lambda: None
        self.on_closed: Callable[[bytes], None] = lambda name: None
        self.observe: Callable[[float, bool, int], None] | None = None

    # Handles.

    def bucket(self, name: bytes, options: LinkedOptions) -> ReplicaBucket | WaitingBucket | RefusingBucket:
        """Open a handle."""
        try:
            place = KvPlace(options.domain, check_bucket_name(name))
        except StoreError as error:
            return RefusingBucket(error)
        opened = self._open.get(place)
        if opened is not None and opened.is_served and opened.store is not None:
            opened.used_s = monotonic()
            return opened.store.bucket(place.name, options)
        return WaitingBucket(self, place, options)

    def add_quota(self, quota: Quota, buckets_max: int) -> None:
        """Start counting for a quota. Count at most `buckets_max` buckets now."""
        self.store.add_quota(quota, buckets_max)

    def count_quota(self, quota: Quota, buckets_max: int) -> None:
        """Count at most `buckets_max` more buckets."""
        self.store.count_quota(quota, buckets_max)

    def remove_quota(self, quota: Quota) -> None:
        """Stop counting for a quota."""
        self.store.remove_quota(quota)

    async def opened(self, place: KvPlace, options: BucketOptions, creates: bool) -> ReplicaBucket | None:
        """Return the handle of a KV bucket once it is served. Return None if it does not exist, but might be created.

        :param creates: True to create it if it does not exist and the options allow that
        :raises MissingBucketError: it does not exist, and may not be created
        :raises NotStoredError: it is not served in time, or does not fit
        :raises LimitError: too many KV buckets are open
        """
        may_create = isinstance(options, LinkedOptions) and options.creates
        ends_s = monotonic() + self._of_provider.timeout_s
        while True:
            opened = self._open.get(place) or self._begin(place, creates and may_create)
            opened.is_called, opened.used_s = True, monotonic()
            if opened.is_served and opened.store is not None:
                return opened.store.bucket(place.name, options)
            try:
                async with asyncio.timeout(ends_s - monotonic()):
                    await opened.changed.wait()
            except TimeoutError:
                raise NotStoredError(f"the KV bucket {place.kv_bucket} can't be used: {self._fault(opened)}") from None
            if isinstance(opened.refusal, NoStreamError):
                if not may_create:
                    raise MissingBucketError(place.name)
                if not creates:
                    return None
                continue
            if isinstance(opened.refusal, LimitError):
                raise opened.refusal
            if opened.refusal is not None:
                raise NotStoredError(f"the KV bucket {place.kv_bucket} can't be used: {opened.refusal}")

    def rehearse(
        self, place: KvPlace, options: BucketOptions, write: Callable[[ReplicaBucket], object]
    ) -> Promise | None:
        """Check a write to a KV bucket that does not exist. Return the answer if the write changes nothing.

        :raises StoreError: it is refused
        """
        core = Core(
            self.store,
            PlainLayout(place.kv_bucket, place.name),
            Nowhere(lambda: self._connection.max_payload),
            *("", "", self._of_provider.timeout_s, self._company.clock, self.reservations),
        )
        store = ReplicaStore(core, self.options, self._again, self._of_provider.is_atomic)
        return rehearse(store, place.name, options, write)

    def _fault(self, opened: OpenBucket) -> str:
        """Return why a KV bucket is not served."""
        ahead = None if opened.follower is None else self._reading_order.ahead_of(opened.follower)
        return opened.fault if ahead is None else f"it is being opened, and {ahead} others are read before it"

    # Opening and closing.

    def want(self, linked: Mapping[KvPlace, bool]) -> None:
        """Open the KV buckets that links name, unless they are open.

        :param linked: True for those that are created if they do not exist
        """
        self.linked = dict(linked)
        before, self._wanted = self._wanted, dict.fromkeys(self._watched, False) | self.linked
        self._refused = {place: refused for place, refused in self._refused.items() if place in self._wanted}
        for place, creates in self._wanted.items():
            if before.get(place) is not creates:
                self._try(place, creates)

    def watch(self, place: KvPlace) -> WatchedBucket:
        """Open a KV bucket, and keep it open until it is no longer watched. It is not created if it is missing."""
        layout = PlainLayout(place.kv_bucket, place.name, place.domain or self._of_provider.domain)
        watched = WatchedBucket(self._connection, layout, lambda: self._open.get(place))
        self._watched.setdefault(place, set()).add(watched)
        self._wanted.setdefault(place, False)
        self._try(place, self._wanted[place])  # even if it was refused a moment ago: `on_missing` must be called
        return watched

    def unwatch(self, place: KvPlace, watched: WatchedBucket) -> None:
        """Keep a KV bucket open no longer for a watcher."""
        self._watched[place].discard(watched)
        if not self._watched[place]:
            del self._watched[place]
            if place not in self.linked:
                del self._wanted[place]
                self._refused.pop(place, None)

    def _try(self, place: KvPlace, creates: bool) -> None:
        """Open a KV bucket of a link if there is room. One that is watched takes the room of an unused one."""
        if place in self._open or self._is_stopping:
            return
        try:
            if self._held >= self._buckets_max and place not in self._watched:
                raise LimitError(OPEN_BUCKETS, self._held + 1, self._buckets_max)
            self._begin(place, creates)
        except LimitError as error:
            self._refused[place] = error, monotonic()

    @property
    def _held(self) -> int:
        """Return the number of KV buckets that count for the limit."""
        return sum(opened.has_room and not opened.is_closing for opened in self._open.values())

    def _begin(self, place: KvPlace, creates: bool) -> OpenBucket:
        """Begin to open a KV bucket.

        :raises LimitError: too many are being looked up
        :raises NotStoredError: the instance stops
        """
        if self._is_stopping:
            raise NotStoredError("the provider stops: nothing was sent")
        if len(self._open) >= (limit := self._buckets_max + LOOKED_UP_MAX):
            raise LimitError(LOOKED_UP, len(self._open) + 1, limit)
        opened = self._open[place] = OpenBucket(place, lambda: self.on_change())
        opened.task = asyncio.create_task(self._run(opened, creates))
        return opened

    def _take_room(self, opened: OpenBucket) -> None:
        """Count a KV bucket for the limit. If that is reached, close the one that was not used for the longest time.

        :raises LimitError: all are in use, or the KV bucket may not displace one
        """
        if not opened.has_room and self._held >= self._buckets_max:
            unused_s = monotonic() - 2 * LOOK_S
            displaces = opened.is_called or opened.place in self._watched
            others = [each for each in self._open.values() if displaces and each.has_room]
            idle = [each for each in others if each.used_s < unused_s and self._may_close(each)]
            if not idle:
                raise LimitError(OPEN_BUCKETS, self._held + 1, self._buckets_max)
            self._close(min(idle, key=lambda each: each.used_s))
        opened.has_room = True

    def _may_close(self, opened: OpenBucket) -> bool:
        """Return True if a KV bucket may be closed when it is unused."""
        return opened.is_idle and not opened.is_closing and opened.place not in self._watched

    async def _run(self, opened: OpenBucket, creates: bool) -> None:
        """Open a KV bucket, and follow it until `_close` is called."""
        place = opened.place
        domain = place.domain or self._of_provider.domain
        options = replace(self._of_provider, bucket=place.kv_bucket, domain=domain, creates=creates)
        follower = Follower(self._connection, options, PlainLayout(place.kv_bucket, place.name, domain), self._company)
        try:
            async with self._opening:
                if creates:
                    self._take_room(opened)
                await follower.open(self.options, options.timeout_s)
            core = follower.core
            core.publications.observe = self.observe
            opened.follower = follower
            opened.store = ReplicaStore(core, self.options, self._again, options.is_atomic)
            self._take_room(opened)
            follower.start(opened)
            await asyncio.Event().wait()
        except (StreamError, DisconnectedError, LimitError) as error:
            opened.refusal = error
            if place in self._wanted:
                self._refused[place] = error, monotonic()
            if isinstance(error, NoStreamError):
                for watched in self._watched.get(place, ()):
                    watched.on_missing()
        except Exception as error:  # a fault of ours must not leave calls waiting
            log.exception("the KV bucket %s could not be opened", place.kv_bucket)
            opened.refusal = error
        finally:
            opened.hide()
            try:
                await self._remove(opened, follower)
            finally:
                del self._open[place]
                opened.wake()

    async def _remove(self, opened: OpenBucket, follower: Follower) -> None:
        """Stop following a KV bucket, and forget its copy."""
        if opened.follower is not None:
            self._torn_s += follower.torn_s
            self._ended.add(follower.counts)
            follower.core.give_up()
            self.on_closed(opened.place.name)
            await follower.stop()
            if self._is_stopping:
                return
            await follower.empty()
            if opened.has_room:
                log.info("replica: closed %s", follower.layout.stream)
        self.store.set_secret(opened.place.name, None)

    def _close(self, opened: OpenBucket) -> None:
        if not opened.is_closing and opened.task is not None:
            opened.is_closing = True
            opened.hide()
            opened.task.cancel()

    def start(self) -> None:
        """Begin to look after the KV buckets."""
        self._task = asyncio.create_task(self._look_after())

    async def _look_after(self) -> None:
        looked_s = monotonic()
        while True:
            await asyncio.sleep(self._of_provider.tick_s)
            for opened in list(self._open.values()):
                if opened.follower is not None and not opened.is_closing:
                    opened.follower.tick()
            if monotonic() - looked_s > min(LOOK_S, self._idle_s / 4):
                looked_s = monotonic()
                self._look()

    def _look(self) -> None:
        """Close what is unused or faulty, open what links need, and drop all handles to see what is used."""
        now_s, is_connected = monotonic(), self._connection.connected
        for opened in list(self._open.values()):
            if opened.follower is None:
                continue
            if not is_connected:
                opened.faulty_s = now_s
            is_unused = now_s - opened.used_s > self._idle_s and self._may_close(opened)
            is_faulty = not opened.is_served and now_s - opened.faulty_s > FAULTY_S
            is_waiting = opened.follower.is_reading or self._reading_order.ahead_of(opened.follower) is not None
            is_stuck = is_faulty and not is_waiting
            if is_unused or is_stuck or opened.follower.is_refused or opened.follower.failed is not None:
                self._close(opened)
        for place, (error, tried_s) in list(self._refused.items()):
            if now_s - tried_s > RETRY_S:
                self._try(place, self._wanted[place] and not isinstance(error, NoStreamError))
        for place in self._watched:
            if place not in self._refused:
                self._try(place, False)  # it was closed, perhaps because others have deleted it
        for place in list(self._refused):
            opened_now = self._open.get(place)
            if opened_now is not None and opened_now.was_served:
                del self._refused[place]
        if self._open:
            self.on_change()

    async def wait_opened(self, timeout_s: float) -> None:
        """Wait until each KV bucket of a link is served or refused, for a time at most."""
        try:
            async with asyncio.timeout(timeout_s):
                for opened in [self._open[place] for place in self._wanted if place in self._open]:
                    while not opened.is_served and opened.refusal is None:
                        await opened.changed.wait()
        except TimeoutError:
            pass  # health names them

    def give_up_after(self, timeout_s: float) -> None:
        """Answer the calls that still wait after a time, because the instance stops."""
        for opened in self._open.values():
            if opened.follower is not None:
                opened.follower.give_up_after(timeout_s)

    async def stop(self) -> None:
        """Stop following. Calls that wait get an error."""
        self._is_stopping = True
        tasks = [self._task, *(opened.task for opened in self._open.values())]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # For operators.

    @property
    def _followers(self) -> list[Follower]:
        return [opened.follower for opened in self._open.copy().values() if opened.follower is not None]

    @property
    def is_serving(self) -> bool:
        """Return True if every KV bucket that was served once is served now."""
        return all(opened.is_served or not opened.was_served for opened in self._open.copy().values())

    @property
    def applied(self) -> int:
        """Return the sum of the sequences of the last messages that were applied."""
        return sum(follower.applied for follower in self._followers)

    @property
    def behind(self) -> int:
        """Return the number of messages that had not been delivered at the last deliveries."""
        return sum(follower.behind for follower in self._followers)

    @property
    def torn_s(self) -> float:
        """Return the seconds in which an older change may have been missing."""
        return self._torn_s + sum(follower.torn_s for follower in self._followers)

    @property
    def counts(self) -> CountSum:
        """Return the numbers since the start."""
        total = CountSum()
        total.add(self._ended)
        for follower in self._followers:
            total.add(follower.counts)
        return total

    @property
    def excess(self) -> dict[str, int]:
        """Return by how much the store exceeds each limit, by the name of its option."""
        return self.reservations.excess()

    @property
    def open_count(self) -> int:
        """Return the number of KV buckets that are open or opening."""
        return len(self._open)

    @property
    def identity(self) -> str:
        """Return a text that is the same at all instances that share the KV buckets."""
        return f"jetstream keys=plain {self._of_provider.domain}"

    @property
    def failed(self) -> BaseException | None:
        """Return the exception that ended the background task, or None."""
        task = self._task
        return None if task is None or not task.done() or task.cancelled() else task.exception()

    def faults(self) -> list[str]:
        """Return which KV buckets can't be used, and why."""
        faults = [
            f"the KV bucket {place.kv_bucket} of a link: {why}"
            for place, (why, _) in self._refused.copy().items()
            if not isinstance(why, NoStreamError) or self.linked.get(place) is False
        ]
        faults += [
            f"the KV bucket {opened.place.kv_bucket}: {self._fault(opened)}"
            for opened in self._open.copy().values()
            if opened.was_served and not opened.is_served and not opened.is_closing
        ]
        return faults if len(faults) <= NAMED_MAX else [*faults[:NAMED_MAX], f"{len(faults) - NAMED_MAX} more"]

    def remarks(self) -> list[str]:
        """Return what an operator should know although the KV buckets are served."""
        reading = [
            f"the KV bucket {opened.place.kv_bucket}: {opened.fault}"
            for opened in self._open.copy().values()
            if not opened.was_served and opened.follower is not None and opened.follower.is_reading
        ]
        missing = [
            f"the KV bucket {place.kv_bucket} is watched, but does not exist yet"
            for place, (why, _) in self._refused.copy().items()
            if isinstance(why, NoStreamError) and self.linked.get(place) is not False
        ]
        return [*reading, *missing][:NAMED_MAX] + [
            f"the KV buckets exceed {name} by {excess}: other instances or clients have stored more than this one may"
            for name, excess in self.excess.items()
            if excess
        ]
