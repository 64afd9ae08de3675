"""Tables of cases that the model (test_model.py) leaves out: memory limits, limits of a handle, options, crowded positions, splits."""

from __future__ import annotations

import doctest
import importlib
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from siphashc import siphash

from keyvalue_engine import (
    Bucket,
    BucketOptions,
    FullError,
    LimitError,
    NoSuchBucketError,
    Page,
    Store,
    StoreError,
    StoreOptions,
)
from keyvalue_engine.entry import (
    BUCKET_BYTES,
    EMPTIED_BYTES,
    ORDER_BYTES,
    ORDER_OBJECT_BYTES,
    SHARD_BYTES,
    bytes_size,
    entry_size,
)
from keyvalue_engine.filling import KEY_OVERHEAD_BYTES
from keyvalue_engine.order import (
    CHANGES_BYTES_MIN,
    CHANGES_BYTES_PER_KEY,
    CHANGES_MIN,
    CHANGES_SHARE,
)
from keyvalue_engine.shard import Shard

CURSOR_MAX = 2**64 - 1


def placed(secret: bytes, key: bytes) -> int:
    """Hash a key to the position that its text names: b"7:a" and b"7:b" are both at 7."""
    return int(key.partition(b":")[0])


def pages(bucket: Bucket, keys_max: int | None = None, cursor: int | None = None) -> list[list[bytes]]:
    """Yield the pages of a walk. Fail if a cursor does not rise."""
    found = []
    while True:
        page = bucket.page(cursor, keys_max)
        found.append(page.keys)
        if page.cursor is None:
            return found
        assert cursor is None or page.cursor > cursor
        cursor = page.cursor


def shards(store: Store, name: bytes = b"b") -> list[Shard]:
    return list(store._tables.by_name[name].shards())


def filled(
    count: int, options: StoreOptions | None = None, *, secret: bytes = bytes(16)
) -> tuple[Store, Bucket, list[bytes]]:
    """Return a store with `count` keys in its bucket b"b", and the keys in the bucket's order."""
    store = Store(options, secret=secret)
    bucket = store.bucket(b"b")
    keys = [b"key %d" % number for number in range(count)]
    for key in keys:
        bucket.set(key, b"value of " + key)
    return store, bucket, sorted(keys, key=lambda key: siphash(secret, key))


# Buckets


@pytest.mark.parametrize("strict", [False, True])
def test_a_handle_creates_nothing(strict: bool) -> None:
    store = Store(StoreOptions(strict_buckets=strict))
    bucket = store.bucket(b"b")
    assert bucket.page() == Page([], None)
    assert list(bucket.keys()) == []
    assert (len(bucket), bucket.ttl_ms(b"k"), bucket.persist(b"k")) == (0, None, False)
    bucket.set_many({})
    assert repr(bucket) == "Bucket(b'b')"
    assert (store.bucket_names(), store.bucket_count, store.memory_bytes) == ([], 0, 0)
    store.check()


@pytest.mark.parametrize("store_is_strict", [False, True])
@pytest.mark.parametrize("handle_is_strict", [False, True, None])
def test_a_strict_handle_refuses_to_read_a_bucket_that_was_never_written(
    store_is_strict: bool, handle_is_strict: bool | None
) -> None:
    store = Store(StoreOptions(strict_buckets=store_is_strict))
    bucket = store.bucket(b"n" * 100, BucketOptions(strict_buckets=handle_is_strict))
    reads: list[Callable[[], object]] = [
        lambda: bucket.get(b"k"),
        lambda: bucket.exists(b"k"),
        lambda: bucket.delete(b"k"),
        lambda: bucket.get_many([b"k"]),
        lambda: bucket.delete_many([b"k"]),
    ]
    for read in reads:
        if handle_is_strict is False or (handle_is_strict is None and not store_is_strict):
            assert read() in (None, False, [None], 0)
        else:
            with pytest.raises(NoSuchBucketError) as caught:
                read()
            assert str(caught.value) == f"bucket b'{'n' * 64}' was never written, and strict_buckets is set"
            assert caught.value.bucket == b"n" * 100
            assert isinstance(caught.value, StoreError)
    bucket.set(b"k", b"v")
    assert bucket.get(b"k") == b"v"
    store.check()


