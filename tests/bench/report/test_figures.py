"""Spreads over rounds, ratios of one round, groups."""

from __future__ import annotations

from bench.report.figures import Spread, case_ratios, grouped, ratios, spread
from tests.bench.rows import rounds, row


def test_a_spread_is_median_and_extremes_in_the_unit_of_its_figure() -> None:
    assert spread([5.0, 1.0, 2.0, 9.0]) == Spread(3.5, 1.0, 9.0)
    assert Spread(2**20 * 1.5, 2.0**20, 2.0**21).text(1, 1 / 2**20) == "1.5 (1.0 .. 2.0)"


def test_ratios_are_of_one_round_that_has_the_reference() -> None:
    rows = rounds("bare", [100.0, 200.0]) + rounds("direct", [80.0, 180.0, 320.0])
    rows += rounds("bare", [7.0, 7.0, 7.0], case="another") + rounds("direct-unmetered", [40.0])
    assert ratios(rows, "direct", "calls_per_s") == [0.8, 0.9]
    assert ratios(rows, "direct", "calls_per_s", "direct-unmetered") == [2.0]
    assert ratios(rows, "direct", "p50_us") == []


def test_ratios_of_two_cases_are_of_one_subject_and_round() -> None:
    rows = rounds("direct", [10.0, 20.0], case="one") + rounds("direct", [90.0, 200.0, 7.0], case="many")
    rows += rounds("bare", [1.0, 1.0], case="one") + rounds("direct", [5.0], case="one", scenario="another")
    assert case_ratios(rows, "direct", "calls_per_s", "many", "one") == [9.0, 10.0]
    assert case_ratios(rows, "bare", "calls_per_s", "many", "one") == []


def test_groups_keep_the_order_of_first_appearance() -> None:
    rows = [row("b", 0), row("a", 0), row("b", 1)]
    assert [(name, len(own)) for name, own in grouped(rows, lambda row: row.subject)] == [("b", 2), ("a", 1)]
