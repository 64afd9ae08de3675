"""The guarantee of a walk, under churn and under threads, and other writes by threads.

The guarantee: a key that exists during the whole walk comes exactly once. A key that is added or removed meanwhile
comes at most once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from threading import Barrier

import pytest
from siphashc import siphash

from keyvalue_engine import Bucket, LimitError, Store, StoreOptions
from keyvalue_engine.entry import BUCKET_BYTES, EMPTIED_BYTES, SHARD_BYTES, bytes_size, entry_size
from tests.engine.races import TIMEOUT_S, placed, run_together

SECRET = bytes(16)


def position_of(key: bytes) -> int:
    return siphash(SECRET, key)


class Walk:
    """A walk of a bucket from `start` on. Its cursor is its only state."""

    def __init__(self, start: int | None = None, keys_max: int | None = None) -> None:
        self.start = start
        self.keys_max = keys_max
        self.cursor = start
        self.is_done = False
        self.seen: list[bytes] = []

    def step(self, bucket: Bucket) -> None:
        page = bucket.page(self.cursor, self.keys_max)
        self.seen += page.keys
        self.cursor = page.cursor
        self.is_done = page.cursor is None

    def finish(self, bucket: Bucket) -> Walk:
        while not self.is_done:
            self.step(bucket)
        return self

    def check(self, stayed: set[bytes], churned: set[bytes]) -> None:
        """Assert the guarantee, for keys at and after the start."""
        assert self.is_done
        positions = [position_of(key) for key in self.seen]
        assert positions == sorted(positions)
        assert all(position >= (self.start or 0) for position in positions)
        counts = Counter(self.seen)
        assert [key for key, count in counts.items() if count > 1] == []
        assert {key for key in stayed if position_of(key) >= (self.start or 0)} == counts.keys() - churned
        assert counts.keys() <= stayed | churned


# Half of the keys stay, a quarter are deleted and a quarter are added.
COUNT = 20_000
STAYED = [b"stays %d" % number for number in range(COUNT // 2)]
REMOVED = [b"goes %d" % number for number in range(COUNT // 4)]
ADDED = [b"comes %d" % number for number in range(COUNT // 4)]
CHURNED = {*REMOVED, *ADDED}


def populated(options: StoreOptions) -> Store:
    store = Store(options, secret=SECRET)
    bucket = store.bucket(b"b")
    for key in (*STAYED, *REMOVED):
        bucket.set(key, b"v")
    return store


def churn(bucket: Bucket, rng: Random) -> Iterator[None]:
    """Make all changes in random order, a few at a time."""
    changes = [(key, False) for key in REMOVED] + [(key, True) for key in ADDED]
    rng.shuffle(changes)
    for number, (key, is_added) in enumerate(changes):
        if is_added:
            bucket.set(key, b"v")
        else:
            assert bucket.delete(key)
        if number % 100 == 0:
            yield


@pytest.mark.parametrize(
    ("shards_min", "shard_keys_max"),
    [(1, 2**20), (1, 1_000), (64, 30)],
)
def test_walks_under_churn(shards_min: int, shard_keys_max: int) -> None:
    store = populated(StoreOptions(shards_min=shards_min, shard_keys_max=shard_keys_max))
    bucket = store.bucket(b"b")
    rng = Random(11)
    walks = [Walk(keys_max=200), Walk(0, 100), Walk(2**63, 150), Walk(rng.getrandbits(64), 160), Walk(2**64 - 1)]
    changes = churn(bucket, rng)
    under_way = [*walks]
    pages_under_churn = 0
    while under_way:
        for walk in under_way:
            walk.step(bucket)
        under_way = [walk for walk in under_way if not walk.is_done]
        pages_under_churn += next(changes, changes) is None
    assert pages_under_churn > 50, "the walks ended before the churn began"
    for walk in walks:
        walk.check({*STAYED}, CHURNED)
    for _ in changes:
        pass
    Walk().finish(bucket).check({*STAYED, *ADDED}, set())
    store.check()


def test_an_unneeded_split_does_not_happen() -> None:
    """Another thread may have split the shard, or deleted one of its keys, since the write that asked for the split."""
    store = Store(StoreOptions(shard_keys_max=2, shards_min=1), hash_function=placed)
    bucket = store.bucket(b"b")
    bucket.set_many({b"0": b"", b"1": b""})
    table = store._tables.by_name[b"b"]
    [shard] = before = [*table.shards()]
    table.split(shard)
    assert [*table.shards()] == before
    bucket.set(b"2", b"")
    after = [*table.shards()]
    assert shard.retired and len(after) == 4
    table.split(shard)
    assert [*table.shards()] == after
    store.check()


# Threads


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize(("shards_min", "shard_keys_max"), [(1, 2**20), (4, 100), (1, 20)])
def test_walks_by_threads_under_churn_by_threads(shards_min: int, shard_keys_max: int) -> None:
    store = Store(StoreOptions(shards_min=shards_min, shard_keys_max=shard_keys_max, page_keys_max=100), secret=SECRET)
    bucket = store.bucket(b"b")
    stayed = {b"stays %d" % number for number in range(2_000)}
    for key in stayed:
        bucket.set(key, b"v")
    churned = {b"churn %d %d" % (writer, number) for writer in range(8) for number in range(300)}
    left: dict[bytes, bytes] = {}

    def write(writer: int) -> None:
        rng = Random(writer)
        own: dict[bytes, bytes] = {}
        for step in range(4_000):
            key = b"churn %d %d" % (writer, rng.randrange(300))
            assert bucket.get(key) == own.get(key)
            if key in own:
                assert bucket.delete(key) is True
                del own[key]
            else:
                own[key] = b"%d" % step
                bucket.set(key, own[key])
        left.update(own)

    def walk(walker: int) -> None:
        for _ in range(10):
            Walk(keys_max=50 + 50 * walker).finish(bucket).check(stayed, churned)

    run_together(*[lambda n=n: write(n) for n in range(8)], *[lambda n=n: walk(n) for n in range(4)])
    store.check()
    assert {key: bucket.get(key) for key in churned if bucket.exists(key)} == left
    Walk().finish(bucket).check(stayed | left.keys(), set())


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("shard_keys_max", [1, 4_096])
def test_threads_that_empty_and_refill_a_bucket_lose_no_write(strict: bool, shard_keys_max: int) -> None:
    store = Store(StoreOptions(strict_buckets=strict, shard_keys_max=shard_keys_max, shards_min=1), secret=SECRET)

    def empty_and_refill(thread: int) -> None:
        bucket = store.bucket(b"b")
        key = b"%d" % thread
        for step in range(2_000):
            value = b"%d" % step
            bucket.set(key, value)
            assert bucket.get(key) == value
            assert key in bucket.page(position_of(key)).keys
            assert bucket.delete(key) is True
            assert bucket.get(key) is None
            assert bucket.delete(key) is False

    def read() -> None:
        bucket = store.bucket(b"b")
        for _ in range(500):
            walk = Walk().finish(bucket)
            walk.check(set(), {b"%d" % thread for thread in range(8)})
            assert len(bucket) <= 8

    run_together(read, *[lambda n=n: empty_and_refill(n) for n in range(8)])
    store.check()
    assert store.bucket_names() == []
    assert len(store) == 0
    assert store.memory_bytes == (EMPTIED_BYTES + bytes_size(1) if strict else 0)


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("shard_keys_max", [1, 2, 5])
def test_threads_that_split_shards_lose_no_write(shard_keys_max: int) -> None:
    for _ in range(8):
        store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1), secret=SECRET)
        bucket = store.bucket(b"b")

        def fill(thread: int, bucket: Bucket = bucket) -> None:
            for number in range(40):
                key = b"%d %d" % (thread, number)
                bucket.set(key, key)
                assert bucket.get(key) == key

        run_together(*[lambda n=n, fill=fill: fill(n) for n in range(8)])
        assert len(store) == len(bucket) == 8 * 40
        assert all(bucket.get(key) == key for key in list(bucket.keys()))
        store.check()


@pytest.mark.usefixtures("hasty_threads")
def test_threads_that_split_and_merge_shards_lose_no_write(tmp_path: Path) -> None:
    store = Store(StoreOptions(shard_keys_max=160, shards_min=4), secret=SECRET)
    bucket = store.bucket(b"b")
    stayed = {b"stays %d" % number for number in range(10)}
    bucket.set_many(dict.fromkeys(stayed, b"v"))
    rings: set[int] = set()
    writers_left = [None] * 3

    def write(writer: int) -> None:
        keys = [b"%d %d" % (writer, number) for number in range(200)]
        try:
            for _ in range(10):
                for key in keys:
                    bucket.set(key, key, ttl_ms=None if writer else 60_000)
                assert bucket.get_many(keys) == keys
                rings.add(len(store._tables.by_name[b"b"].ring[1]))
                for key in keys:
                    assert bucket.delete(key) is True
                assert bucket.get_many(keys) == [None] * len(keys)
                rings.add(len(store._tables.by_name[b"b"].ring[1]))
        finally:
            writers_left.pop()

    def walk() -> None:
        while writers_left:
            assert bucket.get_many(sorted(stayed)) == [b"v"] * len(stayed)
            Walk(keys_max=7).finish(bucket).check(stayed, {b"%d %d" % (w, n) for w in range(3) for n in range(200)})

    def save() -> None:
        while writers_left:
            store.save(tmp_path / "snapshot")
            assert stayed <= {*Store.load(tmp_path / "snapshot").bucket(b"b").keys()}

    run_together(*[lambda n=n: write(n) for n in range(3)], walk, walk, save)
    assert len(rings) > 1
    assert {*bucket.keys()} == stayed
    store.check()


def memory_of(keys: int, bucket_names: int) -> int:
    """Return the memory of one-shard buckets that hold this number of keys in all."""
    buckets_bytes = bucket_names * (BUCKET_BYTES + bytes_size(1) + SHARD_BYTES)
    return buckets_bytes + keys * entry_size(b"0 000", b"v")


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize(
    ("options", "option"),
    [
        (StoreOptions(keys_max=1_000), "keys_max"),
        (StoreOptions(memory_bytes_max=memory_of(1_000, 1)), "memory_bytes_max"),
    ],
)
def test_limits_are_exact_under_threads(options: StoreOptions, option: str) -> None:
    store = Store(options, secret=SECRET)
    bucket = store.bucket(b"b")
    admitted: list[bytes] = []
    refused: list[LimitError] = []

    def fill(thread: int) -> None:
        for number in range(250):
            key = b"%d %03d" % (thread, number)
            try:
                bucket.set(key, b"v")
            except LimitError as error:
                refused.append(error)
            else:
                admitted.append(key)

    run_together(*[lambda n=n: fill(n) for n in range(8)])
    assert (len(admitted), len(refused), len(store)) == (1_000, 1_000, 1_000)
    assert {error.option for error in refused} == {option}
    assert {error.found - error.allowed for error in refused} == {
        1 if option == "keys_max" else entry_size(b"0 000", b"v")
    }
    assert {*bucket.keys()} == {*admitted}
    store.check()


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("strict", [False, True])
def test_first_sets_that_fail_in_threads_leave_the_bucket_unknown(strict: bool) -> None:
    store = Store(StoreOptions(keys_max=1, strict_buckets=strict), secret=SECRET)
    store.bucket(b"full").set(b"k", b"v")
    memory_bytes = store.memory_bytes
    together = Barrier(8, timeout=TIMEOUT_S)

    def fail(key: bytes) -> None:
        for _ in range(300):
            together.wait()
            with pytest.raises(LimitError, match=r"^the store would hold 2 keys; the limit is 1 \(keys_max\)$"):
                store.bucket(b"fresh").set(key, b"v")

    run_together(*[lambda n=n: fail(b"%d" % n) for n in range(8)])
    assert store.bucket_names() == [b"full"]
    assert store.memory_bytes == memory_bytes
    store.check()


@pytest.mark.usefixtures("hasty_threads")
def test_a_failed_first_set_keeps_a_bucket_that_another_thread_wrote() -> None:
    store = Store(StoreOptions(memory_bytes_max=1_000_000, strict_buckets=True), secret=SECRET)
    together = Barrier(8, timeout=TIMEOUT_S)

    def fail() -> None:
        for number in range(200):
            together.wait()
            with pytest.raises(
                LimitError,
                match=r"^the store would take \d+ bytes of memory; the limit is 1000000 \(memory_bytes_max\)$",
            ):
                store.bucket(b"%d" % number).set(b"large", bytes(1_000_000))

    def write(key: bytes) -> None:
        for number in range(200):
            bucket = store.bucket(b"%d" % number)
            together.wait()
            bucket.set(key, b"v")
            assert bucket.delete(key) is True

    run_together(*[fail] * 4, *[lambda n=n: write(b"%d" % n) for n in range(4)])
    assert store.bucket_names() == []
    assert store._tables.emptied.keys() == {b"%d" % number for number in range(200)}
    store.check()
