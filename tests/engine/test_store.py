"""What the store does, in tables: keys and buckets, limits, pages, crowded positions, splits."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import chain, pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from keyvalue_engine import (
    Bucket,
    BucketOptions,
    CrowdedPositionError,
    LimitError,
    NoSuchBucketError,
    Page,
    Store,
    StoreError,
    StoreOptions,
)
from keyvalue_engine.entry import BUCKET_BYTES, ENTRY_BYTES, ORDER_BYTES, SHARD_BYTES, bytes_size, entry_size
from keyvalue_engine.order import CHANGES_MIN, CHANGES_SHARE, CROWD_KEYS_MAX, CROWD_PAGES_MAX, KEY_OVERHEAD_BYTES
from keyvalue_engine.shard import Shard

CURSOR_MAX = 2**64 - 1
Content = dict[bytes, dict[bytes, bytes | None]]


def placed(key: bytes, seed: int) -> int:
    """A hash function under which a key says its position: b"7:a" and b"7:b" both stand at 7."""
    return int(key.partition(b":")[0])


def content(store: Store) -> Content:
    """All that the store holds, by its public methods."""
    buckets = map(store.bucket, store.bucket_names())
    return {bucket.name: dict(zip(bucket.keys(), map(bucket.get, bucket.keys()), strict=True)) for bucket in buckets}


def pages(bucket: Bucket, keys_max: int | None = None, cursor: int | None = None) -> list[list[bytes]]:
    """A walk as its pages. Fails if a cursor does not rise."""
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


def filled(count: int, options: StoreOptions | None = None, *, seed: int = 1) -> tuple[Store, Bucket, list[bytes]]:
    """A store with `count` keys in its bucket b"b", and the keys in the bucket's order."""
    store = Store(options, seed=seed)
    bucket = store.bucket(b"b")
    keys = [b"key %d" % number for number in range(count)]
    for key in keys:
        bucket.set(key, b"value of " + key)
    return store, bucket, sorted(keys, key=lambda key: xxh3_64_intdigest(key, seed))


# Keys and values


def test_a_key_has_the_value_that_was_set_last() -> None:
    store = Store()
    bucket = store.bucket(b"b")
    assert bucket.get(b"k") is None
    assert not bucket.exists(b"k")
    bucket.set(b"k", b"first")
    assert bucket.get(b"k") == b"first"
    bucket.set(b"k", b"second, and longer")
    assert bucket.get(b"k") == b"second, and longer"
    assert bucket.exists(b"k")
    assert (len(store), len(bucket)) == (1, 1)
    assert bucket.delete(b"k") is True
    assert bucket.get(b"k") is None
    assert not bucket.exists(b"k")
    assert (len(store), len(bucket)) == (0, 0)
    store.check()


def test_an_empty_value_is_a_value() -> None:
    store = Store()
    bucket = store.bucket(b"b")
    bucket.set(b"k", b"")
    assert bucket.get(b"k") == b""
    assert bucket.exists(b"k")
    bucket.set(b"k", b"")
    assert len(store) == 1, "an overwrite of an empty value is no new key"
    assert bucket.page() == Page([b"k"], None)
    assert bucket.delete(b"k") is True
    store.check()


def test_an_empty_key_is_a_key_and_an_empty_name_a_name() -> None:
    store = Store()
    bucket = store.bucket(b"")
    bucket.set(b"", b"v")
    assert bucket.get(b"") == b"v"
    assert bucket.exists(b"")
    assert list(bucket.keys()) == [b""]
    assert store.bucket_names() == [b""]
    assert bucket.delete(b"") is True
    assert store.bucket_names() == []
    store.check()


@pytest.mark.parametrize("name", [b"b", b"never written"])
def test_delete_of_a_missing_key_changes_nothing(name: bytes) -> None:
    store, _, _ = filled(3)
    before = content(store), store.memory_bytes
    assert store.bucket(name).delete(b"missing") is False
    assert (content(store), store.memory_bytes) == before
    store.check()


def test_a_key_belongs_to_one_bucket() -> None:
    store = Store()
    left, right = store.bucket(b"left"), store.bucket(b"right")
    left.set(b"k", b"1")
    right.set(b"k", b"2")
    assert content(store) == {b"left": {b"k": b"1"}, b"right": {b"k": b"2"}}
    assert left.delete(b"k") is True
    assert content(store) == {b"right": {b"k": b"2"}}
    assert (len(store), len(left), len(right)) == (1, 0, 1)
    store.check()


@pytest.mark.parametrize("strict", [False, True])
def test_a_handle_creates_nothing(strict: bool) -> None:
    store = Store(StoreOptions(strict_buckets=strict))
    bucket = store.bucket(b"b")
    assert bucket.page() == Page([], None)
    assert list(bucket.keys()) == []
    assert len(bucket) == 0
    assert repr(bucket) == "Bucket(b'b')"
    assert store.bucket_names() == []
    assert store.memory_bytes == 0
    store.check()