def test_emptied_buckets_do_not_count_and_the_oldest_are_forgotten() -> None:
    store = Store(StoreOptions(strict_buckets=True, buckets_max=3))
    names = [b"%d" % number for number in range(7)]
    for name in names:
        store.bucket(name).set(b"k", b"v")
        store.bucket(name).delete(b"k")
        assert store.bucket_count == 0
    remembered_bytes = 3 * (EMPTIED_BYTES + bytes_size(1))
    assert store.memory_bytes == remembered_bytes
    for name in names[:4]:
        with pytest.raises(NoSuchBucketError):
            store.bucket(name).get(b"k")
    for name in names[4:]:
        assert store.bucket(name).get(b"k") is None
        assert store.bucket(name).delete(b"k") is False
        store.bucket(name).set(b"k", b"v")
    assert store.memory_bytes == 3 * (BUCKET_SIZE + SHARD_BYTES + ENTRY_SIZE)
    with pytest.raises(FullError, match=r"^the store would hold 4 buckets; the limit is 3 \(buckets_max\)$"):
        store.bucket(names[0]).set(b"k", b"v")
    store.check()


# Memory limits and limits of a handle

TIMED = BucketOptions(ttl_ms=1)
BUCKET_SIZE = BUCKET_BYTES + bytes_size(1)
ENTRY_SIZE = entry_size(b"1", b"v")
#: A write to a store that holds b"1" and b"2" in b"full"; the memory that it needs first, and in all.
WRITES: list[tuple[Callable[[Store], object], int, int]] = [
    (lambda store: store.bucket(b"full").set(b"k", b"v"), ENTRY_SIZE, ENTRY_SIZE),
    (lambda store: store.bucket(b"full").set(b"1", bytes(16)), 16, 16),
    (lambda store: store.bucket(b"full").increment(b"k", 1), ENTRY_SIZE, ENTRY_SIZE),
    (lambda store: store.bucket(b"full").set_many({b"1": bytes(16), b"k": b""}), ENTRY_SIZE + 16, ENTRY_SIZE + 16),
    # a new bucket needs memory for itself, then for its keys
    (lambda store: store.bucket(b"b").set(b"k", b"v"), BUCKET_SIZE, BUCKET_SIZE + SHARD_BYTES + ENTRY_SIZE),
    (
        lambda store: store.bucket(b"b").set_many({b"1": b"v", b"2": b"v"}),
        BUCKET_SIZE,
        BUCKET_SIZE + SHARD_BYTES + 2 * ENTRY_SIZE,
    ),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("write", "first_bytes", "all_bytes"), WRITES)
def test_a_write_just_fits_the_memory_limit_or_is_refused_and_changes_nothing(
    write: Callable[[Store], object], first_bytes: int, all_bytes: int, strict: bool
) -> None:
    held_bytes = BUCKET_BYTES + bytes_size(4) + SHARD_BYTES + 2 * ENTRY_SIZE

    def store_of(memory_bytes_max: int) -> Store:
        store = Store(StoreOptions(memory_bytes_max=memory_bytes_max, strict_buckets=strict))
        store.bucket(b"full").set_many({b"1": b"v", b"2": b"v"})
        assert store.memory_bytes == held_bytes
        return store

    refusals = {(first_bytes - 1, first_bytes), (all_bytes - 1, all_bytes)}
    if first_bytes < all_bytes:
        refusals.add((first_bytes, all_bytes))
    for room_bytes, needed_bytes in refusals:
        allowed, found = held_bytes + room_bytes, held_bytes + needed_bytes
        store = store_of(allowed)
        for _ in range(2):
            with pytest.raises(LimitError) as caught:
                write(store)
            error = caught.value
            assert (error.option, error.found, error.allowed) == ("memory_bytes_max", found, allowed)
            needed = f"the store would take {found} bytes of memory"
            assert str(error) == f"{needed}; the limit is {allowed} (memory_bytes_max)"
        assert (store.bucket_names(), store.memory_bytes, len(store)) == ([b"full"], held_bytes, 2)
        assert store.bucket(b"full").get_many([b"1", b"2", b"k"]) == [b"v", b"v", None]
        store.check()
    store = store_of(held_bytes + all_bytes)
    write(store)
    assert store.memory_bytes == held_bytes + all_bytes
    store.check()


