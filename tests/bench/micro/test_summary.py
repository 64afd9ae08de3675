"""The figures that are printed at the end of the micro benchmarks."""

from __future__ import annotations

from bench.micro.summary import Figures, tables


def test_figures_are_tables_of_groups() -> None:
    found = [
        Figures("b: get", "test_get[1]", {"store ns a call": 1_234, "ratio": 2.0}),
        Figures("b: get", "test_get[2]", {"store ns a call": 99}),
        Figures("a: push", "test_push", {"ns a call": 0.25}),
        Figures("c: codec", "test_encode", {}),
    ]
    assert list(tables(found)) == [
        "",
        "a: push     ns a call",
        "test_push        0.25",
        "",
        "b: get        store ns a call   ratio",
        "test_get[1]             1,234    2.00",
        "test_get[2]                99",
    ]


def test_there_are_no_tables_without_figures() -> None:
    assert list(tables([Figures("codec", "test_encode", {})])) == []
