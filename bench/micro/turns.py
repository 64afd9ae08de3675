"""Benchmark rounds in which two subjects take turns, so that other load on the machine affects both equally."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter_ns
from typing import TypeVar

from pytest_benchmark.fixture import BenchmarkFixture

__all__ = ["ROUNDS", "in_turns"]

ROUNDS = 50

T = TypeVar("T")


def in_turns(
    benchmark: BenchmarkFixture,
    calls: int,
    arguments: Callable[[int], T],
    act: Callable[[T], None],
    act_beside: Callable[[T], None],
    name: str = "store",
    beside: str = "dict+lock",
    undo: Callable[[T], None] | None = None,
) -> None:
    """Benchmark `act` and `act_beside` in rounds of `calls` calls each.

    `act_beside` runs before `act` in one round and after `act` in the next. Both functions get new arguments in each
    round, and `undo` runs at the end of the round. `arguments` and `undo` are not timed. `extra_info` gets the
    nanoseconds per call for both functions, under `name` and `beside`, and the median of the rounds' ratios.
    """
    beside_ns: list[float] = []
    left: list[Callable[[], None]] = []  # steps of the last round that must run after `act` has been timed

    def time_beside(others: T) -> None:
        start = perf_counter_ns()
        act_beside(others)
        beside_ns.append((perf_counter_ns() - start) / calls)

    def finish() -> None:
        while left:
            left.pop(0)()

    def setup() -> tuple[tuple[T], dict[str, object]]:
        finish()
        number = len(beside_ns)
        mine, others = arguments(number % ROUNDS), arguments(number % ROUNDS)
        if undo is not None:
            left.append(lambda: undo(mine))
        if number % 2:
            left.insert(0, lambda: time_beside(others))
        else:
            time_beside(others)
        return (mine,), {}

    benchmark.pedantic(act, setup=setup, rounds=ROUNDS)  # type: ignore[no-untyped-call]
    finish()
    if benchmark.stats is None:  # --benchmark-disable
        return
    own_ns = [seconds * 1e9 / calls for seconds in benchmark.stats.stats.data]
    ratios = [own / other for own, other in zip(own_ns, beside_ns, strict=True)]
    benchmark.extra_info[f"{name} ns a call"] = round(median(own_ns))
    benchmark.extra_info[f"{beside} ns a call"] = round(median(beside_ns))
    benchmark.extra_info["ratio"] = round(median(ratios), 3)
