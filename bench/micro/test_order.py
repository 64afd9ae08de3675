"""The cost of applying one change to a shard's key order, compared with the cost per key of sorting a new order.

The ratio of the two costs shows when a new order is cheaper, and determines `CHANGES_SHARE` in
`keyvalue_engine.order`. Each round times three pages of a new shard: one that sorts all keys, one without changes, and
one that applies the changes. Removing a key and putting it back counts as two changes.
"""

from __future__ import annotations

from statistics import median
from time import monotonic_ns, perf_counter_ns

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from siphashc import siphash

from bench.micro.locked_dict import VALUE_BYTES, shuffled_keys
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
    changes = keys // CHANGES_SHARE // 4 * 2  # an even number, small enough that the shard keeps its order
    benchmark.group = f"order: {changes} changes among {keys:,} keys"
    present = shuffled_keys(keys + changes)
    absent = [present.pop() for _ in range(changes)]
    touched = {"added": absent, "removed": present[:changes], "put back": present[: changes // 2]}[kind]
    value = bytes(VALUE_BYTES)
    costs: list[tuple[int, int]] = []  # nanoseconds of the first page and of a page without changes

    def setup() -> tuple[tuple[Shard], dict[str, object]]:
        account = Account(b"", Ledger(StoreOptions()))
        shard = Shard(0, 0, Context(position_of, siphash, SECRET, account, Expiry(monotonic_ns), KeptOrders()))
        for key in present:
            shard.set(key, value)
        costs.append((page_of_one_key(shard), min(page_of_one_key(shard) for _ in range(5))))
        for key in touched:
            if kind != "added":
                shard.delete(key)
            if kind != "removed":
                shard.set(key, value)
        assert shard.order is not None
        assert len(shard.order.changes) == changes
        return (shard,), {}

    benchmark.pedantic(page_of_one_key, setup=setup, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    if benchmark.stats is None:  # --benchmark-disable
        return
    key_ns = [(first - idle) / keys for first, idle in costs]
    paged = zip(benchmark.stats.stats.data, costs, strict=True)
    change_ns = [(seconds * 1e9 - idle) / changes for seconds, (_, idle) in paged]
    ratios = [change / key for change, key in zip(change_ns, key_ns, strict=True)]
    names = ("ns a change", "ns a key in a new order", "ratio")
    benchmark.extra_info |= zip(names, map(median, (change_ns, key_ns, ratios)), strict=True)
