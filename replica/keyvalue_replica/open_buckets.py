"""The KV buckets with plain names that an instance holds copies of. Each is opened at its first use.

    call ── handle ──┬── the KV bucket is served: the handle of its copy, which is kept for later calls
                     └── otherwise: a handle whose calls wait until it is, for `jetstream_timeout_ms` at most

    absent ── first use ──> opening ── caught up ──> served <──> not served: its follower says why
      ^                        │                        │             │
      └──────── refused ───────┘                        └── unused ───┴── for too long ──> closing ──> absent

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
from typing import NamedTuple

from keyvalue_engine import BucketOptions, NoSuchBucketError, Quota, Store, StoreError, StoreOptions
from keyvalue_engine.errors import Limit, LimitError
from keyvalue_replica.answers import Barrier
from keyvalue_replica.bucket import ReplicaBucket, ReplicaStore
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.company import Company
from keyvalue_replica.errors import NoStreamError, NotStoredError, StreamError
from keyvalue_replica.follower import TICK_S, Follower
from keyvalue_replica.options import LinkedOptions, ReplicaOptions, plain_name
from keyvalue_replica.plain_layout import PlainLayout, check_bucket_name
from keyvalue_replica.publications import CountSum
from keyvalue_replica.reservations import Reservations
from keyvalue_replica.waiting_bucket import RefusingBucket, WaitingBucket
from keyvalue_replica.wires import SharedWires
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["KvPlace", "OpenBuckets"]

log = logging.getLogger(__name__)

OPEN_BUCKETS = Limit("the provider would hold {} KV buckets open", "open_buckets_max")
#: Number of KV buckets that are read at a time.
OPENING_MAX = 16
#: Seconds between two looks which KV buckets are used.
LOOK_S = 5.0
#: Seconds after which a KV bucket that is not served is closed. Its next use opens it again.
FAULTY_S = 15.0
#: Seconds until a KV bucket of a link that could not be opened is tried again.
RETRY_S = 10.0
#: Number of KV buckets that health names.
NAMED_MAX = 5


class KvPlace(NamedTuple):
    """Where a KV bucket is.

    :ivar domain: its JetStream domain, or "" for that of the provider
    """

    domain: str
    kv_bucket: str

    @property
    def name(self) -> bytes:
        """Return the name that the engine has for it."""
        return plain_name(self.domain, self.kv_bucket.encode())


class OpenBucket:
    """One KV bucket that is opening, open or closing. It is served while its follower follows the stream.

    :ivar changed: set whenever anything about it changes; a waiting call then looks again
    :ivar refusal: why it could not be opened
    :ivar store: opens handles; None until the follower has caught up
    :ivar is_served: True while calls may be answered
    :ivar was_served: True once it was served
    """

    def __init__(self, place: KvPlace, on_change: Callable[[], None]) -> None:
        self.place = place
        self.used_s = self.faulty_s = monotonic()
        self.changed = asyncio.Event()
        self.refusal: Exception | None = None
        self.follower: Follower | None = None
        self.store: ReplicaStore | None = None
        self.is_served = self.was_served = self.is_closing = False
        self.task: asyncio.Task[None] | None = None
        self._on_change = on_change

    async def join(self) -> None:
        """Answer calls, because the copy is complete."""
        self.is_served = self.was_served = True
        self.wake()
        self._on_change()

    async def leave(self) -> None:
        """Let calls wait."""
        if self.is_served:
            self.faulty_s = monotonic()
            self.hide()

    def hide(self) -> None:
        """Let no call find the copy."""
        was_served, self.is_served = self.is_served, False
        self.wake()
        if was_served:  # otherwise, calls to missing buckets would make all other calls slower
            self._on_change()

    def wake(self) -> None:
        """Wake the calls that wait."""
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def fault(self) -> str:
        """Return why it is not served."""
        return (self.follower.fault if self.follower is not None else None) or "it is being opened"

    @property
    def is_idle(self) -> bool:
        """Return True if no change is in flight."""
        return self.follower is None or not len(self.follower.core.publications)


class OpenBuckets:
    """All KV buckets with plain names that an instance has open. It opens handles for them.

    :param options: how KV buckets are opened; the name is ignored
    :param limits: the limits of the store
    :param again: makes the answer of a `get` that must be made again in a callback of the barrier
    :param buckets_max: the number of KV buckets that may be open
    :param idle_s: seconds after which a KV bucket that nobody uses is closed
    :ivar on_change: called when kept handles must be dropped
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
        self._company = Company(self.store, clock, self.reservations, SharedWires(connection))
        self._connection = connection
        self._of_provider = options
        self._again = again
        self._buckets_max = buckets_max
        self._idle_s = idle_s
        self._open: dict[KvPlace, OpenBucket] = {}
        self._wanted: dict[KvPlace, bool] = {}  # those of links, with True for those that may be created
        self._refused: dict[KvPlace, tuple[str, float]] = {}  # why one of a link could not be opened, and when
        self._opening = asyncio.Semaphore(OPENING_MAX)
        self._task: asyncio.Task[None] | None = None
        self._torn_s = 0.0  # of those that are closed
        self._is_stopping = False
        self.on_change: Callable[[], None] = lambda: None
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
        :raises NoSuchBucketError: it does not exist, and may not be created
        :raises NotStoredError: it is not served in time, or does not fit
        :raises LimitError: too many KV buckets are open
        """
        may_create = isinstance(options, LinkedOptions) and options.creates
        ends_s = monotonic() + self._of_provider.timeout_s
        while True:
            opened = self._open.get(place) or self._begin(place, creates and may_create)
            if opened.is_served and opened.store is not None:
                opened.used_s = monotonic()
                return opened.store.bucket(place.name, options)
            try:
                async with asyncio.timeout(ends_s - monotonic()):
                    await opened.changed.wait()
            except TimeoutError:
                raise NotStoredError(f"the KV bucket {place.kv_bucket} can't be used: {opened.fault}") from None
            if isinstance(opened.refusal, NoStreamError):
                if not may_create:
                    raise NoSuchBucketError(place.name)
                if not creates:
                    return None
                continue
            if opened.refusal is not None:
                raise NotStoredError(f"the KV bucket {place.kv_bucket} can't be used: {opened.refusal}")

    # Opening and closing.

    def want(self, wanted: Mapping[KvPlace, bool]) -> None:
        """Open the KV buckets that links name, unless they are open.

        :param wanted: True for those that are created if they do not exist
        """
        added = [place for place, creates in wanted.items() if self._wanted.get(place) is not creates]
        self._wanted = dict(wanted)
        self._refused = {place: refused for place, refused in self._refused.items() if place in wanted}
        for place in added:
            self._try(place)

    def _try(self, place: KvPlace) -> None:
        """Open a KV bucket of a link if there is room."""
        if place in self._open:
            return
        if self._held < self._buckets_max:
            self._begin(place, self._wanted[place])
        else:
            error = LimitError(OPEN_BUCKETS, self._held + 1, self._buckets_max)
            self._refused[place] = str(error), monotonic()

    @property
    def _held(self) -> int:
        return sum(not opened.is_closing for opened in self._open.values())

    def _begin(self, place: KvPlace, creates: bool) -> OpenBucket:
        """Begin to open a KV bucket.

        :raises LimitError: too many are open, and all are in use
        """
        if len(self._open) >= self._buckets_max and self._held >= self._buckets_max:
            self._make_room()
        opened = self._open[place] = OpenBucket(place, lambda: self.on_change())
        opened.task = asyncio.create_task(self._run(opened, creates))
        return opened

    def _make_room(self) -> None:
        """Close the KV bucket that was not used for the longest time.

        :raises LimitError: all are in use
        """
        unused_s = monotonic() - 2 * LOOK_S
        idle = [each for each in self._open.values() if each.used_s < unused_s and each.is_idle and not each.is_closing]
        if not idle:
            raise LimitError(OPEN_BUCKETS, self._held + 1, self._buckets_max)
        self._close(min(idle, key=lambda each: each.used_s))

    async def _run(self, opened: OpenBucket, creates: bool) -> None:
        """Open a KV bucket, and follow it until `_close` is called."""
        place = opened.place
        domain = place.domain or self._of_provider.domain
        options = replace(self._of_provider, bucket=place.kv_bucket, domain=domain, creates=creates)
        follower = Follower(self._connection, options, PlainLayout(place.kv_bucket, place.name, domain), self._company)
        try:
            async with self._opening:
                await follower.open(self.options, options.timeout_s)
                core = follower.core
                core.publications.observe = self.observe
                opened.follower = follower
                opened.store = ReplicaStore(core, self.options, self._again, options.is_atomic)
                follower.start(opened)
                await follower.wait_caught_up()
            await asyncio.Event().wait()
        except (StreamError, DisconnectedError) as error:
            opened.refusal = error
            if place in self._wanted:
                self._refused[place] = str(error), monotonic()
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
            await follower.stop()
            if self._is_stopping:
                return
            await follower.empty()
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
            await asyncio.sleep(TICK_S)
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
            is_unused = now_s - opened.used_s > self._idle_s and opened.is_idle
            is_faulty = not opened.is_served and now_s - opened.faulty_s > FAULTY_S
            is_stuck = is_faulty and not opened.follower.is_reading
            if is_unused or is_stuck or opened.follower.is_refused or opened.follower.failed is not None:
                self._close(opened)
        for place, (_, tried_s) in list(self._refused.items()):
            if now_s - tried_s > RETRY_S:
                self._try(place)
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
        """Stop following."""
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
            f"the KV bucket {place.kv_bucket} of a link: {why}" for place, (why, _) in self._refused.copy().items()
        ]
        faults += [
            f"the KV bucket {opened.place.kv_bucket}: {opened.fault}"
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
        return reading[:NAMED_MAX] + [
            f"the KV buckets exceed {name} by {excess}: other instances or clients have stored more than this one may"
            for name, excess in self.excess.items()
            if excess
        ]
