"""The result of a load: an outcome, or an error if an answer is wrong or missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LoadError", "Outcome", "merged"]

#: How the figures of several loads are merged. Percentiles are means over the loads, weighted by their calls.
TOTALS = ("calls", "seconds", "keys", "verified")
GREATEST = ("max_us", "excess_us", "page_cpu_us")
MEANS = ("p50_us", "p99_us", "p999_us", "generator_cpu_us")


class LoadError(Exception):
    """An error that makes a load invalid: an answer is wrong or missing, or the connection to NATS was lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The figures of a load. CPU times are microseconds per call. `cpu_us` has the CPU time of each watched process.

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
    excess_us: float
    page_cpu_us: float

    @property
    def calls_per_s(self) -> float:
        return self.calls / self.seconds

    @property
    def keys_per_s(self) -> float:
        return self.keys / self.seconds


def merged(outcomes: Sequence[Outcome]) -> Outcome:
    """Merge the outcomes of several loads, as if they were one load."""
    calls = sum(outcome.calls for outcome in outcomes)

    def mean(costs: Iterable[float]) -> float:
        return sum(cost * outcome.calls for cost, outcome in zip(costs, outcomes, strict=True)) / calls

    figures: dict[str, Any] = {name: sum(getattr(outcome, name) for outcome in outcomes) for name in TOTALS}
    figures |= {name: max(getattr(outcome, name) for outcome in outcomes) for name in GREATEST}
    figures |= {name: mean(getattr(outcome, name) for outcome in outcomes) for name in MEANS}
    cpu_us = {name: mean(outcome.cpu_us[name] for outcome in outcomes) for name in outcomes[0].cpu_us}
    return Outcome(cpu_us=cpu_us, **figures)
