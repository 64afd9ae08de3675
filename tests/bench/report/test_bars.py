"""Bars: the figure that each one names, and how a run compares with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.report.bars import faults, slowness, standings, unmeasured, unmet
from bench.report.figures import FIGURES
from bench.run.experiments import EXPERIMENTS, GROWTH_CASES
from bench.run.results import REFERENCE, Row
from bench.run.scenarios import SCENARIOS, Bar, redis_cases
from bench.run.subjects import BEFORE, OWN
from tests.bench.rows import CASE, rounds

BARS = [(name, bar) for name, scenario in SCENARIOS.items() for bar in scenario.bars]


def test_every_bar_names_a_measured_case() -> None:
    labels = {(name, case.label) for name, scenario in SCENARIOS.items() for case in scenario.cases}
    labels |= {("redis", case) for case in redis_cases()}
    labels |= {("growth", replace(case, keys=10**power).label) for case in GROWTH_CASES for power in (3, 6)}
    names = {BEFORE, *OWN}
    for name, bar in BARS:
        assert name in EXPERIMENTS or (name, bar.case) in labels
        assert not bar.over or bar.over in names or {(name, bar.case), (name, bar.over)} <= labels
        assert bar.subject in names
        assert bar.figure in FIGURES


HEADERS = {"scenario": "headers", "case": CASE}
BATCH = {"figure": "keys_per_s", "scenario": "batch"}
MANY = "get-many of 100 x 64 B, 64 in flight"
LARGE = {"figure": "above_store_bytes", "scenario": "memory", "case": "get 1 MiB, 2000 in flight, 64 keys"}
MIB = 2.0**20


@pytest.mark.parametrize(
    ("reference", "measured", "cells"),
    [
        (
            rounds("bare", [100.0, 200.0, 300.0], **HEADERS),
            [rounds("direct", values, **HEADERS) for values in ([80, 150, 180], [80, 148, 210], [60, 140, 222])],
            ("get 64 B, 64 in flight: calls/s over bare", "0.75 (0.60 .. 0.80)", ">= 0.75"),
        ),
        (
            rounds("direct", [100.0] * 3, case=CASE, **BATCH) + rounds("plain", [1.0], case=CASE, **BATCH),
            [
                rounds("direct", values, case=MANY, **BATCH)
                for values in ([950, 1000, 1050], [900, 990, 1000], [900, 950, 999])
            ],
            (f"{MANY}: keys/s over {CASE}", "10.00 (9.50 .. 10.50)", ">= 10.00"),
        ),
        (
            [],
            [rounds("direct", [MIB, worst * MIB, MIB], **LARGE) for worst in (64, 65, 65)],
            ("get 1 MiB, 2000 in flight, 64 keys: worst MiB above the store", "64", "<= 64"),
        ),
    ],
    ids=["over the bare responder", "over another case", "worst round"],
)
def test_a_bar_is_missed_only_with_its_whole_interval(
    reference: list[Row], measured: list[list[Row]], cells: tuple[str, ...]
) -> None:
    kept, between, beyond = (next(one for one in standings(reference + rows) if one.found) for rows in measured)
    assert kept.cells == (*cells, "ok")
    assert between.verdict == ("missed" if kept.bar.is_worst else "unclear")
    assert beyond.verdict == "missed"
    assert unmet(reference + measured[0]) == []
    assert len(unmet(reference + measured[2])) == 1


def test_a_bar_that_was_not_measured_is_neither_met_nor_missed() -> None:
    found = standings([])
    assert [(one.scenario, one.bar) for one in found] == BARS
    assert {one.verdict for one in found} == {""}
    assert found[0].cells[1] == "not measured"
    assert {one.scenario for one in found} - {one.scenario for one in unmeasured(found)} == {"against"}


# The machine


def reference(cpu_us: list[float], calls_per_s: float = 100.0, slowest: float = 100.0) -> list[Row]:
    """Return the rows of the bare responder in the reference case, one of which has the slowest rate."""
    rows = rounds(REFERENCE, cpu_us, "provider_cpu_us", scenario=REFERENCE)
    rates = [calls_per_s] * (len(rows) - 1) + [slowest]
    return [replace(row, figures={**row.figures, "calls_per_s": rate}) for row, rate in zip(rows, rates, strict=True)]


@pytest.mark.parametrize(
    ("rows", "void", "slow"),
    [
        ([], "", False),
        (reference([2.0, 2.2, 9.0]), "", False),
        (reference([2.0, 2.3, 9.0]), "", True),
        (reference([3.9] * 5, 100.0, 63.0), "", True),
        (reference([2.0] * 5, 100.0, 62.0), "the fastest round of the bare responder has 1.6 times", False),
        (reference([3.9] * 5, 100.0, 62.0), "so the machine was busy with something else", True),
        (reference([2.0] * 2), "", False),
        (reference([2.3] * 2), "so the machine or its Python is slow, or it was busy; 3 rounds would show which", True),
        (rounds(REFERENCE, [9.0], "provider_cpu_us"), "", False),  # of another case
    ],
)
def test_a_busy_machine_makes_a_run_void_and_a_slow_one_does_not(rows: list[Row], void: str, slow: bool) -> None:
    found = faults(rows)
    assert len(found) == bool(void)
    assert all(void in fault for fault in found)
    assert bool(slowness(rows)) == slow


@pytest.mark.parametrize(("scenario", "bar"), BARS, ids=lambda part: getattr(part, "case", part))
@pytest.mark.parametrize("value", [0.0001, 1e12])
def test_a_slow_machine_judges_ratios_and_memory_and_nothing_else(scenario: str, bar: Bar, value: float) -> None:
    """A time or a rate without a ratio is neither met nor missed, however far it is from its limit."""
    is_case = ", " in bar.over
    over = (bar.over if is_case else bar.case, bar.subject if is_case else bar.over)
    rows = rounds(bar.subject, [value] * 3, bar.figure, scenario=scenario, case=bar.case)
    rows += rounds(over[1], [1.0] * 3, bar.figure, scenario=scenario, case=over[0]) if bar.over else []
    fast, slow = (
        next(one for one in standings([*rows, *reference([cpu_us] * 3)]) if (one.scenario, one.bar) == (scenario, bar))
        for cpu_us in (2.0, 4.0)
    )
    assert fast.verdict in ("ok", "missed")
    is_absolute = not bar.over and "bytes" not in bar.figure
    assert slow.verdict == ("not judged" if is_absolute else fast.verdict)
    lines = unmet([*rows, *reference([4.0] * 3)])
    assert any(line.startswith(f"bar {slow.verdict}: {scenario}: ") for line in lines) == (slow.verdict != "ok")
