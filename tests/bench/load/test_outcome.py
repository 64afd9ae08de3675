"""Percentiles, and merged outcomes."""

from __future__ import annotations

import pytest

from bench.load.answers import SmallGenerator
from bench.load.outcome import Outcome, merged
from tests.bench.load.sockets import answers, connected, load_of


async def test_percentiles_are_latencies_of_calls() -> None:
    generator = SmallGenerator(load_of(calls=1_000, in_flight=1_000, keys=1))
    connected(generator)
    generator.data_received(answers(generator, generator.script.result(0), 1_000))
    await generator.ended
    generator._latencies = [1_000 * us for us in reversed(range(1_001))]
    outcome = generator.outcome()
    assert (outcome.p50_us, outcome.p99_us, outcome.p999_us, outcome.max_us) == (500, 990, 999, 1_000)


def outcome_of(calls: int, **figures: float) -> Outcome:
    shared = {"generator_cpu_us": 0.0, "keys": calls, "verified": 1, "excess_us": 0.0, "page_cpu_us": 0.0}
    return Outcome(calls=calls, cpu_us={"provider": figures.pop("cpu_us")}, **shared | figures)  # type: ignore[arg-type]


def test_loads_are_merged_as_if_they_were_one() -> None:
    slow = outcome_of(
        1, seconds=2.0, cpu_us=8.0, p50_us=50.0, p99_us=99.0, p999_us=999.0, max_us=5_000.0, excess_us=7.0
    )
    fast = outcome_of(3, seconds=1.0, cpu_us=4.0, p50_us=10.0, p99_us=99.0, p999_us=999.0, max_us=30.0)
    both = merged([slow, fast])
    assert (both.calls, both.seconds, both.keys, both.verified) == (4, 3.0, 4, 2)
    assert both.cpu_us == {"provider": 5.0}
    assert (both.p50_us, both.p99_us, both.p999_us, both.max_us, both.excess_us) == (20.0, 99.0, 999.0, 5_000.0, 7.0)
    assert both.calls_per_s == pytest.approx(4 / 3)
