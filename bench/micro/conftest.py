"""What the micro benchmarks share: stores, and the collector as the provider sets it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from bench.engine import tune_collector
from bench.micro.stores import KEY_COUNTS, Filled, fill


@pytest.fixture(scope="session", autouse=True)
def collector() -> Iterator[None]:
    """The cyclic garbage collector as the provider sets it, whichever benchmarks run."""
    thresholds = gc.get_threshold()
    tune_collector()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="session")
def stores() -> Callable[[int], Filled]:
    """A store of so many keys, made when it is first asked for. Who changes it puts it back."""
    return cache(fill)


@pytest.fixture(scope="session")
def million(stores: Callable[[int], Filled]) -> Filled:
    return stores(1_000_000)


@pytest.fixture(params=KEY_COUNTS, ids=lambda keys: f"{keys:,}-keys")
def filled(request: pytest.FixtureRequest, stores: Callable[[int], Filled]) -> Filled:
    """At each number of keys."""
    return stores(request.param)
