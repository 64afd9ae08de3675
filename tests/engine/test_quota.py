"""Quotas: several for one bucket, quotas that come and go, and exact counts under threads.

The model (test_model.py) shows what a quota counts, and which writes it refuses.
"""

from __future__ import annotations

from threading import Barrier

import pytest

from keyvalue_engine import Bucket, BucketOptions, LimitError, Quota, Reach, Store, StoreOptions
from keyvalue_engine.entry import entry_size
from tests.engine.races import TIMEOUT_S, run_together

KEYS = r"the buckets of this quota would hold {} keys; the limit is {} \(quota_keys\)"


EVERYTHING = Reach()
OF_A = Reach(prefix=b"a")


def limited(store: Store, name: bytes, quota: Quota, ttl_ms: int | None = None) -> Bucket:
    return store.bucket(name, BucketOptions(quota=quota, ttl_ms=ttl_ms))


def test_a_bucket_may_belong_to_several_quotas() -> None:
    store = Store()
    quotas = [Quota(OF_A, 2, None), Quota(EVERYTHING, 3, None)]
    for quota in quotas:
        store.add_quota(quota)
    for number in range(2):
        limited(store, b"a", quotas[0]).set(b"%d" % number, b"")
    assert [quota.keys for quota in quotas] == [2, 2]
    with pytest.raises(LimitError, match=f"^{KEYS.format(3, 2)}$"):
        limited(store, b"a", quotas[0]).set(b"2", b"")
    limited(store, b"a", quotas[1]).set(b"2", b"")
    assert [quota.keys for quota in quotas] == [3, 3], "a quota limits only the handles that were made with it"
    with pytest.raises(LimitError, match=f"^{KEYS.format(4, 3)}$"):
        limited(store, b"b", quotas[1]).set(b"k", b"")
    assert store.bucket_names() == [b"a"]
    store.check()


def test_a_removed_quota_no_longer_counts() -> None:
    store = Store()
    quota, other = Quota(OF_A, 2, None), Quota(OF_A, None, None)
    store.add_quota(quota)
    store.add_quota(other)
    store.bucket(b"a").set_many({b"1": b"v", b"2": b"v"})
    store.remove_quota(quota)
    store.bucket(b"a").delete(b"1")
    store.bucket(b"ab").set(b"1", b"v")
    assert (quota.keys, other.keys) == (2, 2)
    store.check()
    store.remove_quota(quota)
    store.add_quota(quota)
    assert quota.keys == 2
    store.bucket(b"a").delete(b"2")
    assert (quota.keys, other.keys) == (1, 1)
    store.check()


@pytest.mark.parametrize("others", [0, 1])
def test_a_handle_stays_held_to_a_removed_quota(others: int) -> None:
    store = Store()
    quota = Quota(EVERYTHING, 1, None)
    for known in [quota, *[Quota(EVERYTHING, None, None)] * others]:
        store.add_quota(known)
    bucket = limited(store, b"b", quota)
    bucket.set(b"1", b"v")
    store.remove_quota(quota)
    with pytest.raises(LimitError, match=f"^{KEYS.format(2, 1)}$"):
        bucket.set(b"2", b"v")
    store.check()


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize(
    ("quota", "option", "excess"),
    [
        (Quota(OF_A, 500, None), "quota_keys", {1, 2, 3}),
        (
            Quota(OF_A, None, 500 * entry_size(b"0 000", b"v")),
            "quota_bytes",
            {entry_size(b"0 000", b"v") * n for n in (1, 2, 3)},
        ),
    ],
)
@pytest.mark.parametrize("shard_keys_max", [20, 4_096])
def test_quotas_are_exact_under_threads(quota: Quota, option: str, excess: set[int], shard_keys_max: int) -> None:
    """Write to several buckets by single writes, batches and increments. At the end, not one more key fits."""
    store = Store(StoreOptions(shard_keys_max=shard_keys_max, shards_min=1))
    store.add_quota(quota)
    admitted: list[int] = []
    refused: list[LimitError] = []

    def fill(thread: int) -> None:
        bucket = limited(store, b"a%d" % (thread % 3), quota)
        for number in range(0, 150, 3):
            keys = [b"%d %03d" % (thread, number + offset) for offset in range(3)]
            try:
                if number % 2:
                    bucket.set_many(dict.fromkeys(keys, b"v"))
                    admitted.append(3)
                else:
                    bucket.set(keys[0], b"v")
                    admitted.append(1)
            except LimitError as error:
                refused.append(error)
            assert quota.keys <= quota.keys_max
            assert quota.memory_bytes <= quota.memory_bytes_max

    run_together(*[lambda n=n: fill(n) for n in range(8)])
    assert {error.option for error in refused} == {option}
    assert {error.found - error.allowed for error in refused} <= excess
    assert sum(admitted) == quota.keys == len(store)
    for number in range(3):
        try:
            limited(store, b"a", quota).set(b"9 %03d" % number, b"v")
        except LimitError:
            break
    assert quota.keys == 500
    store.check()


@pytest.mark.usefixtures("hasty_threads")
def test_counts_are_exact_while_quotas_come_and_go() -> None:
    """Empty, free and recreate the covered buckets meanwhile."""
    store = Store(StoreOptions(shard_keys_max=4, shards_min=1))
    quotas = [Quota(OF_A, None, None) for _ in range(3)]
    rounds = 200
    together = Barrier(7, timeout=TIMEOUT_S)

    def write(thread: int) -> None:
        bucket = store.bucket(b"a%d" % (thread % 2))
        keys = [b"%d %d" % (thread, number) for number in range(3)]
        for step in range(rounds):
            together.wait()
            bucket.set_many(dict.fromkeys(keys, bytes(step % 40)))
            bucket.set(keys[0], b"", ttl_ms=10**9)
            if step % 3:
                bucket.delete_many(keys)

    def switch(quota: Quota) -> None:
        for _ in range(rounds):
            together.wait()
            store.add_quota(quota)
            store.remove_quota(quota)
        store.add_quota(quota)

    run_together(*[lambda n=n: write(n) for n in range(4)], *[lambda quota=quota: switch(quota) for quota in quotas])
    store.check()
    assert {quota.keys for quota in quotas} == {len(store)}
    for name in store.bucket_names():
        store.bucket(name).delete_many([*store.bucket(name).keys()])
    assert [(quota.keys, quota.memory_bytes) for quota in quotas] == [(0, 0)] * 3


def test_a_quota_is_counted_once() -> None:
    store = Store()
    quota = Quota(EVERYTHING, 9, None)
    store.add_quota(quota)
    with pytest.raises(ValueError, match="the quota was already added"):
        store.add_quota(quota)
    store.bucket(b"b").set(b"k", b"v")
    assert quota.keys == 1
    store.check()
