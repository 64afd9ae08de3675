"""Bars: they name what is measured, and how a run stands against them."""

from __future__ import annotations

import pytest

from bench.report.bars import BARS, standings
from bench.report.figures import FIGURES
from bench.run.experiments import EXPERIMENTS, GROWTH_LOADS
from bench.run.scenarios import CASES, SCENARIOS, Case
from bench.run.subjects import BARE, DIRECT, PLAIN, VARIANTS
from tests.bench.rows import CASE, rounds


def test_every_bar_names_a_case_that_is_measured() -> None:
    labels = {(name, case.label) for name, cases in CASES.items() for case in cases}
    for function, in_flight in GROWTH_LOADS:
        labels |= {("growth", Case(function=function, in_flight=in_flight, keys=10**power).label) for power in (3, 6)}
    wide = set(EXPERIMENTS)
    assert {bar.scenario for bar in BARS} <= set(SCENARIOS)
    assert [bar for bar in BARS if bar.scenario not in wide and (bar.scenario, bar.case) not in labels] == []
    cases = {(bar.scenario, case) for bar in BARS if bar.reference_case for case in (bar.case, bar.reference_case)}
    assert cases <= labels
    assert {bar.figure for bar in BARS} <= set(FIGURES)
    names = {subject.name for subject in (BARE, DIRECT, PLAIN, *VARIANTS)}
    assert {bar.subject for bar in BARS} | {bar.reference for bar in BARS} <= names


@pytest.mark.parametrize(
    ("direct", "is_kept", "text"),
    [([80.0, 75.0, 60.0], True, "0.75 (0.60 .. 0.80)x"), ([80.0, 74.0, 60.0], False, "0.74 (0.60 .. 0.80)x")],
)
def test_the_median_ratio_is_held_against_a_bar(direct: list[float], is_kept: bool, text: str) -> None:
    where = {"scenario": "headers", "case": CASE}
    rows = rounds("bare", [100.0] * 3, **where) + rounds("direct", direct, **where)
    (standing,) = (found for found in standings(rows) if found.bar.figure == "calls_per_s" and found.found)
    assert standing.is_kept is is_kept
    assert standing.texts == (text, "at least 0.75x")


@pytest.mark.parametrize(("many", "is_kept"), [([950.0, 1000.0, 1020.0], True), ([950.0, 990.0, 1020.0], False)])
def test_a_bar_may_be_over_another_case(many: list[float], is_kept: bool) -> None:
    rows = rounds("direct", [100.0] * 3, "keys_per_s", scenario="batch", case=CASE)
    rows += rounds("direct", many, "keys_per_s", scenario="batch", case="get-many of 100 x 64 B, 64 in flight")
    rows += rounds("plain", [1.0] * 3, "keys_per_s", scenario="batch", case="get-many of 100 x 64 B, 64 in flight")
    (standing,) = (found for found in standings(rows) if found.found)
    assert standing.is_kept is is_kept
    assert standing.texts == (f"{many[1] / 100:.2f} (9.50 .. 10.20)x", "at least 10.00x")


@pytest.mark.parametrize(("stuck", "is_kept"), [(98.0, True), (97.0, False)])
def test_a_bar_may_be_over_another_subject(stuck: float, is_kept: bool) -> None:
    where = {"scenario": "watch", "case": "set 64 B, 64 in flight"}
    rows = rounds("direct", [100.0] * 3, **where) + rounds("direct-stuck", [90.0, stuck, 110.0], **where)
    (standing,) = (found for found in standings(rows) if found.found)
    assert standing.is_kept is is_kept


@pytest.mark.parametrize(("worst", "is_kept"), [(64.0, True), (65.0, False)])
def test_the_worst_round_counts_where_a_bar_says_so(worst: float, is_kept: bool) -> None:
    values = [2**20, worst * 2**20, 2**20]
    where = {"scenario": "memory", "case": "get 1 MiB, 2000 in flight, 64 keys"}
    (standing,) = (found for found in standings(rounds("direct", values, "above_store_bytes", **where)) if found.found)
    assert standing.is_kept is is_kept
    assert standing.texts[1] == "at most 64"


def test_a_bar_that_was_not_measured_is_neither_kept_nor_missed() -> None:
    found = list(standings([]))
    assert len(found) == len(BARS)
    assert {standing.is_kept for standing in found} == {None}
    assert found[0].texts[0] == "not measured"