def test_handles_of_one_name_are_one_bucket_also_after_it_was_freed() -> None:
    store = Store()
    first, second = store.bucket(b"b"), store.bucket(b"b")
    first.set(b"k", b"1")
    assert second.get(b"k") == b"1"
    second.delete(b"k")
    assert store.bucket_names() == []
    first.set(b"k", b"2")
    assert second.get(b"k") == b"2"


@pytest.mark.parametrize("count", [1, 10, 1_000])
@pytest.mark.parametrize("walked", [False, True])
def test_an_emptied_bucket_is_freed(count: int, walked: bool) -> None:
    store = Store(StoreOptions(shard_keys_max=32, shards_min=4))
    store.bucket(b"stays").set(b"k", b"v")
    names, memory_bytes = store.bucket_names(), store.memory_bytes
    bucket = store.bucket(b"goes")
    for number in range(count):
        bucket.set(b"%d" % number, bytes(number % 50))
    assert store.bucket_names() == [b"stays", b"goes"]
    assert store.bucket_count == 2
    if walked:
        assert len(list(bucket.keys())) == count
    for number in range(count):
        assert store.bucket_names() == [b"stays", b"goes"]
        assert bucket.delete(b"%d" % number)
    assert store.bucket_names() == names
    assert store.bucket_count == 1
    assert store.memory_bytes == memory_bytes
    store.bucket(b"stays").delete(b"k")
    assert (store.bucket_names(), len(store), store.memory_bytes) == ([], 0, 0)
    store.check()


def test_memory_is_the_sum_of_the_formula() -> None:
    store = Store()
    bucket = store.bucket(b"name")
    bucket.set(b"0123456789ab", bytes(64))
    assert entry_size(b"0123456789ab", bytes(64)) == ENTRY_BYTES + 48 + 112
    shell = BUCKET_BYTES + bytes_size(4) + SHARD_BYTES
    assert store.memory_bytes == shell + ENTRY_BYTES + 48 + 112
    bucket.set(b"0123456789ab", bytes(65))
    bucket.set(b"0123456789ab", bytes(80))
    assert store.memory_bytes == shell + ENTRY_BYTES + 48 + 128
    bucket.page()
    assert store.memory_bytes == shell + ENTRY_BYTES + 48 + 128 + ORDER_BYTES
    store.check()


@pytest.mark.parametrize(("length", "size"), [(0, 48), (15, 48), (16, 64), (31, 64), (32, 80)])
def test_a_bytes_object_takes_its_header_and_whole_units_of_the_allocator(length: int, size: int) -> None:
    assert bytes_size(length) == size
    assert 0 <= size - bytes(length).__sizeof__() < 16


# Strict buckets


@pytest.mark.parametrize("method", ["get", "exists", "delete"])
def test_a_strict_store_refuses_to_read_a_bucket_that_was_never_written(method: str) -> None:
    store = Store(StoreOptions(strict_buckets=True))
    with pytest.raises(NoSuchBucketError, match="no bucket b'b' was ever written") as caught:
        getattr(store.bucket(b"b"), method)(b"k")
    assert caught.value.bucket == b"b"
    assert isinstance(caught.value, StoreError)
    assert store.bucket_names() == []


def test_the_message_about_a_bucket_holds_the_beginning_of_its_name() -> None:
    error = NoSuchBucketError(b"n" * 1000)
    assert str(error) == f"no bucket b'{'n' * 64}' was ever written"
    assert error.bucket == b"n" * 1000


def test_an_emptied_bucket_of_a_strict_store_stays_known() -> None:
    store = Store(StoreOptions(strict_buckets=True, shard_keys_max=4, shards_min=1))
    bucket = store.bucket(b"b")
    for number in range(50):
        bucket.set(b"%d" % number, b"v")
    for number in range(50):
        bucket.delete(b"%d" % number)
    assert bucket.get(b"0") is None
    assert not bucket.exists(b"0")
    assert bucket.delete(b"0") is False
    assert bucket.page() == Page([], None)
    assert (store.bucket_names(), len(store)) == ([b"b"], 0)
    store.check()
    bucket.set(b"k", b"v")
    assert bucket.get(b"k") == b"v"


# Limits


def key_length(store: Store) -> None:
    store.bucket(b"b").set(b"12345", b"")


def value_length(store: Store) -> None:
    store.bucket(b"b").set(b"k", b"123456789")


def value_length_overwrite(store: Store) -> None:
    store.bucket(b"full").set(b"1", b"123456789")


