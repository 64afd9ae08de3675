"""The single commit point of a shard, and the writes that are inlined for speed: each behaves as `_commit` does.

Two stores make the same calls. One has real shards; in the other (`Reference`), every write calls `_commit`, computes
its sizes by the formula, and counts nothing ahead. Afterwards they must agree in all that a write touches: entries,
deadlines, order, counts, what the observer is told, and what is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_engine import (
    EXPIRE,
    SET,
    Bucket,
    BucketOptions,
    Change,
    CounterError,
    Entry,
    LimitError,
    Quota,
    Reach,
    Store,
    StoreOptions,
    tables,
)
from keyvalue_engine.deadlines import STALE_BYTES
from keyvalue_engine.entry import BUCKET_BYTES, SHARD_BYTES, Timed, bytes_size, entry_size
from keyvalue_engine.long_keys import LONG_KEY_BYTES
from keyvalue_engine.shard import Shard
from tests.engine.clock import Clock
from tests.engine.entries import shards_of

pytestmark = pytest.mark.usefixtures("few_keys_count_ahead")

SECRET = bytes(16)
#: Lengths on both sides of each rounding step.
LENGTHS = [0, 1, 2, 15, 16, 17, 31, 32]
#: Few keys, so that each is written again and again.
keys = st.sampled_from([b"", b"k" * 15, b"k" * 16])
values = st.sampled_from([b"1" * length for length in LENGTHS] + [b"9", b"99", b"text"])
ttls_ms = st.sampled_from([None, None, None, 1, 5, 9])


class Reference(Shard):
    """A shard with no inlined writes, and no counts ahead."""

    __slots__ = ()
    evicts = True  # so `Bucket.set` leaves the write to this class

    def put(self, key: bytes, value: bytes, quota: Quota | None, ttl_ns: int) -> int:
        now_ns = self._expiry.clock()
        old = self._live(key, now_ns)
        self._commit(SET, key, (value, now_ns + ttl_ns) if ttl_ns else value, old, quota)
        return len(self.entries)

    def growth(self, part: Sequence[bytes], entries: Mapping[bytes, bytes], deadline_ns: int | None) -> tuple[int, int]:
        sizes = [entry_size(key, entries[key] if deadline_ns is None else (entries[key], deadline_ns)) for key in part]
        known = [entry_size(key, self.entries[key]) for key in part if key in self.entries]
        return len(sizes) - len(known), sum(sizes) - sum(known)

    def put_many(self, part: Sequence[bytes], entries: Mapping[bytes, bytes], deadline_ns: int | None) -> None:
        for key in part:
            entry = entries[key] if deadline_ns is None else (entries[key], deadline_ns)
            self._commit(SET, key, entry, self.entries.get(key), charged=True)

    def _remove_due(self, due: Mapping[bytes, Timed]) -> None:
        deadlines = self.deadlines
        assert deadlines is not None
        deadlines.count += len(due)  # `_commit` subtracts them, and adds them to the spare bytes
        for key, entry in due.items():
            deadlines._spare_bytes -= STALE_BYTES + len(key)
            self._commit(EXPIRE, key, None, entry)
        self._expiry.count(len(due))


@dataclass(frozen=True)
class Conditions:
    """The conditions that decide whether a write may take the short path.

    :ivar quota_bytes_max: the limit of a quota of the store, or None for no quota, so that keys may be counted ahead
    :ivar is_limited: True if the quota limits the writes
    """

    observed: bool = False
    ordered: bool = False
    timed: bool = False
    room_bytes: int | None = None
    quota_bytes_max: int | None = None
    is_limited: bool = False


conditions = st.builds(
    Conditions,
    observed=st.booleans(),
    ordered=st.booleans(),
    timed=st.booleans(),
    room_bytes=st.sampled_from([None, None, 500, 900]),
    quota_bytes_max=st.sampled_from([None, None, 700, 10**6]),
    is_limited=st.booleans(),
)

#: A key that stays, so that the bucket and its shard do.
STAYS = b"stays"
LEAST_BYTES = BUCKET_BYTES + bytes_size(1) + SHARD_BYTES + entry_size(STAYS, b"")


class Subject:
    """A bucket with one shard, and the store that it depends on."""

    def __init__(self, kind: type[Shard], conditions: Conditions, clock: Clock) -> None:
        self.clock = clock
        room_bytes = conditions.room_bytes
        memory_bytes_max = None if room_bytes is None else LEAST_BYTES + room_bytes
        self.store = Store(StoreOptions(keys_max=7, memory_bytes_max=memory_bytes_max), secret=SECRET, clock=clock)
        if kind is Reference:
            self.store._tables.ledger.counts_ahead = False
        self.quota: Quota | None = None
        self.covering = Quota(Reach(), None, conditions.quota_bytes_max)
        if conditions.quota_bytes_max is not None:
            self.store.add_quota(self.covering)
            self.quota = self.covering if conditions.is_limited else None
        with patch.object(tables, "Shard", kind):
            self.handle().set(STAYS, b"")
        [self.shard] = shards_of(self.store)
        self.events: list[tuple[Change, bytes, bytes, Entry | None]] = []
        if conditions.observed:
            self.store.observe(lambda name: lambda *event: self.events.append(event))
        if conditions.timed:
            self.handle().set(b"timed", b"", 10**6)
        if conditions.ordered:
            self.page()

    def handle(self, ttl_ms: int | None = None, value_bytes_max: int | None = None) -> Bucket:
        return self.store.bucket(b"b", BucketOptions(ttl_ms=ttl_ms, value_bytes_max=value_bytes_max, quota=self.quota))

    def page(self) -> list[bytes]:
        return self.handle().page().keys

    def state(self) -> object:
        """Return everything that a write touches."""
        shard = self.shard
        self.store.check()
        assert [shard] == shards_of(self.store)
        return (
            [*shard.entries.items()],
            None if shard.deadlines is None else shard.deadlines.count,
            None if shard.order is None else shard.order.changes,
            (shard._expiry.was_used, shard._expiry.expired_keys, len(shard._expiry)),
            (len(self.store), self.store.memory_bytes, self.covering.keys, self.covering.memory_bytes),
            self.events,
        )


Call = Callable[[Subject], object]
sets: st.SearchStrategy[Call] = st.builds(lambda k, v, ttl: lambda it: it.handle(ttl).set(k, v), keys, values, ttls_ms)
calls: st.SearchStrategy[Call] = st.one_of(
    sets,
    sets,
    sets,
    st.builds(
        lambda k, n, most, ttl: lambda it: it.handle(ttl, most).increment(k, n),
        keys,
        st.sampled_from([0, 1, 10**15, 2**64 - 1]),
        st.sampled_from([1, 99]),
        ttls_ms,
    ),
    st.builds(
        lambda entries, ttl: lambda it: it.handle(ttl).set_many(entries),
        st.dictionaries(keys, values, min_size=1, max_size=4),
        ttls_ms,
    ),
    st.builds(
        lambda entries, ttl: lambda it: it.handle(ttl).set_each(*zip(*entries, strict=True)),
        st.lists(st.tuples(keys, values), min_size=1, max_size=4),
        ttls_ms,
    ),
    st.builds(
        lambda entries, ttl: lambda it: it.handle(ttl).increment_each(*zip(*entries, strict=True)),
        st.lists(st.tuples(keys, st.sampled_from([0, 1, 2**64 - 1])), min_size=1, max_size=4),
        ttls_ms,
    ),
    st.builds(lambda k: lambda it: it.handle().delete(k), keys),
    st.builds(lambda k: lambda it: it.handle().persist(k), keys),
    st.just(lambda it: it.store.sweep(100)),
    st.just(Subject.page),
)


def outcome(call: Call, subject: Subject) -> object:
    try:
        return call(subject)
    except (LimitError, CounterError) as error:
        return type(error), str(error)


@settings(max_examples=200)
@given(conditions=conditions, steps=st.lists(st.tuples(st.integers(0, 4), calls), min_size=10, max_size=40))
def test_an_inlined_write_does_what_the_commit_point_does(
    conditions: Conditions, steps: list[tuple[int, Call]]
) -> None:
    clock = Clock()
    subject, reference = Subject(Shard, conditions, clock), Subject(Reference, conditions, clock)
    for passing_ms, call in steps:
        clock.move_ms(passing_ms)
        assert outcome(call, subject) == outcome(call, reference)
        assert subject.state() == reference.state()


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("ttl_ms", [None, 5])
@pytest.mark.parametrize("length", LENGTHS)
def test_each_inlined_size_agrees_with_the_formula(
    length: int, ttl_ms: int | None, timed: bool, observed: bool, ordered: bool
) -> None:
    """Write under each condition that has an inlined size. `state` counts the memory again."""
    subject = Subject(Shard, Conditions(observed, ordered, timed), Clock())
    key, before, value = b"k" * length, b"0" * 15, b"1" * length
    handle = subject.handle(ttl_ms)
    calls: list[Callable[[], object]] = [
        lambda: handle.set(key, before),
        lambda: handle.set(key, value),
        lambda: handle.persist(key),
        lambda: handle.set(key, before),
        lambda: handle.set_many({key: value, key + b"l": value}),
        lambda: handle.set_many({key: before}),
        lambda: handle.set(key + b"ll", value),
        lambda: handle.increment(key, 10**15),
        lambda: handle.persist(key),
        lambda: handle.delete(key),
    ]
    for call in calls:
        call()
        subject.state()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"k", b"", b"l" * (LONG_KEY_BYTES + 1), bytearray(b"k")]),
            st.sampled_from([b"v", b"w", b"long", bytearray(b"x")]),
        ),
        max_size=6,
    )
)
def test_sets_together_are_sets_one_by_one(entries: list[tuple[bytes, bytes]]) -> None:
    """Two sets may fail: the bucket has long keys, and a value of the handle takes at most three bytes."""
    together, singly = (Subject(Shard, Conditions(), Clock()) for _ in range(2))
    for subject in (together, singly):
        subject.handle().set(b"k", b"long")
    stored = 0
    with suppress(LimitError):
        for key, value in entries:
            singly.handle(None, 3).set(key, value)
            stored += 1
    keys, values = [key for key, _ in entries], [value for _, value in entries]
    assert together.handle(None, 3).set_each(keys, values) == stored
    assert together.state() == singly.state()
    with pytest.raises(TypeError):
        together.handle().set_each([b"k", b"new"], [b"v", "text"])  # type: ignore[list-item] # which is the point
    assert together.state() == singly.state()


def test_the_commit_point_changes_nothing_when_it_refuses_a_write() -> None:
    subject = Subject(Shard, Conditions(observed=True, ordered=True, timed=True, room_bytes=900), Clock())
    before = repr(subject.state())
    for entry in (bytes(BUCKET_BYTES), (bytes(BUCKET_BYTES), 1)):
        with pytest.raises(LimitError):
            subject.shard._commit(SET, b"k", entry, None)
        assert repr(subject.state()) == before
