"""The result of a load: an outcome, or an error if an answer is wrong or missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.load.latency import Latencies

__all__ = ["PERCENTS", "LoadError", "Outcome", "WrongAnswerError", "merged"]

PERCENTS = (50, 99, 99.9)


class LoadError(Exception):
    """An error that makes a load invalid: an answer is wrong or missing."""


class WrongAnswerError(LoadError):
    """An error for an answer that a correct store would not have given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The figures of a load. CPU times are microseconds per call. `cpu_us` has the CPU time of each watched process.

    :ivar latencies: an encoded histogram in nanoseconds
    :ivar page_cpu_us: for walks with one call in flight: the provider's maximum CPU time for a page
    :ivar excess_us: with `Load.beside`: the maximum excess of a call's latency over that of the other provider's call
    :ivar keys: number of keys read, written or listed
    :ivar verified: number of calls whose answer was compared byte for byte
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
    """Merge the outcomes of several loads, as if they were one load."""
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
