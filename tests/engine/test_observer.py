"""Observers that come, go and are replaced, and the order of events under threads.

The model (test_model.py) replays what an observer is told, and compares it with the store after each step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import count, pairwise
from random import Random

import pytest

from keyvalue_engine import (
    DELETE,
    EXPIRE,
    PERSIST,
    SET,
    BucketOptions,
    Change,
    Entry,
    Observer,
    Store,
    StoreOptions,
)
from keyvalue_engine.invariants import check_shard
from keyvalue_engine.ledger import Account
from keyvalue_engine.shard import Shard
from tests.engine.clock import NS_PER_MS, Clock
from tests.engine.entries import shards_of
from tests.engine.races import run_together

#: An event of a key, and the value that the key holds now.
Event = tuple[Change, bytes, Entry | None]


def was_set(key: bytes, value: bytes, deadline_ms: int | None = None) -> Event:
    return SET, key, value if deadline_ms is None else (value, deadline_ms * NS_PER_MS)


class Record:
    """An observer that records what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Change, bytes, bytes, Entry | None]] = []

    def __call__(self, change: Change, bucket: bytes, key: bytes, entry: Entry | None) -> None:
        self.events.append((change, bucket, key, entry))

    def take(self) -> list[Event]:
        """Return the events since the last call, all of bucket b"b"."""
        assert {bucket for _, bucket, _, _ in self.events} <= {b"b"}
        taken = [(change, key, entry) for change, _, key, entry in self.events]
        self.events.clear()
        return taken


def test_the_observer_of_a_bucket_is_asked_for_once() -> None:
    store = Store()
    store.bucket(b"before").set(b"k", b"v")
    asked: list[bytes] = []
    records: defaultdict[bytes, Record] = defaultdict(Record)

    def observer_of(name: bytes) -> Observer | None:
        asked.append(name)
        return None if name == b"unwatched" else records[name]

    store.observe(observer_of)
    assert asked == [b"before"]
    for name in (b"before", b"after", b"unwatched"):
        for number in range(3):
            store.bucket(name).set(b"k", b"%d" % number)
    assert asked == [b"before", b"after", b"unwatched"]
    assert {name: len(record.events) for name, record in records.items()} == {b"before": 3, b"after": 3}
    store.bucket(b"after").delete(b"k")
    store.bucket(b"after").set(b"k", b"anew")
    assert asked[3:] == [b"after"], "a freed bucket is a new one when it is recreated"
    assert records[b"after"].events[3:] == [(DELETE, b"after", b"k", None), (SET, b"after", b"k", b"anew")]


def test_observers_may_be_replaced_and_removed() -> None:
    store = Store()
    bucket = store.bucket(b"b")
    first, second = Record(), Record()
    store.observe(lambda name: first)
    bucket.set(b"k", b"1")
    store.observe(lambda name: second)
    bucket.set(b"k", b"2")
    bucket.delete(b"k")
    store.observe(None)
    bucket.set(b"k", b"3")
    bucket.set_many({b"k": b"4"})
    bucket.delete(b"k")
    assert first.take() == [was_set(b"k", b"1")]
    assert second.take() == [was_set(b"k", b"2"), (DELETE, b"k", None)]


class FleetingAccount(Account):
    """An account whose observer another thread removes as soon as it was read."""

    left: Observer | None

    @property
    def observer(self) -> Observer | None:
        observer, self.left = self.left, None
        return observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self.left = observer


