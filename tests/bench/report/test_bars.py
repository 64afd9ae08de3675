"""Bars: the figure that each one names, and how a run compares with it."""

from __future__ import annotations

import pytest

from bench.report.bars import BARS, standings
from bench.report.figures import FIGURES
from bench.run.experiments import EXPERIMENTS, GROWTH_LOADS
from bench.run.rows import Row
from bench.run.scenarios import CASES, SCENARIOS, Case
from bench.run.subjects import BARE, DIRECT, PLAIN, VARIANTS
from tests.bench.rows import CASE, rounds


def test_every_bar_names_a_measured_case() -> None:
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


HEADERS = {"scenario": "headers", "case": CASE}
BATCH = {"figure": "keys_per_s", "scenario": "batch"}
MANY = "get-many of 100 x 64 B, 64 in flight"
WATCH = {"scenario": "watch", "case": "set 64 B, 64 in flight"}
LARGE = {"figure": "above_store_bytes", "scenario": "memory", "case": "get 1 MiB, 2000 in flight, 64 keys"}
MIB = 2.0**20


@pytest.mark.parametrize(
    ("reference", "measured", "texts"),
    [
        (
            rounds("bare", [100.0, 200.0, 300.0], **HEADERS),
            [rounds("direct", [80.0, middle, 180.0], **HEADERS) for middle in (150.0, 148.0)],
            ("0.75 (0.60 .. 0.80)x", "at least 0.75x"),
        ),
        (
            rounds("direct", [100.0, 200.0], case=CASE, **BATCH) + rounds("plain", [1.0, 1.0], case=CASE, **BATCH),
            [rounds("direct", [1050.0, last], case=MANY, **BATCH) for last in (1900.0, 1898.0)],
            ("10.00 (9.50 .. 10.50)x", "at least 10.00x"),
        ),
        (
            rounds("direct", [100.0] * 3, **WATCH),
            [rounds("direct-stuck", [90.0, middle, 110.0], **WATCH) for middle in (98.0, 97.0)],
            ("0.98 (0.90 .. 1.10)x", "at least 0.98x"),
        ),
        ([], [rounds("direct", [MIB, worst * MIB, MIB], **LARGE) for worst in (64, 65)], ("1 (1 .. 64)", "at most 64")),
    ],
    ids=["median over the bare responder", "over another case", "over another subject", "worst round"],
)
def test_a_bar_is_met_up_to_its_limit(reference: list[Row], measured: list[list[Row]], texts: tuple[str, str]) -> None:
    kept, missed = (next(found for found in standings(reference + rows) if found.found) for rows in measured)
    assert (kept.is_kept, missed.is_kept) == (True, False)
    assert kept.texts == texts


def test_a_bar_that_was_not_measured_is_neither_met_nor_missed() -> None:
    found = list(standings([]))
    assert len(found) == len(BARS)
    assert {standing.is_kept for standing in found} == {None}
    assert found[0].texts[0] == "not measured"