def test_at_the_memory_limit_an_overwrite_may_be_smaller_or_of_the_same_size() -> None:
    full_bytes = BUCKET_BYTES + bytes_size(1) + SHARD_BYTES + entry_size(b"k", bytes(100))
    store = Store(StoreOptions(memory_bytes_max=full_bytes))
    bucket = store.bucket(b"b")
    bucket.set(b"k", bytes(100))
    bucket.set(b"k", b"1" * 100)
    bucket.set(b"k", b"2" * 84)
    assert store.memory_bytes == full_bytes - 16
    needed = f"{full_bytes + 16} bytes of memory"
    with pytest.raises(LimitError, match=rf"{needed}; the limit is {full_bytes} \(memory_bytes_max\)$"):
        bucket.set(b"k", bytes(116))
    bucket.set(b"k", b"")
    assert bucket.get(b"k") == b""
    store.check()


def test_a_handle_has_its_own_limits() -> None:
    store = Store(StoreOptions(key_bytes_max=4, value_bytes_max=4, page_keys_max=2, page_bytes_max=100))
    tight = store.bucket(b"b", BucketOptions(key_bytes_max=1, value_bytes_max=1, page_keys_max=1))
    loose = store.bucket(b"b", BucketOptions(key_bytes_max=9, value_bytes_max=9, page_keys_max=9, page_bytes_max=25))
    plain = store.bucket(b"b")
    for bucket, allowed in ((tight, 1), (plain, 4), (loose, 9)):
        bucket.set(b"k" * allowed, b"1" * allowed)
        assert bucket.increment(b"k" * allowed, 0) == int(b"1" * allowed)
        long_key, long_value = b"k" * (allowed + 1), b"v" * (allowed + 1)
        writes: list[tuple[Callable[[], object], str]] = [
            (partial(bucket.set, long_key, b""), "key"),
            (partial(bucket.set_many, {long_key: b""}), "key"),
            (partial(bucket.increment, long_key, 1), "key"),
            (partial(bucket.set, b"k", long_value), "value"),
            (partial(bucket.set_many, {b"k": long_value}), "value"),
            (partial(bucket.increment, b"k" * allowed, 10**allowed), "value"),
        ]
        for write, what in writes:
            message = f"{what} is {allowed + 1} bytes; the limit is {allowed} ({what}_bytes_max)"
            with pytest.raises(LimitError, match=f"^{re.escape(message)}$"):
                write()
        assert bucket.get(b"k" * allowed) == b"1" * allowed
    assert [len(bucket.page().keys) for bucket in (tight, plain, loose)] == [1, 2, 2]
    assert [len(bucket.page(keys_max=9).keys) for bucket in (tight, plain, loose)] == [3, 3, 2]
    assert len(list(tight.keys())) == len(list(loose.keys())) == 3
    store.check()


# Options

