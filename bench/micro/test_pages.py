"""Pages of 10, 100 and 1,000 keys in buckets of 10 k, 100 k and 1 M keys whose key order already exists.

The cost of a page must depend on the number of keys that it returns, not on the number of keys before it.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.stores import Filled

ROUNDS = 500


@pytest.mark.parametrize("page_keys", [10, 100, 1_000])
def test_page(benchmark: BenchmarkFixture, filled: Filled, page_keys: int) -> None:
    benchmark.group = f"pages: {page_keys:,} keys"
    bucket = filled.bucket
    assert len(list(bucket.keys())) == len(filled.keys)  # builds the key order
    # Any number is a valid cursor. All cursors are in the first half of the key order, so that every page is full.
    cursors = iter(number * 2**63 // ROUNDS for number in range(ROUNDS))
    sizes = set()

    def page(cursor: int) -> None:
        sizes.add(len(bucket.page(cursor, page_keys).keys))

    benchmark.pedantic(page, setup=lambda: ((next(cursors),), {}), rounds=ROUNDS)  # type: ignore[no-untyped-call]
    assert sizes == {page_keys}
    if benchmark.stats is not None:  # not with --benchmark-disable
        benchmark.extra_info["ns a key"] = round(benchmark.stats.stats.median * 1e9 / page_keys)
