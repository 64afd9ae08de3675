"""Evictions beyond the model (test_eviction_model.py): the algorithm, memory, bounds and threads."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_engine import EVICT, BucketOptions, CounterError, FullError, LimitError, Quota, Reach, Store, StoreOptions
from keyvalue_engine.evicting_shard import LOOKS_MAX, EvictingShard
from keyvalue_engine.eviction import EVICTIONS_MAX, FORCED_LOOKS
from keyvalue_engine.options import OLDEST, UNUSED
from tests.engine.clock import NS_PER_MS, Clock
from tests.engine.entries import entries_of, shards_of
from tests.engine.races import run_together

evictions = pytest.mark.parametrize("eviction", [OLDEST, UNUSED])


def evicted(store: Store) -> list[tuple[bytes, bytes]]:
    """Return a list that gets each key that is evicted from now on."""
    keys: list[tuple[bytes, bytes]] = []
    store.observe(lambda _: lambda change, name, key, entry: keys.append((name, key)) if change == EVICT else None)
    return keys


def count_of_unmarked(store: Store) -> int:
    return sum(len(shard.stamps) for shard in shards_of(store) if isinstance(shard, EvictingShard))


class Sieve:
    """SIEVE as its paper describes it: a queue with a hand that moves from the tail to the head."""

    def __init__(self, keys_max: int) -> None:
        self.keys_max = keys_max
        self.queue: list[bytes] = []  # the tail first
        self.visited: set[bytes] = set()
        self.hand = 0
        self.evicted: list[bytes] = []

    def use(self, key: bytes) -> bool:
        if key in self.queue:
            self.visited.add(key)
            return True
        return False

    def add(self, key: bytes) -> None:
        if self.use(key):
            return
        if len(self.queue) == self.keys_max:
            while True:
                self.hand %= len(self.queue)
                if self.queue[self.hand] not in self.visited:
                    break
                self.visited.remove(self.queue[self.hand])
                self.hand += 1
            self.evicted.append(self.queue.pop(self.hand))
        self.queue.append(key)


@given(
    calls=st.lists(st.tuples(st.sampled_from(["get", "get_many", "set", "set_many", "increment"]), st.integers(0, 30))),
    keys_max=st.integers(1, 12),
)
def test_unused_is_sieve(calls: list[tuple[str, int]], keys_max: int) -> None:
    store = Store(StoreOptions(keys_max=keys_max, eviction=UNUSED))
    bucket, keys, model = store.bucket(b"b"), evicted(store), Sieve(keys_max)
    for call, number in calls:
        key = b"%d" % number
        if call == "get":
            assert (bucket.get(key) is not None) is model.use(key)
        elif call == "get_many":
            assert (bucket.get_many([key]) != [None]) is model.use(key)
        elif call == "set":
            bucket.set(key, b"1")
            model.add(key)
        elif call == "set_many":
            bucket.set_many({key: b"1"})
            model.add(key)
        else:
            bucket.increment(key, 1)
            model.add(key)
        assert set(entries_of(store)) == set(model.queue)
        store.check()
    assert [key for _, key in keys] == model.evicted


def test_oldest_follows_the_creation_over_buckets_and_shards() -> None:
    """Among the first evicted keys are hardly any that are not among the oldest."""
    store = Store(StoreOptions(keys_max=20_000, eviction=OLDEST))
    rng = random.Random(1)
    names = [b"large"] * 20 + [b"middle"] * 5 + [b"small %d" % number for number in range(5)]
    created: dict[tuple[bytes, bytes], int] = {}
    keys = evicted(store)
    for number in range(28_000):
        name, key = rng.choice(names), b"%d" % number
        created[name, key] = number
        store.bucket(name).set(key, b"")
    assert len(shards_of(store, b"large")) > 1
    assert len(keys) == 8_000 == store.evicted_keys["keys_max"]
    assert sum(created[key] < 8_000 for key in keys) > 0.85 * 8_000
    assert max(created[key] - at for at, key in enumerate(keys)) < 0.2 * 20_000
    store.check()


@evictions
def test_the_keys_of_a_bucket_that_is_not_written_give_way_too(eviction: str) -> None:
    store = Store(StoreOptions(keys_max=2_000, eviction=eviction))
    for number in range(1_000):
        store.bucket(b"idle %d" % (number % 100)).set(b"%d" % number, b"")
    for number in range(1_990):
        store.bucket(b"busy").set(b"%d" % number, b"")
    assert len(store.bucket(b"busy")) == 1_990
    store.check()


@evictions
def test_used_keys_give_way_at_last(eviction: str) -> None:
    """Even if all keys are used, a write looks at a bounded number of them."""
    store = Store(StoreOptions(keys_max=5_000, eviction=eviction))
    bucket = store.bucket(b"b")
    for number in range(5_000):
        bucket.set(b"%d" % number, b"")
    assert all(bucket.get(b"%d" % number) == b"" for number in range(5_000))
    unmarked = count_of_unmarked(store)
    bucket.set(b"new", b"")
    assert len(store) == 5_000
    assert bucket.get(b"new") == b""
    if eviction == UNUSED:
        assert unmarked == 0
        assert count_of_unmarked(store) <= FORCED_LOOKS + LOOKS_MAX
    store.check()


WORDS = [b"%d" % number for number in range(12)]


@st.composite
def memory_calls(draw: st.DrawFn) -> tuple[str, bytes, list[bytes], int, int | None]:
    return (
        draw(st.sampled_from(["set", "set", "set_many", "increment", "get", "delete", "page", "later"])),
        draw(st.sampled_from([b"a", b"bb", b"long name" * 9])),
        draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)),
        draw(st.sampled_from([0, 10, 200, 2_000, 9_000])),
        draw(st.sampled_from([None, None, 1, 1_000])),
    )


@given(
    calls=st.lists(memory_calls(), max_size=40),
    eviction=st.sampled_from([OLDEST, UNUSED]),
    memory_bytes_max=st.sampled_from([5_000, 10_000, 30_000]),
    quota_bytes=st.sampled_from([None, 1_000, 3_000]),
    shard_keys_max=st.sampled_from([2, 100]),
    strict_buckets=st.booleans(),
)
@settings(deadline=None)
def test_memory_is_exact_and_a_refusal_changes_nothing(
    calls: Iterable[tuple[str, bytes, list[bytes], int, int | None]],
    eviction: str,
    memory_bytes_max: int,
    quota_bytes: int | None,
    shard_keys_max: int,
    strict_buckets: bool,
) -> None:
    clock = Clock(now_ns=10**18)
    options = StoreOptions(
        memory_bytes_max=memory_bytes_max, eviction=eviction, shards_min=2, shard_keys_max=shard_keys_max,
        strict_buckets=strict_buckets,
    )  # fmt: skip
    store = Store(options, clock=clock)
    quota = Quota(Reach(prefix=b"b"), None, quota_bytes)
    store.add_quota(quota)
    keys = evicted(store)
    for call, name, words, size, ttl_ms in calls:
        bucket = store.bucket(name, BucketOptions(quota=quota if name == b"bb" else None, strict_buckets=False))
        word, value, before = words[0], b"1" * size, len(keys)
        own = {(name, key) for key in (words if call == "set_many" else words[:1])}
        counter = bucket.get(word) if call == "increment" else None
        try:
            match call:
                case "set":
                    bucket.set(word, value, ttl_ms)
                    assert bucket.get(word) == value
                case "set_many":
                    entries = {key: value[: size // len(words)] for key in words}
                    bucket.set_many(entries)
                    assert bucket.get_many(words) == [entries[key] for key in words]
                case "increment":
                    assert bucket.increment(word, 10) == int(counter or b"0") + 10
                case "get":
                    bucket.get_many(words)
                case "delete":
                    bucket.delete_many(words)
                case "page":
                    list(bucket.keys())
                case "later":
                    clock.now_ns += 500 * NS_PER_MS
        except CounterError:
            pass
        except LimitError as error:
            assert error.option in ("memory_bytes_max", "quota_bytes")
            assert len(keys) == before, "a refused write evicts nothing"
        assert own.isdisjoint(keys[before:])
        assert len(set(keys[before:])) == len(keys) - before
        store.check()
    assert len(keys) == sum(store.evicted_keys.values())


@evictions
def test_a_write_that_needs_too_many_evictions_is_refused(eviction: str) -> None:
    store = Store(StoreOptions(memory_bytes_max=8_000_000, eviction=eviction))
    bucket, keys = store.bucket(b"b"), evicted(store)
    number = 0
    while not keys:
        bucket.set(b"%d" % number, b"")
        number += 1
    assert number > 2 * EVICTIONS_MAX
    held, before = len(store), len(keys)
    with pytest.raises(FullError, match=r"^about \d+ keys would have to be evicted .* limit is 10001 \(eviction\)$"):
        bucket.set(b"large", bytes(6_000_000))
    with pytest.raises(FullError, match=r"\(memory_bytes_max\)$"):
        bucket.set(b"too large", bytes(8_000_000))
    assert (len(store), len(keys)) == (held, before)
    bucket.set(b"less", bytes(1_000_000))
    assert held - EVICTIONS_MAX < len(store) < held
    assert store.memory_bytes <= 8_000_000
    store.check()


@evictions
def test_a_wrong_estimate_costs_a_bounded_number_of_evictions(eviction: str) -> None:
    """The oldest keys are much smaller than the others, so the estimate is too low. Retries make progress."""
    store = Store(StoreOptions(memory_bytes_max=60_000_000, eviction=eviction))
    bucket, keys = store.bucket(b"b"), evicted(store)
    bucket.set_many({b"%d" % number: b"" for number in range(60_000)})
    while not keys:
        bucket.set(b"large %d" % len(store), bytes(1_000_000))
    for _ in range(10):
        before = len(keys)
        try:
            bucket.set(b"new", bytes(8_000_000))
            break
        except FullError as error:
            assert 0 < len(keys) - before <= 2 * EVICTIONS_MAX + 1, error
    else:
        pytest.fail("no write succeeded")
    assert bucket.get(b"new") == bytes(8_000_000)
    store.check()


@evictions
def test_a_lowered_quota_is_reached_step_by_step(eviction: str) -> None:
    store = Store(StoreOptions(eviction=eviction))
    for number in range(EVICTIONS_MAX + 1_010):
        store.bucket(b"b").set(b"%d" % number, b"")
    quota = Quota(Reach(frozenset({b"b"})), 1_000, None)
    store.add_quota(quota)
    bucket = store.bucket(b"b", BucketOptions(quota=quota))
    with pytest.raises(FullError, match=r"\(eviction\)$"):
        bucket.set(b"new", b"")
    assert quota.keys == 1_009
    bucket.set(b"new", b"")
    assert (quota.keys, store.evicted_keys["quota_keys"]) == (1_000, EVICTIONS_MAX + 11)
    store.check()


@evictions
def test_a_quota_over_many_buckets(eviction: str) -> None:
    """It evicts from all of them, and from no other."""
    store = Store(StoreOptions(eviction=eviction))
    quota = Quota(Reach(prefix=b"mine"), 200, None)
    store.add_quota(quota)
    store.bucket(b"other").set(b"k", b"")
    keys = evicted(store)
    for number in range(1_000):
        store.bucket(b"mine %d" % (number % 100), BucketOptions(quota=quota)).set(b"%d" % number, b"")
    assert quota.keys == 200
    assert len(store) == 201
    assert len({name for name, _ in keys}) > 90
    store.check()


@evictions
def test_a_batch_as_large_as_the_store(eviction: str) -> None:
    store = Store(StoreOptions(keys_max=3_000, eviction=eviction))
    bucket = store.bucket(b"b")
    first = {b"%d" % number: b"" for number in range(3_000)}
    bucket.set_many(first)
    second = {b"%d" % number: b"2" for number in range(1, 3_001)}
    bucket.set_many(second)
    assert dict(bucket.items()) == second
    with pytest.raises(LimitError):
        bucket.set_many({**second, b"one more": b""})
    assert dict(bucket.items()) == second
    store.check()


@evictions
def test_a_load_into_a_smaller_store_keeps_what_fits(eviction: str, tmp_path: object) -> None:
    store = Store(StoreOptions(eviction=eviction))
    for number in range(100):
        store.bucket(b"b").set(b"%d" % number, b"")
    path = f"{tmp_path}/snapshot"
    store.save(path)
    loaded = Store.load(path, StoreOptions(keys_max=10, eviction=eviction))
    assert sorted(loaded.bucket(b"b")) == sorted(b"%d" % number for number in range(90, 100))
    loaded.check()


@evictions
@pytest.mark.usefixtures("hasty_threads")
def test_threads(eviction: str) -> None:
    """Threads that write, read, delete and expire keys in a full store leave right counts, and nothing too much."""
    store = Store(
        StoreOptions(keys_max=300, memory_bytes_max=60_000, eviction=eviction, shard_keys_max=50, shards_min=4)
    )

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(600):
            bucket, key = store.bucket(b"%d" % rng.randrange(3)), b"%d" % rng.randrange(500)
            match rng.randrange(6):
                case 0 | 1:
                    bucket.get(key)
                case 2:
                    bucket.set_many({b"%d" % rng.randrange(500): b"v" for _ in range(5)})
                case 3:
                    bucket.delete(key)
                case 4:
                    bucket.set(key, b"v", ttl_ms=1)
                case _:
                    bucket.set(key, b"v" * rng.randrange(200))

    run_together(*(lambda seed=seed: work(seed) for seed in range(4)))
    assert sum(store.evicted_keys.values()) > 0
    for name in store.bucket_names():
        store.bucket(name).page()
    store.check()
    assert len(store) <= 300
