"""Renewals: the keys and values move to new objects, whatever else belongs to them. The model tests mix them with changes."""

from __future__ import annotations

import pytest

from keyvalue_engine import BucketOptions, Store, StoreOptions
from keyvalue_engine.renewal import COPIED_BYTES_MAX

KEYS = 5_000


def filled(eviction: str) -> Store:
    """Return a store in which every third key has a deadline, with keys and values of 2 to 70 bytes."""
    store = Store(StoreOptions(eviction=eviction))
    for number in range(KEYS):
        ttl_ms = None if number % 3 else 10**9 - number
        bucket = store.bucket(b"bucket %d" % (number % 3), BucketOptions(ttl_ms=ttl_ms))
        bucket.set(b"%d" % (number + 10), b"%d" % number * (number % 20 + 2))
    store.bucket(b"bucket 0").page()  # the order has the keys too
    return store


def objects(store: Store) -> dict[int, object]:
    """Return all objects that are kept for single keys, by their identity."""
    found: list[object] = []
    for table in store._tables.by_name.values():
        for shard in table.shards():
            for key, entry in shard.entries.items():
                found += [key, entry, *(entry if isinstance(entry, tuple) else ())]
            if shard.deadlines is not None:
                for item in shard.deadlines._heap:
                    found += [item, *item]
            for key, stamp in getattr(shard, "stamps", {}).items():
                found += [key, *([stamp] if stamp > 256 else [])]
    return {id(each): each for each in found}


def entries(store: Store) -> list[tuple[bytes, object]]:
    return [
        item for table in store._tables.by_name.values() for shard in table.shards() for item in shard.entries.items()
    ]


@pytest.mark.parametrize("eviction", ["none", "oldest", "unused"])
def test_a_renewal_replaces_every_object(eviction: str) -> None:
    store = filled(eviction)
    before, content = objects(store), entries(store)
    held_bytes = store.memory_bytes
    renewed = steps = 0
    for renewal in store.renewals():
        while renewal.copy():
            steps += 1
        renewed += renewal.replace()
    assert renewed == KEYS
    assert steps, "a shard of more keys than STEP_KEYS takes more than one step"
    assert not before.keys() & objects(store).keys()
    assert entries(store) == content, "in the same order"
    store.check()
    assert store.memory_bytes <= held_bytes
    assert store.bucket(b"bucket 0").page(keys_max=KEYS).cursor is None


def test_a_long_value_and_what_has_changed_meanwhile_are_kept() -> None:
    store = Store()
    bucket = store.bucket(b"b")
    bucket.set_many({b"long": bytes(COPIED_BYTES_MAX + 1), b"short": bytes(COPIED_BYTES_MAX)})
    bucket.set(b"timed", b"before", ttl_ms=1_000)
    long, short = bucket.get(b"long"), bucket.get(b"short")
    renewal = next(store.renewals())
    assert not renewal.copy()
    changed = bytes(100)
    bucket.set(b"timed", changed, ttl_ms=10**9)
    bucket.set(b"added", b"value", ttl_ms=500)
    assert renewal.replace() == 3
    assert bucket.get(b"long") is long
    assert bucket.get(b"short") is not short
    assert bucket.get(b"short") == short
    assert bucket.get(b"timed") is changed
    assert bucket.get(b"added") == b"value"
    store.check()


def test_a_key_that_took_the_place_of_another_with_the_same_value_stays() -> None:
    store, value = Store(), b"value"
    bucket = store.bucket(b"b")
    bucket.set_many({b"first": value, b"second": value})
    renewal = next(store.renewals())
    assert not renewal.copy()
    bucket.delete(b"second")
    bucket.set(b"third", value)
    assert renewal.replace() == 2
    assert bucket.exists(b"third")
    assert not bucket.exists(b"second")