def bucket_name_length(store: Store) -> None:
    store.bucket(b"1234567").set(b"k", b"v")


def bucket_count(store: Store) -> None:
    store.bucket(b"b").set(b"k", b"v")


def key_count(store: Store) -> None:
    store.bucket(b"full").set(b"k", b"v")


FULL_BYTES = BUCKET_BYTES + bytes_size(4) + SHARD_BYTES + 3 * entry_size(b"1", b"v")
LIMITS: list[tuple[StoreOptions, Callable[[Store], None], str, int, int]] = [
    (StoreOptions(key_bytes_max=4), key_length, "key in bytes", 5, 4),
    (StoreOptions(value_bytes_max=8), value_length, "value in bytes", 9, 8),
    (StoreOptions(value_bytes_max=8), value_length_overwrite, "value in bytes", 9, 8),
    (StoreOptions(bucket_name_bytes_max=6), bucket_name_length, "bucket name in bytes", 7, 6),
    (StoreOptions(buckets_max=1), bucket_count, "buckets", 2, 1),
    (StoreOptions(keys_max=3), key_count, "keys limit", 4, 3),
    (StoreOptions(keys_max=3), bucket_count, "keys limit", 4, 3),
    (
        StoreOptions(memory_bytes_max=FULL_BYTES + entry_size(b"k", b"v") - 1),
        key_count,
        "memory limit in bytes",
        FULL_BYTES + entry_size(b"k", b"v"),
        FULL_BYTES + entry_size(b"k", b"v") - 1,
    ),
    (  # the bucket itself finds no room
        StoreOptions(memory_bytes_max=FULL_BYTES + BUCKET_BYTES),
        bucket_count,
        "memory limit in bytes",
        FULL_BYTES + BUCKET_BYTES + bytes_size(1),
        FULL_BYTES + BUCKET_BYTES,
    ),
    (  # the bucket does, its first key does not
        StoreOptions(memory_bytes_max=FULL_BYTES + BUCKET_BYTES + bytes_size(1)),
        bucket_count,
        "memory limit in bytes",
        FULL_BYTES + BUCKET_BYTES + bytes_size(1) + SHARD_BYTES + entry_size(b"k", b"v"),
        FULL_BYTES + BUCKET_BYTES + bytes_size(1),
    ),
    (  # an overwrite that grows
        StoreOptions(memory_bytes_max=FULL_BYTES),
        lambda store: store.bucket(b"full").set(b"1", bytes(16)),
        "memory limit in bytes",
        FULL_BYTES + 16,
        FULL_BYTES,
    ),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("options", "act", "what", "found", "allowed"), LIMITS)
def test_a_limit_is_a_typed_error_that_leaves_the_store_as_it_was(
    options: StoreOptions, act: Callable[[Store], None], what: str, found: int, allowed: int, strict: bool
) -> None:
    store = Store(replace(options, strict_buckets=strict))
    for key in (b"1", b"2", b"3"):
        store.bucket(b"full").set(key, b"v")
    names, memory_bytes = store.bucket_names(), store.memory_bytes
    for _ in range(2):
        with pytest.raises(LimitError) as caught:
            act(store)
        error = caught.value
        assert (error.what, error.found, error.allowed) == (what, found, allowed)
        assert str(error) == f"{what}: found {found}, allowed {allowed}"
    assert (store.bucket_names(), store.memory_bytes, len(store)) == (names, memory_bytes, 3)
    assert [store.bucket(b"full").get(key) for key in (b"1", b"2", b"3")] == [b"v"] * 3
    store.check()


def test_what_just_fits_every_limit_is_accepted() -> None:
    memory_bytes = BUCKET_BYTES + bytes_size(6) + SHARD_BYTES + 2 * entry_size(b"1234", b"12345678")
    options = StoreOptions(
        key_bytes_max=4,
        value_bytes_max=8,
        bucket_name_bytes_max=6,
        buckets_max=1,
        keys_max=2,
        memory_bytes_max=memory_bytes,
    )
    store = Store(options)
    bucket = store.bucket(b"123456")
    bucket.set(b"1234", b"12345678")
    bucket.set(b"5678", b"12345678")
    assert store.memory_bytes == memory_bytes
    store.check()


@pytest.mark.parametrize("strict", [False, True])
def test_a_failed_first_set_leaves_the_bucket_unknown(strict: bool) -> None:
    store = Store(StoreOptions(keys_max=1, strict_buckets=strict))
    store.bucket(b"full").set(b"k", b"v")
    fresh = store.bucket(b"fresh")
    with pytest.raises(LimitError, match="keys limit: found 2, allowed 1"):
        fresh.set(b"k", b"v")
    assert store.bucket_names() == [b"full"]
    if strict:
        with pytest.raises(NoSuchBucketError, match="no bucket b'fresh' was ever written"):
            fresh.get(b"k")
    else:
        assert fresh.get(b"k") is None
    store.bucket(b"full").delete(b"k")
    fresh.set(b"k", b"v")
    assert fresh.get(b"k") == b"v"
    store.check()


