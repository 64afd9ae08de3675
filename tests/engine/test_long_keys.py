"""No call hashes much more than its own keys, however long the keys of its bucket are."""

from __future__ import annotations

from random import Random

from siphashc import siphash

from keyvalue_engine import Store
from keyvalue_engine.long_keys import LONG_BYTES_MAX, LONG_KEY_BYTES

SHORT = 16
LONG = 64 * 1024 - 8


def test_no_call_hashes_more_than_a_few_shards() -> None:
    """A page, or the set that split a shard, hashed 2,048 keys of 64 KiB, which took 0.1 s."""
    hashed_bytes = 0

    def counted(secret: bytes, key: bytes) -> int:
        nonlocal hashed_bytes
        hashed_bytes += len(key)
        return siphash(secret, key)

    store = Store(hash_function=counted)
    bucket = store.bucket(b"b")
    rng = Random(7)
    keys = [b"%d" % number + bytes(rng.choice((SHORT, LONG_KEY_BYTES, 8_000, LONG))) for number in range(3_000)]
    model: dict[bytes, bytes] = {}
    for number in range(2_500):
        key, value, before = rng.choice(keys), b"%d" % number, hashed_bytes
        kind, own_bytes = rng.randrange(8), len(key)
        if kind < 3:
            bucket.set(key, value)
            model[key] = value
        elif kind == 3:
            assert bucket.delete(key) is (model.pop(key, None) is not None)
        elif kind == 4:
            if model.get(key, b"0").isdigit():
                model[key] = b"%d" % bucket.increment(key, 1)
        elif kind == 5:
            entries = dict.fromkeys(rng.sample(keys, 20), value)
            own_bytes = sum(map(len, entries))
            bucket.set_many(entries)
            model |= entries
        else:
            page = bucket.partial_page(rng.getrandbits(64))
            own_bytes = sum(map(len, page.keys))
        assert hashed_bytes - before <= 4 * own_bytes + 5 * LONG_BYTES_MAX, kind
        if number % 500 == 0:
            store.check()
    assert dict(bucket.items()) == model


def test_a_bucket_of_long_keys_does_not_merge_and_split_in_turns() -> None:
    """A merge takes as long as there are shards."""
    store = Store()
    bucket = store.bucket(b"b")
    table_of = store._tables.by_name
    keys = [b"%d" % number + bytes(LONG) for number in range(80)]
    bucket.set_many(dict.fromkeys(keys, b"v"))
    rings = set()
    for number in range(200):
        bucket.delete(keys[number % 60])
        bucket.set(keys[number % 60], b"v")
        rings.add(id(table_of[b"b"].ring))
    assert len(rings) == 1
    for key in keys[6:]:
        bucket.delete(key)
    assert len(list(table_of[b"b"].shards())) == 1, "merged when few were left"
    bucket.set_many(dict.fromkeys(keys, b"v"))
    store.check()
    assert sorted(bucket) == sorted(keys)