LENGTH_TOP, NUMBER_TOP = 2**30, 2**63 - 1
TOPS: list[tuple[type[StoreOptions] | type[BucketOptions], str, int]] = [
    (StoreOptions, "key_bytes_max", LENGTH_TOP),
    (StoreOptions, "value_bytes_max", LENGTH_TOP),
    (StoreOptions, "bucket_name_bytes_max", LENGTH_TOP),
    (StoreOptions, "buckets_max", NUMBER_TOP),
    (StoreOptions, "keys_max", NUMBER_TOP),
    (StoreOptions, "memory_bytes_max", NUMBER_TOP),
    (StoreOptions, "page_keys_max", NUMBER_TOP),
    (StoreOptions, "page_bytes_max", NUMBER_TOP),
    (StoreOptions, "shard_keys_max", NUMBER_TOP),
    (BucketOptions, "key_bytes_max", LENGTH_TOP),
    (BucketOptions, "value_bytes_max", LENGTH_TOP),
    (BucketOptions, "page_keys_max", NUMBER_TOP),
    (BucketOptions, "page_bytes_max", NUMBER_TOP),
    (BucketOptions, "ttl_ms", 2**63 // 1_000_000),
]


@pytest.mark.parametrize(("kind", "name", "top"), TOPS)
def test_a_numeric_option_has_a_type_and_a_range(kind: Any, name: str, top: int) -> None:
    for wrong in (0, -1, top + 1):
        with pytest.raises(ValueError, match=f"^{name}: found {wrong}, allowed 1 to {top}$"):
            kind(**{name: wrong})
    is_optional = kind is BucketOptions or name == "memory_bytes_max"
    wrong_types: list[Any] = ["1", 1.0, True]
    for wrong_type in wrong_types if is_optional else [*wrong_types, None]:
        with pytest.raises(TypeError, match=f"^{name}: found {type(wrong_type).__name__}, allowed int$"):
            kind(**{name: wrong_type})
    for right in (1, top, None) if is_optional else (1, top):
        assert getattr(kind(**{name: right}), name) == right


@pytest.mark.parametrize("kind", [StoreOptions, BucketOptions])
def test_strict_buckets_is_true_or_false(kind: Any) -> None:
    for wrong in ("true", 1, 0, 1.0):
        with pytest.raises(TypeError, match=f"^strict_buckets: found {type(wrong).__name__}, allowed bool$"):
            kind(strict_buckets=wrong)


@pytest.mark.parametrize("wrong", [0, -1, -2, 3, 48, 65_535, 2**17])
def test_the_least_number_of_shards_is_a_power_of_two(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"^shards_min: found {wrong}, allowed a power of two from 1 to 65536$"):
        StoreOptions(shards_min=wrong)
    wrong_type: Any = str(wrong)
    with pytest.raises(TypeError, match=r"^shards_min: found str, allowed int$"):
        StoreOptions(shards_min=wrong_type)


def test_a_secret_has_16_bytes_and_errors_do_not_show_it() -> None:
    for length in (0, 15, 17):
        with pytest.raises(ValueError, match=f"^secret: found {length} bytes, allowed 16$"):
            Store(secret=bytes(length))
    wrong_type: Any = "sixteen letters!"
    with pytest.raises(TypeError, match=r"^secret: found str, allowed bytes$"):
        Store(secret=wrong_type)
    orders = []
    for secret in (bytes(16), bytes(15) + b"\1"):
        _, bucket, keys = filled(50, secret=secret)
        assert list(bucket.keys()) == keys
        orders.append(keys)
    assert orders[0] != orders[1]
    assert Store()._tables.secret != Store()._tables.secret, "it is random unless it is given"


def test_the_order_of_keys_is_siphash_2_4() -> None:
    """Compare with the first vectors of the authors' implementation: secret 00 01 .. 0f, messages of 0 to 3 bytes."""
    bucket = Store(secret=bytes(range(16))).bucket(b"b")
    positions = [0x726FDB47DD0E0E31, 0x74F839C593DC67FD, 0x0D6C8009D9A94F5A, 0x85676696D7FB7E2D]
    keys = [bytes(range(length)) for length in range(4)]
    bucket.set_many(dict.fromkeys(keys, b""))
    for key, position in zip(keys, positions, strict=True):
        assert bucket.page(position, 1).keys == [key]
        assert key not in bucket.page(position + 1).keys


# Pages


@pytest.mark.parametrize("cursor", [-1, 2**64])
def test_a_cursor_has_64_bits(cursor: int) -> None:
    for bucket in (filled(1)[1], Store().bucket(b"never written")):
        with pytest.raises(ValueError, match=f"^cursor: found {cursor}, allowed 0 to "):
            bucket.page(cursor)


@pytest.mark.parametrize("keys_max", [0, -1])
def test_a_page_holds_at_least_one_key(keys_max: int) -> None:
    for bucket in (filled(1)[1], Store().bucket(b"never written")):
        with pytest.raises(ValueError, match=f"^keys_max: found {keys_max}, allowed at least 1$"):
            bucket.page(keys_max=keys_max)


@pytest.mark.parametrize("keys_max", [2**63 - 2, 2**63 - 1, 2**64])
def test_a_page_may_be_as_large_as_its_limit_says(keys_max: int) -> None:
    _, bucket, keys = filled(10)
    assert bucket.page(keys_max=keys_max) == Page(keys, None)
    if keys_max < 2**63:
        assert filled(10, StoreOptions(page_keys_max=keys_max))[1].page() == Page(keys, None)


def test_keys_at_both_ends_of_the_ring() -> None:
    store = Store(StoreOptions(shard_keys_max=1, shards_min=1), hash_function=placed)
    keys = [b"0:", b"1:", b"%d:" % (2**63 - 1), b"%d:" % 2**63, b"%d:" % (CURSOR_MAX - 1), b"%d:" % CURSOR_MAX]
    for key in reversed(keys):
        store.bucket(b"b").set(key, b"")
    assert pages(store.bucket(b"b"), 1) == [[key] for key in keys]
    for key in keys:
        assert store.bucket(b"b").page(placed(b"", key), 1).keys == [key]


def test_the_bytes_of_a_page_are_counted_over_shards() -> None:
    options = StoreOptions(page_bytes_max=2 * (24 + KEY_OVERHEAD_BYTES), shard_keys_max=1, shards_min=1)
    store = Store(options, hash_function=placed)
    keys = [(b"%d:" % (quarter << 62)).ljust(24, b"k") for quarter in range(4)]
    for key in keys:
        store.bucket(b"b").set(key, b"")
    assert len(shards(store)) == 4
    assert pages(store.bucket(b"b")) == [keys[:2], keys[2:]]


# Crowded positions


def crowded(options: StoreOptions, *runs: tuple[int, int], key_bytes: int = 8) -> Bucket:
    """Make a bucket with runs of keys of `key_bytes` each. A run is given as (position, count)."""
    bucket = Store(options, hash_function=placed).bucket(b"b")
    for position, count in runs:
        for number in range(count):
            bucket.set((b"%d:%d" % (position, number)).ljust(key_bytes, b"."), b"")
    return bucket


@pytest.mark.parametrize(
    ("options", "key_bytes", "count"),
    [
        (StoreOptions(page_keys_max=1), 8, 3_000),
        (StoreOptions(page_bytes_max=100), 46, 3),
        (StoreOptions(page_bytes_max=100), 50_000, 20),
        (StoreOptions(page_keys_max=1, shard_keys_max=1, shards_min=1), 8, 3),
    ],
)
def test_a_crowd_comes_on_one_page_whatever_its_size(options: StoreOptions, key_bytes: int, count: int) -> None:
    bucket = crowded(options, (1, 1), (7, count), (9, 1), (CURSOR_MAX, count), key_bytes=key_bytes)
    found = pages(bucket)
    assert [[placed(b"", key) for key in keys] for keys in found] == [[1], [7] * count, [9], [CURSOR_MAX] * count]
    assert len({key for keys in found for key in keys}) == len(bucket)
    bucket._tables.check()


# Orders and splits


@pytest.mark.parametrize("others", [1, 1_000])
def test_writes_without_pages_grow_only_the_entries(others: int) -> None:
    store, bucket, keys = filled(others, StoreOptions(shard_keys_max=20_000))
    [shard] = shards(store)
    assert shards(store)[0].order is None, "nothing is sorted before a page is asked for"
    unordered_bytes = store.memory_bytes
    changes_max = max(CHANGES_MIN, others // CHANGES_SHARE) + 1
    for _ in range(2):
        assert list(bucket.keys()) == keys
        ordered_bytes = store.memory_bytes
        assert ordered_bytes == unordered_bytes + ORDER_OBJECT_BYTES + ORDER_BYTES * others
        bucket.set(keys[0], bytes(len(bucket.get(keys[0]) or b"")))
        order = shard.order
        assert order is not None
        assert not order.changes, "an overwrite moves no key"
        noted = 0
        while any(known.order is not None for known in shards(store)):
            assert 0 <= store.memory_bytes - ordered_bytes <= CHANGES_BYTES_MIN + CHANGES_BYTES_PER_KEY * (others + 1)
            bucket.set(b"churn", b"v")
            bucket.delete(b"churn")
            store.check()
            noted += 2
        assert changes_max <= noted <= changes_max + 1
        assert store.memory_bytes == unordered_bytes
        store.check()


@pytest.mark.parametrize(("shards_min", "first"), [(1, 4), (2, 4), (4, 4), (8, 8), (64, 64), (1024, 1024)])
def test_a_bucket_has_one_shard_until_it_outgrows_it(shards_min: int, first: int) -> None:
    store, bucket, _ = filled(100, StoreOptions(shards_min=shards_min, shard_keys_max=100))
    assert len(shards(store)) == 1
    bucket.set(b"one more", b"")
    assert len(shards(store)) == first
    store.check()


def test_only_the_shard_that_grows_too_large_is_split() -> None:
    store = Store(StoreOptions(shards_min=4, shard_keys_max=4), hash_function=placed)
    bucket = store.bucket(b"b")
    quarter = 2**62
    for position in (0, 1 * quarter, 2 * quarter, 3 * quarter, quarter + 1):
        bucket.set(b"%d:" % position, b"")
    assert [shard.depth for shard in shards(store)] == [2, 2, 2, 2]
    for place in (1, 2, 3):
        bucket.set(b"%d:" % (quarter + place * quarter // 4), b"")
    assert [shard.depth for shard in shards(store)] == [2, 4, 4, 4, 4, 2, 2]
    assert [shard.start for shard in shards(store)] == sorted(shard.start for shard in shards(store))
    assert all(before.end == after.start for before, after in pairwise(shards(store)))
    store.check()


@pytest.mark.parametrize("shards_min", [64, 2**15])
def test_a_shard_at_the_largest_depth_grows(shards_min: int) -> None:
    """The last split but one leaves a depth of 14 or 15, so the last one makes four shards or two."""
    options = StoreOptions(shard_keys_max=1, shards_min=shards_min, page_keys_max=200)
    store = Store(options, hash_function=placed)
    bucket = store.bucket(b"b")
    for number in range(100):
        bucket.set(b"5:%d" % number, b"")
    assert len(store._tables.by_name[b"b"].ring[1]) == 2**16
    assert max(shard.depth for shard in shards(store)) == 16
    assert len(bucket.page().keys) == 100
    store.check()
    for number in range(100):
        assert bucket.delete(b"5:%d" % number)
    assert store.memory_bytes == 0


# Examples


@pytest.mark.parametrize(
    "name",
    [
        "keyvalue_engine",
        "keyvalue_engine.bucket",
        "keyvalue_engine.counter",
        "keyvalue_engine.entry",
        "keyvalue_engine.options",
        "keyvalue_engine.store",
    ],
)
def test_the_examples_of_the_documentation_run(name: str) -> None:
    module: Any = importlib.import_module(name)
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


# A bucket as a mapping


def test_a_bucket_has_the_operators_of_a_mapping() -> None:
    store = Store(StoreOptions(page_keys_max=3))
    bucket = store.bucket(b"b")
    assert not bucket
    assert bucket is not None
    entries = {b"%d" % number: b"value %d" % number for number in range(10)}
    for key, value in entries.items():
        bucket[key] = value
    assert bucket
    assert len(bucket) == 10
    assert dict(bucket.items()) == dict(bucket) == {key: bucket[key] for key in bucket} == entries
    assert list(bucket) == list(bucket.keys()) == [key for key, _ in bucket.items()]
    assert sorted(bucket.values()) == sorted(entries.values())
    assert (b"3" in bucket, b"x" in bucket) == (True, False)
    items = bucket.items()
    first, _ = next(items)
    gone = list(bucket)[-1]
    del bucket[gone]
    assert {first, *(key for key, _ in items)} == entries.keys() - {gone}
    for call in (lambda: bucket[gone], lambda: bucket.__delitem__(gone)):
        with pytest.raises(KeyError) as caught:
            call()
        assert caught.value.args == (gone,)
    store.check()


def test_a_bucket_may_have_its_own_secret() -> None:
    """Its keys have the order that they have in a store with this secret. All other buckets keep theirs."""
    own, keys = bytes(range(16)), [b"%d" % number for number in range(300)]
    store, other = Store(secret=bytes(16)), Store(secret=own)
    store.set_secret(b"b", own)
    for bucket in (store.bucket(b"b"), store.bucket(b"c"), other.bucket(b"b")):
        for key in keys:
            bucket.set(key, b"")
    assert list(store.bucket(b"b").keys()) == list(other.bucket(b"b").keys()) != list(store.bucket(b"c").keys())
    store.check()
    for secret in (own, None):
        with pytest.raises(ValueError, match="the bucket holds keys"):
            store.set_secret(b"b", secret)
    with pytest.raises(ValueError, match="a bucket has its own secret"):
        store.save("unused")
    store.bucket(b"b").delete_many(keys)
    store.set_secret(b"b", None)
    store.bucket(b"b").set(b"k", b"v")
    store.check()
    with pytest.raises(ValueError, match="found 3 bytes, allowed 16"):
        store.set_secret(b"d", b"abc")