def test_a_failed_set_into_an_emptied_bucket_of_a_strict_store_leaves_it_known() -> None:
    store = Store(StoreOptions(keys_max=1, strict_buckets=True))
    store.bucket(b"emptied").set(b"k", b"v")
    store.bucket(b"emptied").delete(b"k")
    store.bucket(b"full").set(b"k", b"v")
    with pytest.raises(LimitError, match="keys limit: found 2, allowed 1"):
        store.bucket(b"emptied").set(b"k", b"v")
    assert store.bucket_names() == [b"emptied", b"full"]
    assert store.bucket(b"emptied").get(b"k") is None
    store.check()


def test_at_the_memory_limit_an_overwrite_may_shrink_or_stay() -> None:
    full_bytes = BUCKET_BYTES + bytes_size(1) + SHARD_BYTES + entry_size(b"k", bytes(100))
    store = Store(StoreOptions(memory_bytes_max=full_bytes))
    bucket = store.bucket(b"b")
    bucket.set(b"k", bytes(100))
    bucket.page()
    assert store.memory_bytes == full_bytes + ORDER_BYTES, "an order is never refused"
    bucket.set(b"k", b"1" * 100)
    bucket.set(b"k", b"2" * 84)
    assert bucket.get(b"k") == b"2" * 84
    assert store.memory_bytes == full_bytes + ORDER_BYTES - 16, "still beyond the limit"
    with pytest.raises(LimitError, match=f"found {full_bytes + ORDER_BYTES}, allowed {full_bytes}"):
        bucket.set(b"k", bytes(100))
    bucket.set(b"k", b"")
    assert bucket.get(b"k") == b""
    store.check()


def test_room_that_was_freed_is_room_again() -> None:
    store = Store(StoreOptions(keys_max=2, buckets_max=2))
    first, second, third = map(store.bucket, (b"1", b"2", b"3"))
    first.set(b"k", b"v")
    second.set(b"k", b"v")
    with pytest.raises(LimitError, match="buckets: found 3, allowed 2"):
        third.set(b"k", b"v")
    first.delete(b"k")
    third.set(b"k", b"v")
    assert store.bucket_names() == [b"2", b"3"]
    store.check()


# Options


@pytest.mark.parametrize("name", [field.name for field in fields(StoreOptions)])
def test_options_of_another_type_are_refused(name: str) -> None:
    allowed = "bool" if name == "strict_buckets" else "int"
    wrong_values: list[Any] = ["1", 1.0, 1 if allowed == "bool" else True]
    if name != "memory_bytes_max":
        wrong_values.append(None)
    for wrong in wrong_values:
        with pytest.raises(TypeError, match=f"^{name}: found {type(wrong).__name__}, allowed {allowed}$"):
            StoreOptions(**{name: wrong})


TOPS = {
    "key_bytes_max": 2**30,
    "value_bytes_max": 2**30,
    "bucket_name_bytes_max": 2**30,
    "buckets_max": 2**63 - 1,
    "keys_max": 2**63 - 1,
    "memory_bytes_max": 2**63 - 1,
    "page_keys_max": 2**63 - 1,
    "page_bytes_max": 2**63 - 1,
    "shard_keys_max": 2**63 - 1,
}


@pytest.mark.parametrize(("name", "top"), TOPS.items())
def test_options_out_of_range_are_refused(name: str, top: int) -> None:
    wrong_values: list[Any] = [0, -1, top + 1]
    for wrong in wrong_values:
        with pytest.raises(ValueError, match=f"^{name}: found {wrong}, allowed 1 to {top}$"):
            StoreOptions(**{name: wrong})
    bounds: list[Any] = [1, top]
    for right in bounds:
        assert getattr(StoreOptions(**{name: right}), name) == right


HANDLE_TOPS = {
    "key_bytes_max": 2**30,
    "value_bytes_max": 2**30,
    "page_keys_max": 2**63 - 1,
    "page_bytes_max": 2**63 - 1,
    "ttl_ms": 2**63 // 1_000_000,
}


@pytest.mark.parametrize(("name", "top"), HANDLE_TOPS.items())
def test_options_of_a_handle_are_checked(name: str, top: int) -> None:
    wrong_values: list[Any] = [0, -1, top + 1]
    for wrong in wrong_values:
        with pytest.raises(ValueError, match=f"^{name}: found {wrong}, allowed 1 to {top}$"):
            BucketOptions(**{name: wrong})
    wrong_types: list[Any] = ["1", 1.0, True]
    for wrong in wrong_types:
        with pytest.raises(TypeError, match=f"^{name}: found {type(wrong).__name__}, allowed int$"):
            BucketOptions(**{name: wrong})
    rights: list[Any] = [1, top, None]
    for right in rights:
        assert getattr(BucketOptions(**{name: right}), name) == right


