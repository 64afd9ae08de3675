"""The settings of all micro-benchmarks: the garbage collector's, and the unit of their tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.micro.engine import tune_collector


def pytest_sessionstart() -> None:
    """Configure the cyclic garbage collector as the provider does, for all benchmarks."""
    tune_collector()


def pytest_benchmark_scale_unit(unit: str, benchmarks: Sequence[dict[str, Any]]) -> tuple[str, float] | None:
    """Show the nanoseconds of a call if a round of the group's benchmarks makes several calls."""
    calls = benchmarks[0]["extra_info"].get("calls")
    return ("n", 1e9 / calls) if calls and unit == "seconds" else None
