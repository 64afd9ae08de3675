"""A page of 10, 100 and 1,000 keys at 10 k, 100 k and 1 M keys, once the order is there: it must cost the keys it gives, and not those it skips."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.engine import VALUE_BYTES, shuffled_keys, tune_collector
from engine import Bucket, Store

ROUNDS = 500


@pytest.fixture(scope="module", params=[10_000, 100_000, 1_000_000], ids=lambda keys: f"{keys:,}-keys")
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    bucket = Store().bucket(b"bench")
    value = bytes(VALUE_BYTES)
    for key in shuffled_keys(request.param):
        bucket.set(key, value)
    assert len(list(bucket.keys())) == request.param
    tune_collector()
    yield bucket


@pytest.mark.parametrize("page_keys", [10, 100, 1_000])
def test_page(benchmark: BenchmarkFixture, bucket: Bucket, page_keys: int) -> None:
    benchmark.group = f"pages of {page_keys:,} keys"
    # Any number is a cursor. All are in the first half, so that no page is cut short by the last key.
    cursors = iter(number * 2**63 // ROUNDS for number in range(ROUNDS))
    sizes = set()

    def page(cursor: int) -> None:
        sizes.add(len(bucket.page(cursor, page_keys).keys))

    benchmark.pedantic(page, setup=lambda: ((next(cursors),), {}), rounds=ROUNDS)  # type: ignore[no-untyped-call]
    assert sizes == {page_keys}
    if benchmark.stats is not None:  # not with --benchmark-disable
        benchmark.extra_info["ns a key"] = round(benchmark.stats.stats.median * 1e9 / page_keys)