def test_whether_a_handle_is_strict_is_true_or_false() -> None:
    wrong_types: list[Any] = ["true", 1, 0]
    for wrong in wrong_types:
        with pytest.raises(TypeError, match=f"^strict_buckets: found {type(wrong).__name__}, allowed bool$"):
            BucketOptions(strict_buckets=wrong)


@pytest.mark.parametrize("store_is_strict", [False, True])
@pytest.mark.parametrize("handle_is_strict", [False, True, None])
def test_a_handle_may_be_strict_or_not_whatever_the_store_is(
    store_is_strict: bool, handle_is_strict: bool | None
) -> None:
    store = Store(StoreOptions(strict_buckets=store_is_strict))
    bucket = store.bucket(b"b", BucketOptions(strict_buckets=handle_is_strict))
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
            with pytest.raises(NoSuchBucketError, match="no bucket b'b' was ever written"):
                read()
    bucket.set(b"k", b"v")
    assert bucket.get(b"k") == b"v"
    store.check()


def test_a_handle_has_limits_of_its_own() -> None:
    store = Store(StoreOptions(key_bytes_max=4, value_bytes_max=4, page_keys_max=2, page_bytes_max=100))
    tight = store.bucket(b"b", BucketOptions(key_bytes_max=1, value_bytes_max=1, page_keys_max=1))
    loose = store.bucket(b"b", BucketOptions(key_bytes_max=9, value_bytes_max=9, page_keys_max=9, page_bytes_max=25))
    plain = store.bucket(b"b")
    for bucket, allowed in ((tight, 1), (plain, 4), (loose, 9)):
        bucket.set(b"k" * allowed, b"v" * allowed)
        long_key, long_value = b"k" * (allowed + 1), b"v" * (allowed + 1)
        writes: list[tuple[Callable[[], object], str]] = [
            (partial(bucket.set, long_key, b""), "key"),
            (partial(bucket.set_many, {long_key: b""}), "key"),
            (partial(bucket.increment, long_key, 1), "key"),
            (partial(bucket.set, b"k", long_value), "value"),
            (partial(bucket.set_many, {b"k": long_value}), "value"),
        ]
        for write, what in writes:
            with pytest.raises(LimitError, match=f"^{what} in bytes: found {allowed + 1}, allowed {allowed}$"):
                write()
    assert [len(bucket.page().keys) for bucket in (tight, plain, loose)] == [1, 2, 2]
    assert [len(bucket.page(keys_max=9).keys) for bucket in (tight, plain, loose)] == [3, 3, 2]
    assert len(list(tight.keys())) == len(list(loose.keys())) == 3
    store.check()


@pytest.mark.parametrize("wrong", [0, -1, -2, 3, 48, 65_535, 2**17])
def test_the_least_number_of_shards_is_a_power_of_two(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"^shards_min: found {wrong}, allowed a power of two from 1 to 65536$"):
        StoreOptions(shards_min=wrong)


def test_a_seed_has_64_bits() -> None:
    for wrong in (-1, 2**64):
        with pytest.raises(ValueError, match=f"seed: found {wrong}, allowed 0 to"):
            Store(seed=wrong)
    assert list(filled(50, seed=0)[1].keys()) == filled(50, seed=0)[2]
    assert list(filled(50, seed=CURSOR_MAX)[1].keys()) == filled(50, seed=CURSOR_MAX)[2]
    assert filled(50, seed=0)[2] != filled(50, seed=CURSOR_MAX)[2]


def test_stores_draw_their_seeds() -> None:
    keys = [b"%d" % number for number in range(100)]
    orders = set()
    for _ in range(2):
        bucket = Store().bucket(b"b")
        for key in keys:
            bucket.set(key, b"")
        orders.add(tuple(bucket.keys()))
    assert len(orders) == 2
    assert all(sorted(order) == sorted(keys) for order in orders)


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


@pytest.mark.parametrize("keys_max", [1, 2, 3, 7, 99, 100, 101])
@pytest.mark.parametrize("shard_keys_max", [1, 5, 1_000])
def test_a_page_is_bounded_by_keys(keys_max: int, shard_keys_max: int) -> None:
    options = StoreOptions(page_keys_max=keys_max, shard_keys_max=shard_keys_max, shards_min=1)
    _, bucket, keys = filled(100, options)
    expected = [keys[start : start + keys_max] for start in range(0, 100, keys_max)]
    assert pages(bucket) == expected
    assert pages(filled(100)[1], keys_max) == expected
    assert list(bucket.keys()) == keys


