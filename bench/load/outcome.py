"""What a load gives: an outcome, or an error where an answer is wrong or missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.load.latency import Latencies

__all__ = ["PERCENTS", "LoadError", "Outcome", "WrongAnswerError", "merged"]

PERCENTS = (50, 99, 99.9)


class LoadError(Exception):
    """A load that measures nothing: an answer is wrong, or missing."""


class WrongAnswerError(LoadError):
    """An answer that is not that of a store whose keys are those of the load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a load measured. CPU times are microseconds a call; `cpu_us` has the watched processes by their names.

    :ivar latencies: a histogram, encoded; of nanoseconds
    :ivar page_cpu_us: the most CPU time that the provider took from the end of one page to the end of the next, of a walk with one call in flight
    :ivar excess_us: by how much, at the most, a call took longer than the one that was due at the same moment and went to the provider beside
    :ivar keys: that were read, written or listed
    :ivar verified: calls whose answer was compared byte for byte
    """

    calls: int
    seconds: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    cpu_us: dict[str, float]
    generator_cpu_us: float
    keys: int
    verified: int
    latencies: str
    excess_us: float = 0.0
    page_cpu_us: float = 0.0

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.seconds

    @property
    def keys_per_s(self) -> float:
        return self.keys / self.seconds


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """What several loads measured, as if they were one."""
    calls = sum(outcome.calls for outcome in outcomes)
    latencies = Latencies.merged(outcome.latencies for outcome in outcomes)
    max_us = max(outcome.max_us for outcome in outcomes)
    p50, p99, p999 = (min(found, max_us) for found in latencies.percentiles_us(PERCENTS))

    def mean(costs: Iterable[float]) -> float:
        return sum(cost * outcome.calls for cost, outcome in zip(costs, outcomes, strict=True)) / calls

    return Outcome(
        calls=calls,
        seconds=sum(outcome.seconds for outcome in outcomes),
        p50_us=p50,
        p99_us=p99,
        p999_us=p999,
        max_us=max_us,
        cpu_us={name: mean(outcome.cpu_us[name] for outcome in outcomes) for name in outcomes[0].cpu_us},
        generator_cpu_us=mean(outcome.generator_cpu_us for outcome in outcomes),
        keys=sum(outcome.keys for outcome in outcomes),
        verified=sum(outcome.verified for outcome in outcomes),
        latencies=latencies.encoded(),
        excess_us=max(outcome.excess_us for outcome in outcomes),
        page_cpu_us=max(outcome.page_cpu_us for outcome in outcomes),
    )
