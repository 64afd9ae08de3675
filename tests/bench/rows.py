"""Rows and runs like measured ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.run.results import Row, Run

ABOUT: dict[str, Any] = {
    "when": "2026-01-31T12:00:00+00:00",
    "commit": {"id": "0123456789abcdef", "dirty": False},
    "versions": {"python": "CPython 3.11.0", "nats-server": "v2.12.0"},
    "machine": "A processor",
    "settings": {
        "rounds": 3,
        "seconds": 1.0,
        "subjects": {"bare": {}, "direct": {}},
        "notes": {"redis": "/opt/redis"},
    },
    "load_before": "0.10 0.10 0.10",
    "load_after": "1.00 0.50 0.20",
    "minutes": 1.5,
}
CASE = "get 64 B, 64 in flight"


def row(subject: str, number: int, scenario: str = "functions", case: str = CASE, **figures: float) -> Row:
    return Row(scenario=scenario, case=case, fields={"function": "get"}, subject=subject, round=number, figures=figures)


def rounds(subject: str, values: Iterable[float], figure: str = "calls_per_s", **where: str) -> list[Row]:
    """Return rows of one figure, one for each round."""
    return [row(subject, number, **where, **{figure: value}) for number, value in enumerate(values)]  # type: ignore[arg-type]


def run_of(*rows: list[Row], void: tuple[str, ...] = ()) -> Run:
    return Run(ABOUT, [one for several in rows for one in several], list(void))


def saved(folder: Path, name: str, *rows: list[Row], void: tuple[str, ...] = ()) -> str:
    path = folder / f"{name}.json"
    run_of(*rows, void=void).save(path)
    return str(path)