@pytest.mark.parametrize(("page_bytes_max", "lengths"), [(23, [1] * 3), (24, [2, 1]), (35, [2, 1]), (36, [3])])
def test_a_page_is_bounded_by_bytes(page_bytes_max: int, lengths: list[int]) -> None:
    store = Store(StoreOptions(page_bytes_max=page_bytes_max), hash_function=placed)
    for key in (b"10:12345", b"11:12345", b"12:12345"):
        assert len(key) + KEY_OVERHEAD_BYTES == 12
        store.bucket(b"b").set(key, bytes(1000))
    assert [len(keys) for keys in pages(store.bucket(b"b"))] == lengths
    assert list(chain.from_iterable(pages(store.bucket(b"b")))) == [b"10:12345", b"11:12345", b"12:12345"]


@pytest.mark.parametrize("position", [0, 20, CURSOR_MAX])
@pytest.mark.parametrize("shard_keys_max", [1, 1_000])
def test_a_key_larger_than_a_page_still_comes_alone(position: int, shard_keys_max: int) -> None:
    options = StoreOptions(page_bytes_max=20, shard_keys_max=shard_keys_max, shards_min=1)
    store = Store(options, hash_function=placed)
    large = b"%d:" % position + b"x" * 1000
    small = [b"10:", b"30:", b"%d:" % 2**63]
    for key in (large, *small):
        store.bucket(b"b").set(key, b"")
    found = pages(store.bucket(b"b"))
    assert [large] in found
    assert list(chain.from_iterable(found)) == sorted([large, *small], key=lambda key: placed(key, 0))


@pytest.mark.parametrize("shard_keys_max", [2, 1_000])
def test_a_cursor_comes_only_if_a_key_stands_at_or_behind_it(shard_keys_max: int) -> None:
    options = StoreOptions(shard_keys_max=shard_keys_max, shards_min=1)
    for count in range(12):
        _, bucket, keys = filled(count, options)
        for keys_max in range(1, 14):
            page = bucket.page(keys_max=keys_max)
            assert page.keys == keys[:keys_max]
            assert (page.cursor is None) == (keys_max >= count)
            if page.cursor is not None:
                rest = bucket.page(page.cursor)
                assert rest == Page(keys[keys_max:], None)
    for key in keys[3:]:
        bucket.delete(key)
    assert bucket.page(keys_max=3) == Page(keys[:3], None), "shards that were emptied have nothing to come"


def test_keys_at_both_ends_of_the_ring() -> None:
    store = Store(StoreOptions(shard_keys_max=1, shards_min=1), hash_function=placed)
    keys = [b"0:", b"1:", b"%d:" % (2**63 - 1), b"%d:" % 2**63, b"%d:" % (CURSOR_MAX - 1), b"%d:" % CURSOR_MAX]
    for key in reversed(keys):
        store.bucket(b"b").set(key, b"")
    assert pages(store.bucket(b"b"), 1) == [[key] for key in keys]
    for key in keys:
        assert store.bucket(b"b").page(placed(key, 0), 1).keys == [key]


@given(cursor=st.integers(0, CURSOR_MAX) | st.sampled_from([0, 1, 2**63 - 1, 2**63, CURSOR_MAX]))
def test_any_cursor_is_a_place_to_begin(cursor: int) -> None:
    for bucket, keys in FORGED:
        assert list(chain.from_iterable(pages(bucket, 9, cursor))) == [
            key for key in keys if xxh3_64_intdigest(key, 1) >= cursor
        ]


FORGED = [
    filled(200, options)[1:]
    for options in (
        None,
        StoreOptions(shard_keys_max=8, shards_min=1),
        StoreOptions(shard_keys_max=100, shards_min=256),
    )
]


def test_a_page_follows_every_change() -> None:
    store, bucket, keys = filled(300, StoreOptions(shard_keys_max=128, shards_min=1))
    rng = Random(1)
    missing: set[bytes] = set()
    for _ in range(60):
        for key in rng.sample(keys, rng.choice((1, 5, 100))):
            if key in missing:
                bucket.set(key, b"again")
                missing.remove(key)
            else:
                bucket.delete(key)
                missing.add(key)
            if rng.random() < 0.1:  # changed twice between two pages
                bucket.set(key, b"again")
                missing.discard(key)
        assert list(bucket.keys()) == [key for key in keys if key not in missing]
        store.check()


# Crowded positions


def crowded(options: StoreOptions, *runs: tuple[int, int], key_bytes: int = 8) -> Bucket:
    """A bucket with (position, count) runs of keys of `key_bytes` each."""
    bucket = Store(options, hash_function=placed).bucket(b"b")
    for position, count in runs:
        for number in range(count):
            bucket.set((b"%d:%d" % (position, number)).ljust(key_bytes, b"."), b"")
    return bucket


