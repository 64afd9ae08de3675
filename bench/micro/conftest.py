"""Fixtures of the micro-benchmarks: stores, garbage collector settings, and the figures at the end of the run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.locked_dict import tune_collector
from bench.micro.stores import KEY_COUNTS, Filled, fill
from bench.micro.summary import Figures, tables

FOUND: pytest.StashKey[list[Figures]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FOUND] = []


@pytest.fixture(autouse=True)
def figures(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Iterator[None]:
    """Save the extra figures of a benchmark, which are printed at the end of the run."""
    yield
    pytestconfig.stash[FOUND].append(Figures(benchmark.group or "", benchmark.name, benchmark.extra_info))


@pytest.hookimpl(trylast=True)  # print after pytest-benchmark's tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[FOUND]
    lines = list(tables(found))
    if not lines:
        return
    terminalreporter.section("figures of the benchmarks above", sep="-")
    terminalreporter.line(
        "Each figure is the median over the rounds. A ratio is the first time divided by the second, in the same "
        "round. --benchmark-json=FILE saves all figures."
    )
    for line in lines:
        terminalreporter.line(line)


@pytest.fixture(scope="session", autouse=True)
def collector() -> Iterator[None]:
    """Configure the cyclic garbage collector as the provider does, for all benchmarks."""
    thresholds = gc.get_threshold()
    tune_collector()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="session")
def stores() -> Callable[[int], Filled]:
    """Return a function that returns the shared store with a given number of keys. Benchmarks undo their changes."""
    return cache(fill)


@pytest.fixture(scope="session")
def million(stores: Callable[[int], Filled]) -> Filled:
    return stores(1_000_000)


@pytest.fixture(params=KEY_COUNTS, ids=lambda keys: f"{keys:,}-keys")
def filled(request: pytest.FixtureRequest, stores: Callable[[int], Filled]) -> Filled:
    """Return the shared store for each of the `KEY_COUNTS`."""
    return stores(request.param)
