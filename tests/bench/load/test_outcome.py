"""Latencies, and merged outcomes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.load.answers import SmallGenerator
from bench.load.latency import Latencies
from bench.load.outcome import merged
from tests.bench.load.sockets import answers, connected, load_of


def test_latencies_beyond_the_histogram_are_counted_at_its_ends() -> None:
    latencies = Latencies([0, 10**15])
    assert len(latencies) == 2
    assert latencies.percentiles_us([100]) == pytest.approx([6e8], rel=0.001)


async def test_loads_are_merged_as_if_they_were_one() -> None:
    outcomes = []
    for calls in (1, 3):
        generator = SmallGenerator(load_of(calls=calls, in_flight=calls, keys=1))
        connected(generator)
        generator.data_received(answers(generator, generator.script.result(0), calls))
        await generator.ended
        outcomes.append(generator.outcome())
    slow = replace(outcomes[0], seconds=2.0, cpu_us={"provider": 8.0}, generator_cpu_us=2.0, max_us=5_000.0)
    slow = replace(slow, latencies=Latencies([5_000_000]).encoded())
    fast = replace(outcomes[1], seconds=1.0, cpu_us={"provider": 4.0}, generator_cpu_us=1.0, max_us=3.0)
    fast = replace(fast, latencies=Latencies([1_000, 2_000, 3_000]).encoded())
    both = merged([slow, fast])
    assert (both.calls, both.seconds, both.keys, both.verified) == (4, 3.0, 4, slow.verified + fast.verified)
    assert (both.cpu_us, both.generator_cpu_us) == ({"provider": 5.0}, 1.25)
    assert both.p50_us == pytest.approx(2, rel=0.001)
    assert both.p99_us == pytest.approx(5_000, rel=0.001)
    assert both.max_us == 5_000.0
    assert len(Latencies.merged([both.latencies])) == 4