def runs_of(bucket: Bucket) -> list[list[tuple[int, int]]]:
    """The walk as (position, count) of the runs of each page."""
    found = []
    for keys in pages(bucket):
        positions = [placed(key, 0) for key in keys]
        assert positions == sorted(positions)
        found.append([(position, positions.count(position)) for position in sorted(set(positions))])
    return found


@pytest.mark.parametrize(
    ("page_keys_max", "runs", "expected"),
    [
        (3, [(1, 3)], [[(1, 3)]]),
        (3, [(1, 4)], [[(1, 4)]]),
        (1, [(1, 64)], [[(1, 64)]]),
        (10, [(1, 64), (2, 1)], [[(1, 64)], [(2, 1)]]),
        (10, [(1, 1), (2, 64), (3, 1)], [[(1, 1)], [(2, 64)], [(3, 1)]]),
        # a run that the page's end would cut begins the next page
        (3, [(1, 1), (2, 3)], [[(1, 1)], [(2, 3)]]),
        (3, [(1, 2), (2, 2), (3, 1)], [[(1, 2)], [(2, 2), (3, 1)]]),
        (4, [(1, 1), (2, 1), (3, 3), (4, 1)], [[(1, 1), (2, 1)], [(3, 3), (4, 1)]]),
        (2, [(1, 5), (2, 5), (3, 5)], [[(1, 5)], [(2, 5)], [(3, 5)]]),
        # a page that has room for more than a crowd may be is not concerned
        (100, [(1, 65), (2, 35)], [[(1, 65), (2, 35)]]),
        (100, [(1, 1), (2, 100)], [[(1, 1)], [(2, 100)]]),
        # runs of other shards
        (3, [(1, 2), (2**63, 2), (CURSOR_MAX, 2)], [[(1, 2)], [(2**63, 2)], [(CURSOR_MAX, 2)]]),
        (4, [(1, 2), (2**63, 2), (CURSOR_MAX, 2)], [[(1, 2), (2**63, 2)], [(CURSOR_MAX, 2)]]),
        (1, [(1, 64), (2**63, 64), (CURSOR_MAX, 64)], [[(1, 64)], [(2**63, 64)], [(CURSOR_MAX, 64)]]),
    ],
)
@pytest.mark.parametrize("shard_keys_max", [2, 4_096])
def test_a_run_never_parts(
    page_keys_max: int, runs: list[tuple[int, int]], expected: list[list[tuple[int, int]]], shard_keys_max: int
) -> None:
    options = StoreOptions(page_keys_max=page_keys_max, shard_keys_max=shard_keys_max, shards_min=1)
    assert runs_of(crowded(options, *runs, key_bytes=30)) == expected


@pytest.mark.parametrize(
    ("page_bytes_max", "key_bytes", "runs", "expected"),
    [
        (100, 46, [(1, 2), (2, 1)], [[(1, 2)], [(2, 1)]]),
        (99, 46, [(1, 2), (2, 1)], [[(1, 2)], [(2, 1)]]),
        (100, 46, [(1, 1), (2, 2)], [[(1, 1)], [(2, 2)]]),
        (150, 46, [(1, 1), (2, 2)], [[(1, 1), (2, 2)]]),
        (100, 46, [(1, 8), (2, 1)], [[(1, 8)], [(2, 1)]]),  # four pages, exactly
        (100, 146, [(1, 1), (2, 2), (3, 1)], [[(1, 1)], [(2, 2)], [(3, 1)]]),
        (100, 1_000, [(1, 1), (2, 1)], [[(1, 1)], [(2, 1)]]),  # one key comes however large
    ],
)
def test_a_run_of_bytes_never_parts(
    page_bytes_max: int, key_bytes: int, runs: list[tuple[int, int]], expected: list[list[tuple[int, int]]]
) -> None:
    assert runs_of(crowded(StoreOptions(page_bytes_max=page_bytes_max), *runs, key_bytes=key_bytes)) == expected


