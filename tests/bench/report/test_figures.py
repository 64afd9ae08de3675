"""Spreads over rounds, ratios of one round, groups."""

from __future__ import annotations

from bench.report.figures import Spread, case_ratios, grouped, ratios, spread
from tests.bench.rows import rounds, row


def test_a_spread_is_median_and_extremes() -> None:
    assert spread([5.0, 1.0, 2.0, 9.0]) == Spread(3.5, 1.0, 9.0)


def test_a_spread_is_written_in_the_unit_of_its_figure() -> None:
    assert Spread(2**20 * 1.5, 2.0**20, 2.0**21).text(1, 1 / 2**20) == "1.5 (1.0 .. 2.0)"


def test_ratios_are_of_one_round() -> None:
    rows = rounds("bare", [100.0, 200.0, 400.0]) + rounds("direct", [80.0, 180.0, 320.0])
    assert ratios(rows, "direct", "calls_per_s") == [0.8, 0.9, 0.8]


def test_rounds_without_the_reference_have_no_ratio() -> None:
    rows = rounds("bare", [100.0]) + rounds("direct", [80.0, 180.0]) + rounds("bare", [7.0], case="another")
    assert ratios(rows, "direct", "calls_per_s") == [0.8]
    assert ratios(rows, "direct", "p50_us") == []


def test_ratios_to_another_reference() -> None:
    rows = rounds("direct-unmetered", [4.0], "provider_cpu_us") + rounds("direct", [5.0], "provider_cpu_us")
    assert ratios(rows, "direct", "provider_cpu_us", "direct-unmetered") == [1.25]


def test_ratios_of_two_cases_are_of_one_subject_and_round() -> None:
    rows = rounds("direct", [10.0, 20.0], case="one") + rounds("direct", [90.0, 200.0, 7.0], case="many")
    rows += rounds("bare", [1.0, 1.0], case="one") + rounds("direct", [5.0], case="one", scenario="another")
    assert case_ratios(rows, "direct", "calls_per_s", "many", "one") == [9.0, 10.0]
    assert case_ratios(rows, "bare", "calls_per_s", "many", "one") == []
    assert case_ratios(rows, "direct", "p50_us", "many", "one") == []


def test_groups_keep_the_order_of_first_appearance() -> None:
    rows = [row("b", 0), row("a", 0), row("b", 1)]
    assert [(name, len(own)) for name, own in grouped(rows, lambda row: row.subject)] == [("b", 2), ("a", 1)]
