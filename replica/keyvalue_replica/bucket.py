"""The replicated store as the service sees it: handles with the methods of the engine's, which answer later.

A write is checked against the limits and published. A read waits for a barrier, unless its link reads locally
(`LocalBucket`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from keyvalue_engine import (
    Bucket,
    BucketOptions,
    LimitError,
    Page,
    Quota,
    Revise,
    Revision,
    Store,
    StoreError,
    StoreOptions,
)
from keyvalue_engine.entry import Entry, unless_expired
from keyvalue_engine.errors import KEY_BYTES, VALUE_BYTES, Limit
from keyvalue_engine.room import Growth, growth_of
from keyvalue_replica.answers import Barrier, Removals
from keyvalue_replica.applier import ANY
from keyvalue_replica.core import BATCH_KEYS_MAX, Core
from keyvalue_replica.counters import add_to_be64, add_to_text
from keyvalue_replica.creation import PipelinedCreation
from keyvalue_replica.errors import NotAllowedError
from keyvalue_replica.increments import Step
from keyvalue_replica.layout import NS_PER_MS, ttl_headers
from keyvalue_replica.options import LinkedOptions
from keyvalue_replica.outgoing import Outgoing
from keyvalue_replica.promise import Promise
from keyvalue_replica.set_runs import SetRun

__all__ = ["Read", "ReplicaBucket", "ReplicaStore"]

T = TypeVar("T")

BATCH_KEYS = Limit("an atomic batch has {} keys", "a limit of NATS")
MESSAGE_BYTES = Limit("value is {} bytes", "max_payload of the NATS server")
#: A deadline for the calculation of sizes, which depend only on whether there is one.
SOME_TIME = 0


class Read(Generic[T]):
    """A read that waits for a barrier. Many reads share the barrier, so cancelling one must not cancel the barrier.

    :ivar source: the barrier
    """

    __slots__ = ("_arguments", "_function", "source")

    def __init__(self, source: Any, function: Callable[..., T], *arguments: object) -> None:
        self.source = source
        self._function = function
        self._arguments = arguments

    def derive(self, read: Callable[[], object]) -> T:
        """Return the result. `read` returns at once if the barrier has passed, or raises its error."""
        read()
        return self._function(*self._arguments)

    def __await__(self) -> Generator[object, None, T]:
        yield from self.source.__await__()
        return self._function(*self._arguments)

    def close(self) -> None:
        """Do nothing. Other reads need the barrier."""


class ReplicaStore:
    """The store of an instance. `BucketStore` in the provider lists the methods.

    :param core: publishes and applies; its engine enforces no limits
    :param options: the limits
    :param again: makes the answer of a `get` that must be made again in a callback of the barrier
    :param is_atomic: True if set-many and delete-many are stored together or not at all
    """

    def __init__(
        self, core: Core, options: StoreOptions, again: Callable[[Barrier], object], is_atomic: bool = True
    ) -> None:
        self.core = core
        self.options = options
        self.is_atomic = is_atomic
        self.again = again

    @property
    def engine(self) -> Store:
        """Return the engine's store, which holds what was applied."""
        return self.core.store

    def bucket(self, name: bytes, options: BucketOptions) -> ReplicaBucket:
        """Open a bucket."""
        is_local = isinstance(options, LinkedOptions) and not options.reads_latest
        return LocalBucket(self, name, options) if is_local else ReplicaBucket(self, name, options)

    def add_quota(self, quota: Quota, buckets_max: int) -> None:
        """Start counting for a quota. Count at most `buckets_max` buckets now."""
        self.engine.add_quota(quota, buckets_max)

    def count_quota(self, quota: Quota, buckets_max: int) -> None:
        """Count at most `buckets_max` more buckets."""
        self.engine.count_quota(quota, buckets_max)

    def now_ns(self) -> int:
        """Return the time of the engine's clock."""
        return self.engine.now_ns()

    def remove_quota(self, quota: Quota) -> None:
        """Stop counting for a quota."""
        self.engine.remove_quota(quota)


