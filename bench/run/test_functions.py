"""End-to-end calls under pytest-benchmark, one group per function. Run them with `scripts/bench functions`.

Each round runs one load on real processes, and the load generator measures it. The time of a round is the duration of
the load divided by its number of calls, so the column OPS shows calls per second. `extra_info` holds latencies and CPU
times. Subjects do not take turns here, so use `scripts/bench endtoend` to get ratios.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.load.outcome import Outcome
from bench.run.scenarios import CASES, Case
from bench.run.stage import Stage
from bench.run.subjects import BARE, DIRECT, PLAIN, Subject

ROUNDS = 5
SECONDS = 0.3
FUNCTIONS = [
    *CASES["functions"],
    *(case for case in (*CASES["batch"], *CASES["increment"]) if case.function not in ("get", "set")),
    *(case for case in CASES["values"] if case.value_bytes >= 2**20),
    *CASES["idle"],
    *(case for case in CASES["headers"] if case.headers == "traced"),
]


class LoadClock:
    """A clock for pytest-benchmark that shows the sum of all loads' seconds per call."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


CLOCK = LoadClock()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("subject", [BARE, DIRECT, PLAIN], ids=lambda subject: subject.name)
@pytest.mark.parametrize("case", FUNCTIONS, ids=lambda case: case.label.replace(",", "").replace(" ", "-"))
def test_function(benchmark: BenchmarkFixture, stage: Stage, case: Case, subject: Subject) -> None:
    benchmark.group = case.function
    outcomes: list[Outcome] = []

    def load() -> None:
        outcome = stage.measure(subject, case, SECONDS)
        outcomes.append(outcome)
        CLOCK.now_s += outcome.seconds / outcome.calls

    benchmark.pedantic(load, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    info = benchmark.extra_info
    for name in ("p50_us", "p99_us", "p999_us", "max_us"):
        info[name] = round(median(getattr(outcome, name) for outcome in outcomes))
    for process in ("provider", "nats"):
        info[f"{process} CPU us a call"] = round(median(outcome.cpu_us[process] for outcome in outcomes), 2)