@pytest.mark.parametrize(
    ("options", "key_bytes", "count", "found"),
    [
        (StoreOptions(page_keys_max=10, page_bytes_max=1_000), 8, 65, "65 keys of 780 bytes"),
        (StoreOptions(page_keys_max=10, page_bytes_max=1_000), 8, 1_000, "65 keys of 780 bytes"),
        (StoreOptions(page_keys_max=64, page_bytes_max=1_000), 8, 65, "65 keys of 780 bytes"),
        (StoreOptions(page_bytes_max=1_000), 497, 8, "8 keys of 4008 bytes"),
        (StoreOptions(page_bytes_max=1_000), 2_000, 2, "2 keys of 4008 bytes"),
    ],
)
def test_a_crowded_position_is_a_typed_error(options: StoreOptions, key_bytes: int, count: int, found: str) -> None:
    bucket = crowded(options, (1, 1), (7, count), (9, 1), key_bytes=key_bytes)
    first = bucket.page()
    assert [placed(key, 0) for key in first.keys] == [1]
    assert first.cursor == 7
    for _ in range(2):
        with pytest.raises(CrowdedPositionError) as caught:
            bucket.page(first.cursor)
        assert caught.value.position == 7
        assert isinstance(caught.value, StoreError)
        assert str(caught.value) == (
            f"position 7: found at least {found}, allowed {CROWD_KEYS_MAX} keys and {CROWD_PAGES_MAX * 1_000} bytes"
        )
    assert [placed(key, 0) for key in bucket.page(8).keys] == [9], "the walk may be taken up behind the crowd"
    bucket._tables.check()


def test_a_crowd_that_shrinks_comes_again() -> None:
    bucket = crowded(StoreOptions(page_keys_max=10), (7, 65))
    with pytest.raises(CrowdedPositionError):
        bucket.page()
    assert bucket.delete(b"7:64....")
    assert len(bucket.page().keys) == 64
    bucket._tables.check()


# Churn and splits


@pytest.mark.parametrize("others", [1, 10_000])
def test_churn_of_one_key_a_million_times_grows_nothing(others: int) -> None:
    store, bucket, _ = filled(others, StoreOptions(shard_keys_max=20_000))
    [shard] = shards(store)
    assert len(list(bucket.keys())) == others
    ordered_bytes = store.memory_bytes
    unordered_bytes = ordered_bytes - ORDER_BYTES * others
    entry_bytes = entry_size(b"churn", b"v")
    changes_max = max(CHANGES_MIN, others // CHANGES_SHARE) + 1
    for number in range(100):
        if number == 50:
            bucket.page()
            assert store.memory_bytes == ordered_bytes, "the next page makes the order anew"
        for _ in range(5_000):
            bucket.set(b"churn", b"v")
            assert shard._order is None or len(shard._order.changes) <= changes_max
            bucket.delete(b"churn")
        assert store.memory_bytes in (ordered_bytes, unordered_bytes)
        bucket.set(b"churn", b"v")
        assert store.memory_bytes in (ordered_bytes + entry_bytes, unordered_bytes + entry_bytes)
        bucket.delete(b"churn")
        assert [id(known) for known in shards(store)] == [id(shard)]
    store.check()


def test_writes_without_pages_note_nothing() -> None:
    store, bucket, keys = filled(1_000)
    assert not any(shard._order for shard in shards(store))
    bucket.page()
    for key in keys:
        bucket.set(key, b"overwritten")
    orders = [shard._order for shard in shards(store) if shard._order is not None]
    assert orders
    assert not any(order.changes for order in orders), "an overwrite moves no key"
    store.check()


@pytest.mark.parametrize("shards_min", [1, 2, 64])
@pytest.mark.parametrize("shard_keys_max", [1, 2, 3, 16])
@pytest.mark.parametrize("walked", [False, True])
def test_splits_keep_every_key(shards_min: int, shard_keys_max: int, walked: bool) -> None:
    store = Store(StoreOptions(shards_min=shards_min, shard_keys_max=shard_keys_max), seed=1)
    bucket = store.bucket(b"b")
    keys = [b"%d" % number for number in range(120)]
    for count, key in enumerate(keys, 1):
        bucket.set(key, key)
        store.check()
        if walked:
            assert len(list(bucket.keys())) == count
    assert sorted(bucket.keys()) == sorted(keys)
    assert all(bucket.get(key) == key for key in keys)
    for key in keys:
        assert bucket.delete(key)
        store.check()
    assert store.memory_bytes == 0


@pytest.mark.parametrize(("shards_min", "first"), [(1, 4), (2, 4), (4, 4), (8, 8), (64, 64), (1024, 1024)])
def test_a_bucket_has_one_shard_until_it_outgrows_it(shards_min: int, first: int) -> None:
    store, bucket, _ = filled(100, StoreOptions(shards_min=shards_min, shard_keys_max=100))
    assert len(shards(store)) == 1
    bucket.set(b"one more", b"")
    assert len(shards(store)) == first
    store.check()


def test_a_shard_that_grows_too_large_is_split_alone() -> None:
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
    assert all(before.end == behind.start for before, behind in pairwise(shards(store)))
    store.check()


def test_a_shard_that_may_not_be_split_again_grows() -> None:
    store = Store(StoreOptions(shard_keys_max=1, page_keys_max=200), hash_function=placed)
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
