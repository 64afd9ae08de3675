"""The cost of applying one change to a shard's key order, compared with the cost per key of sorting a new order.

The ratio of the two costs shows when a new order is cheaper, and determines `CHANGES_SHARE` in
`keyvalue_engine.order`. Each round times three pages of a new shard. The first page sorts all keys, the second page
has no changes to apply, and the third page applies the changes.

pytest-benchmark shows the time of the third page. `extra_info` has nanoseconds per change, nanoseconds per key, and
the median of the rounds' ratios. Removing a key and putting it back counts as two changes.
"""

from __future__ import annotations

from statistics import median
from time import monotonic_ns, perf_counter_ns

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from siphashc import siphash

from bench.micro.locked_dict import VALUE_BYTES, shuffled_keys, tune_collector
from keyvalue_engine import StoreOptions
from keyvalue_engine.context import Context
from keyvalue_engine.expiry import Expiry
from keyvalue_engine.filling import Filling
from keyvalue_engine.kept_orders import KeptOrders
from keyvalue_engine.ledger import Account, Ledger
from keyvalue_engine.order import CHANGES_SHARE
from keyvalue_engine.shard import Shard

ROUNDS = 100
SECRET = bytes(16)


def position_of(key: bytes) -> int:
    return siphash(SECRET, key)


def page_of_one_key(shard: Shard) -> int:
    """Return the time that a page of one key takes, in nanoseconds. Almost all of the time goes into the key order."""
    start = perf_counter_ns()
    shard.take(0, Filling(1, 1_000))
    return perf_counter_ns() - start


@pytest.mark.parametrize("kind", ["added", "removed", "put back"])
@pytest.mark.parametrize("keys", [256, 1024, 4096])
def test_change(benchmark: BenchmarkFixture, keys: int, kind: str) -> None:
    tune_collector()
    changes = keys // CHANGES_SHARE // 4 * 2  # an even number, small enough that the shard keeps its order
    benchmark.group = f"order: {changes} changes among {keys:,} keys"
    present = shuffled_keys(keys + changes)
    absent = [present.pop() for _ in range(changes)]
    touched = {"added": absent, "removed": present[:changes], "put back": present[: changes // 2]}[kind]
    value = bytes(VALUE_BYTES)
    fresh_ns: list[int] = []
    idle_ns: list[int] = []
    kept: list[bool] = []

    def setup() -> tuple[tuple[Shard], dict[str, object]]:
        account = Account(b"", Ledger(StoreOptions()))
        shard = Shard(0, 0, Context(position_of, siphash, SECRET, account, Expiry(monotonic_ns), KeptOrders()))
        for key in present:
            shard.set(key, value)
        fresh_ns.append(page_of_one_key(shard))
        idle_ns.append(min(page_of_one_key(shard) for _ in range(5)))
        for key in touched:
            if kind != "added":
                shard.delete(key)
            if kind != "removed":
                shard.set(key, value)
        kept.append(shard.order is not None and len(shard.order.changes) == changes)
        return (shard,), {}

    benchmark.pedantic(page_of_one_key, setup=setup, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    assert all(kept)
    if benchmark.stats is None:  # --benchmark-disable
        return
    key_ns = [(fresh - idle) / keys for fresh, idle in zip(fresh_ns, idle_ns, strict=True)]
    paged_ns = [seconds * 1e9 for seconds in benchmark.stats.stats.data]
    change_ns = [(paged - idle) / changes for paged, idle in zip(paged_ns, idle_ns, strict=True)]
    ratios = [change / key for change, key in zip(change_ns, key_ns, strict=True)]
    benchmark.extra_info["ns a change"] = round(median(change_ns))
    benchmark.extra_info["ns a key in a new order"] = round(median(key_ns))
    benchmark.extra_info["ratio"] = round(median(ratios), 2)
