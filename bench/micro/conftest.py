"""The garbage collector's settings for all micro-benchmarks, and their extra figures at the end of the run."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.locked_dict import tune_collector

FOUND: pytest.StashKey[list[tuple[str, dict[str, float]]]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FOUND] = []


@pytest.fixture(autouse=True)
def figures(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Iterator[None]:
    """Save the extra figures of a benchmark, which pytest-benchmark does not print."""
    yield
    pytestconfig.stash[FOUND].append((benchmark.name, benchmark.extra_info))


@pytest.hookimpl(trylast=True)  # print after pytest-benchmark's tables
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.section("figures of the benchmarks above: medians over the rounds", sep="-")
    for name, extra in config.stash[FOUND]:
        if extra:
            cells = (f"{value:>9,.2f} {what}" for what, value in extra.items())
            terminalreporter.line(f"{name:<40}{''.join(cells)}")


@pytest.fixture(scope="session", autouse=True)
def collector() -> Iterator[None]:
    """Configure the cyclic garbage collector as the provider does, for all benchmarks."""
    thresholds = gc.get_threshold()
    tune_collector()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()