@pytest.mark.parametrize(
    ("write", "event"),
    [
        (lambda shard: shard.set(b"k", b"new"), was_set(b"k", b"new")),
        (lambda shard: shard.set(b"k", b"new", None, NS_PER_MS), was_set(b"k", b"new", 1)),
        (lambda shard: shard.increment(b"k", 1, 99, None, 0), was_set(b"k", b"8")),
        (lambda shard: shard.put_many([b"k"], {b"k": b"5"}, None), was_set(b"k", b"5")),
        (lambda shard: shard.delete(b"k"), (DELETE, b"k", None)),
    ],
)
def test_removing_an_observer_during_a_write_does_no_harm(
    write: Callable[[Shard], object], event: Event, clock: Clock
) -> None:
    store = Store(clock=clock)
    store.bucket(b"b").set(b"k", b"v")
    [known] = store._tables.by_name[b"b"].shards()
    account = FleetingAccount(b"b", store._tables.ledger)
    shard = Shard(0, 0, known.context._replace(account=account))
    shard.set(b"k", b"7")
    record = account.observer = Record()
    write(shard)
    assert shard.entries.get(b"k") == event[2]
    assert record.take() in ([event], []), "the observer may still be told of a write in progress"
    check_shard(shard)


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("shard_keys_max", [1, 4_096])
def test_events_of_a_key_come_in_the_order_of_its_writes_under_threads(shard_keys_max: int) -> None:
    """Write in every way while a sweep runs, shards split and the bucket is emptied.

    Replayed, the events give the store at each moment.
    """
    ticks = count(step=NS_PER_MS // 4)
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), clock=ticks.__next__, secret=bytes(16))
    events: dict[bytes, list[Entry | None]] = {b"%d" % number: [] for number in range(6)}
    kinds: list[Change] = []
    removals: list[int] = []
    persisted: list[int] = []

    def note(change: Change, name: bytes, key: bytes, entry: Entry | None) -> None:
        events[key].append(entry)
        kinds.append(change)

    store.observe(lambda name: note)
    keys = [*events]
    bucket, timed = store.bucket(b"b"), store.bucket(b"b", BucketOptions(ttl_ms=2))

    def write(writer: int) -> None:
        rng = Random(writer)
        removed = kept = 0
        for step in range(400):
            key, value = rng.choice(keys), b"%d" % (writer * 10**6 + step)
            match rng.randrange(6):
                case 0:
                    bucket.set(key, value)
                case 1:
                    timed.set(key, value)
                case 2:
                    timed.set_many(dict.fromkeys(rng.sample(keys, 3), value))
                case 3:
                    removed += bucket.delete(key)
                case 4:
                    removed += bucket.delete_many(keys)
                case 5:
                    kept += bucket.persist(key)
        removals.append(removed)
        persisted.append(kept)

    def count_up() -> None:
        for _ in range(800):
            bucket.increment(b"0", 1)

    def sweep() -> None:
        for _ in range(800):
            store.sweep(2)

    run_together(*[lambda n=n: write(n) for n in range(1, 6)], count_up, *[sweep] * 2)
    store.check()
    store.observe(None)
    held = {key: entry for shard in shards_of(store) for key, entry in shard.entries.items()}
    assert {key: told[-1] for key, told in events.items() if told and told[-1] is not None} == held
    for told in events.values():
        assert (None, None) not in pairwise([None, *told]), "a missing key is removed once"
    assert kinds.count(DELETE) == sum(removals) > 0
    assert kinds.count(EXPIRE) == store.expired_keys > 0
    assert kinds.count(PERSIST) == sum(persisted) > 0
    assert sum(told.count(None) for told in events.values()) == kinds.count(DELETE) + kinds.count(EXPIRE)


@pytest.mark.usefixtures("hasty_threads")
def test_every_sum_of_a_counter_is_told_in_order() -> None:
    store = Store()
    record = Record()
    store.observe(lambda name: record)

    def increment() -> None:
        for _ in range(500):
            store.bucket(b"b").increment(b"n", 1)

    run_together(*[increment] * 8)
    assert record.take() == [was_set(b"n", b"%d" % total) for total in range(1, 4_001)]


@pytest.mark.usefixtures("hasty_threads")
def test_observers_come_and_go_under_threads() -> None:
    store = Store(StoreOptions(shard_keys_max=4, shards_min=1))
    record = Record()

    def write(writer: int) -> None:
        bucket = store.bucket(b"b")
        for step in range(1_000):
            bucket.set(b"%d" % writer, b"%d" % step)
            bucket.set(b"%d" % writer, b"%d" % step, ttl_ms=10**9)
            bucket.delete(b"%d" % writer)

    def switch() -> None:
        for _ in range(1_000):
            store.observe(lambda name: record)
            store.observe(None)

    run_together(*[lambda n=n: write(n) for n in range(6)], *[switch] * 2)
    store.check()
    assert (len(store), store.memory_bytes) == (0, 0)
    assert len(record.events) <= 6 * 3 * 1_000
    record.events.clear()
    store.bucket(b"b").set(b"k", b"v")
    assert record.events == []
    store.observe(lambda name: record)
    store.bucket(b"b").delete(b"k")
    assert record.take() == [(DELETE, b"k", None)]