class ReplicaBucket:
    """A handle for one bucket, whose reads show the newest values. A method returns a value, or an awaitable of it."""

    __slots__ = (
        "_add",
        "_again",
        "_core",
        "_engine",
        "_is_atomic",
        "_key_bytes_max",
        "_name",
        "_quota",
        "_ttl_ms",
        "_value_bytes_max",
        "_writable",
    )

    def __init__(self, store: ReplicaStore, name: bytes, options: BucketOptions) -> None:
        of_store = store.options
        self._core = store.core
        self._again = store.again
        self._name = name
        self._engine: Bucket = store.engine.bucket(name, engine_options(options))
        self._writable = store.engine.bucket(name, ANY)
        self._is_atomic = store.is_atomic
        self._key_bytes_max = options.key_bytes_max or of_store.key_bytes_max
        self._value_bytes_max = options.value_bytes_max or of_store.value_bytes_max
        self._ttl_ms = options.ttl_ms or 0
        self._quota = options.quota
        is_be64 = isinstance(options, LinkedOptions) and options.has_be64_counters
        self._add = add_to_be64 if is_be64 else add_to_text

    # Reads.

    def get(self, key: bytes) -> Any:
        """Return the value of a key, or None; or Again, with which a call waits for a barrier, and is made again."""
        core = self._core
        if core.passing is None:
            return self._wait_for_barrier()
        core.passing.result()
        return self._engine.get(key)

    def get_each(self, keys: Sequence[bytes]) -> Any:
        """Return the values of keys, as one `get` for each does, or Again if they must be read again."""
        core = self._core
        if core.passing is None:
            return self._wait_for_barrier()
        core.passing.result()
        return self._engine.get_each(keys)

    def _wait_for_barrier(self) -> object:
        barrier = self._core.barrier()
        if barrier.again is None:
            barrier.again = self._again(barrier)
        return barrier.again

    def exists(self, key: bytes) -> bool | Read[bool]:
        """Return True if the key exists."""
        return Read(self._core.barrier(), self._engine.exists, key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None] | Read[list[bytes | None]]:
        """Return the values in the order of the keys, with None for each missing key."""
        return Read(self._core.barrier(), self._engine.get_many, keys)

    def entry(self, key: bytes) -> Entry | Read[Entry | None] | None:
        """Return the value of a key with its deadline, or None."""
        return Read(self._core.barrier(), self._engine.entry, key)

    def __len__(self) -> int:
        """Return the number of keys that have arrived at this instance."""
        return len(self._engine)

    def partial_page(self, cursor: int | None, keys_max: int | None, bytes_max: int) -> Page | Read[Page]:
        """Return a page. If the page is empty but has a cursor, the rest of the page starts at the cursor."""
        return Read(self._core.barrier(), self._engine.partial_page, cursor, keys_max, bytes_max)

    # Writes.

    def set(self, key: bytes, value: bytes, ttl_ms: int | None = None) -> Any:
        """Store a value.

        :param ttl_ms: milliseconds until the key expires; None means the handle's `ttl_ms` option
        :raises LimitError: the key or the value is too long, or the store or the quota is full
        :raises UnfitNameError: NATS does not allow the key
        :raises NotAllowedError: the stream does not allow expiry
        """
        core, value_bytes = self._core, len(value)
        if ttl_ms is None:
            ttl_ms = self._ttl_ms
        if len(key) > self._key_bytes_max or value_bytes > self._value_bytes_max or value_bytes > core.value_bytes_max:
            self._check(key, value)
        subject = core.layout.subject(self._name, key)
        if ttl_ms:
            self._check_ttl()
        if self._quota is None and not core.reservations.is_limited and self._engine.is_known():
            reservation = None
        else:
            growth = self._growth(key, (value, SOME_TIME) if ttl_ms else value)
            reservation = core.reservations.reserve(self._name, growth, self._quota)
        if ttl_ms:  # the deadline depends on the timestamp, which the delivery tells
            return core.publish_one(Outgoing(subject, value, ttl_headers(ttl_ms)), reservation)
        return core.publish_value(subject, value, reservation, (self._writable, key, value))

    def begin_sets(self, keys: Sequence[bytes], values: Sequence[bytes]) -> SetRun | None:
        """Store values together. Return None if they must be set one by one, and then nothing was published.

        :param keys: keys of the same size
        :param values: their values, all of the same size
        """
        core, value_bytes = self._core, len(values[0])
        if (
            self._ttl_ms
            or self._quota is not None
            or core.reservations.is_limited
            or not self._engine.is_known()
            or len(keys[0]) > self._key_bytes_max
            or value_bytes > self._value_bytes_max
            or value_bytes > core.value_bytes_max
        ):
            return None
        layout, name = core.layout, self._name
        try:
            subjects = [layout.subject(name, key) for key in keys]
        except StoreError:  # each `set` raises its own
            return None
        run = SetRun(core.publications, self._writable, keys, values)
        core.publish_run(run, subjects)
        return run

    def delete(self, key: bytes) -> Any:
        """Remove a key. The answer says nothing about whether it existed."""
        core = self._core
        message = core.delete_message(core.layout.subject(self._name, key))
        return core.publish_one(message, None, (self._writable, key, None))

    def increment(self, key: bytes, delta: int) -> Any:
        """Add to a counter. The answer is the sum.

        :raises LimitError: the key is too long
        """

        def step(entry: Entry | None) -> tuple[Entry | None, object]:
            value, deadline_ns = entry if isinstance(entry, tuple) else (entry, None)
            total, value = self._add(value, delta)
            if self._ttl_ms:
                deadline_ns = self._deadline_ns(self._core.clock())
            return value if deadline_ns is None else (value, deadline_ns), total

        return self._update(key, step)

    def update(self, key: bytes, revise: Revise) -> Any:
        """Replace the entry of a key by what `revise` makes of it. The answer has the entry before and after.

        :raises LimitError: the key is too long
        """

        def step(entry: Entry | None) -> tuple[Entry | None, object]:
            now_ns = self._core.clock()
            after = unless_expired(revise(entry, now_ns, self._deadline_ns(now_ns)), now_ns)
            return after, Revision(entry, after)

        return self._update(key, step)

    def _update(self, key: bytes, step: Step) -> Promise:
        self._check(key, b"")
        core = self._core
        subject = core.layout.subject(self._name, key)
        if core.layout.max_age_ns:
            step = partial(_begin_age, step)
        return core.update(subject, self._engine, key, step, partial(self._check_entry, key))

    def _deadline_ns(self, now_ns: int) -> int | None:
        return now_ns + self._ttl_ms * NS_PER_MS if self._ttl_ms else None

    def remove(self, keys: Sequence[bytes]) -> Any:
        """Remove keys, each on its own. The answer is the number of those that existed."""
        removals = [self.update(key, lambda entry, now_ns, deadline_ns: None) for key in dict.fromkeys(keys)]
        return Removals(removals)

    def set_missing(self, entries: Mapping[bytes, bytes]) -> Any:
        """Store all entries if all keys are missing. The answer is True if they were stored.

        With `batch = pipelined`, each is stored on its own, and an error may leave some of them stored.

        :raises LimitError: a key or a value is too long, or there are too many keys
        """
        if len(entries) == 1 or not self._is_atomic:
            for key, value in entries.items():
                self._check(key, value)
            update = partial(self._create_one, entries)
            if len(entries) == 1:
                return update(*entries)
            return PipelinedCreation(self._core, self._writable, entries, update)
        messages, _ = self._messages(entries)
        return self._core.create(
            self._writable,
            messages,
            lambda: self._core.reservations.reserve(self._name, self._messages(entries)[1], self._quota),
        )

    def _create_one(self, entries: Mapping[bytes, bytes], key: bytes) -> Promise:
        def step(entry: Entry | None) -> tuple[Entry | None, object]:
            if entry is not None:
                return entry, False
            deadline_ns = self._deadline_ns(self._core.clock())
            return entries[key] if deadline_ns is None else (entries[key], deadline_ns), True

        return self._update(key, step)

    def set_many(self, entries: Mapping[bytes, bytes]) -> Any:
        """Store all entries or none. With `batch = pipelined`, an error may leave some of them stored.

        :raises LimitError: a key or a value is too long, there are too many keys, or the store or the quota is full
        """
        if not entries:
            return None
        core = self._core
        messages, growth = self._messages(entries)
        reservation = core.reservations.reserve(self._name, growth, self._quota)
        return core.publish_all([*messages.values()], reservation, self._is_atomic)

    def _messages(self, entries: Mapping[bytes, bytes]) -> tuple[dict[bytes, Outgoing], Growth]:
        """Return the messages that store entries, by key, and the room that they need."""
        ttl_ms, layout = self._ttl_ms, self._core.layout
        if ttl_ms:
            self._check_ttl()
        headers = ttl_headers(ttl_ms) if ttl_ms else b""
        messages = {}
        keys = memory_bytes = 0
        for key, value in entries.items():
            self._check(key, value)
            growth = self._growth(key, (value, SOME_TIME) if ttl_ms else value)
            keys += growth.keys
            memory_bytes += growth.memory_bytes
            messages[key] = Outgoing(layout.subject(self._name, key), value, headers)
        self._check_batch(len(messages))
        return messages, Growth(keys, memory_bytes)

    def delete_many(self, keys: Sequence[bytes]) -> Any:
        """Remove keys.

        :raises LimitError: there are too many keys
        """
        core, layout = self._core, self._core.layout
        messages = [core.delete_message(layout.subject(self._name, key)) for key in dict.fromkeys(keys)]
        if not messages:
            return 0
        self._check_batch(len(messages))
        return core.publish_all(messages, None, self._is_atomic)

    def _check(self, key: bytes, value: bytes) -> None:
        if len(key) > self._key_bytes_max:
            raise LimitError(KEY_BYTES, len(key), self._key_bytes_max)
        if len(value) > self._value_bytes_max:
            raise LimitError(VALUE_BYTES, len(value), self._value_bytes_max)
        self._core.look_up_limit()
        if len(value) > self._core.value_bytes_max:
            raise LimitError(MESSAGE_BYTES, len(value), self._core.value_bytes_max)

    def _check_batch(self, keys: int) -> None:
        if not self._is_atomic:
            return
        if keys > BATCH_KEYS_MAX:
            raise LimitError(BATCH_KEYS, keys, BATCH_KEYS_MAX)
        layout = self._core.layout
        if keys > 1 and not layout.allows_batches:
            raise NotAllowedError(
                f"{layout.stream} allows no atomic batches (allow_atomic): set batch=pipelined to store key by key,"
                " or jetstream_adopt=true to switch them on"
            )

    def _check_ttl(self) -> None:
        layout = self._core.layout
        if not layout.allows_ttl:
            raise NotAllowedError(
                f"{layout.stream} allows no messages that expire (allow_msg_ttl): leave ttl_ms out,"
                " or set jetstream_adopt=true to switch them on"
            )

    def _check_entry(self, key: bytes, entry: Entry | None) -> None:
        if isinstance(entry, tuple):
            self._check_ttl()
        if entry is not None:
            self._check(key, entry[0] if isinstance(entry, tuple) else entry)
            self._core.reservations.check(self._name, self._growth(key, entry), self._quota)

    def _growth(self, key: bytes, entry: Entry) -> Growth:
        return growth_of(key, self._engine.entry(key), entry)


class LocalBucket(ReplicaBucket):
    """A handle whose reads show what has arrived at this instance. They are the engine's, with nothing in between."""

    __slots__ = ("entry", "exists", "get", "get_each", "get_many", "partial_page")

    def __init__(self, store: ReplicaStore, name: bytes, options: BucketOptions) -> None:
        super().__init__(store, name, options)
        for read in self.__slots__:
            setattr(self, read, getattr(self._engine, read))


def _begin_age(step: Step, entry: Entry | None) -> tuple[Entry | None, object]:
    """Take a step in a stream with `max_age`. A deadline that an entry keeps may be that of its age, which begins anew."""
    after, outcome = step(entry)
    if after is not entry and isinstance(after, tuple) and isinstance(entry, tuple) and after[1] == entry[1]:
        after = after[0]
    return after, outcome


def engine_options(options: BucketOptions) -> BucketOptions:
    """Return the options that the engine uses for reads. A KV bucket with plain names exists without keys, too."""
    is_plain = isinstance(options, LinkedOptions) and options.is_plain
    return BucketOptions(
        page_keys_max=options.page_keys_max,
        page_bytes_max=options.page_bytes_max,
        strict_buckets=False if is_plain else options.strict_buckets,
    )
