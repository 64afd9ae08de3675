"""Scenarios are taught, each."""

from __future__ import annotations

from bench.endtoend import parser
from bench.run.experiments import EXPERIMENTS
from bench.run.scenarios import CASES, SCENARIOS


def test_every_scenario_is_taught() -> None:
    assert set(SCENARIOS) == {*CASES, *EXPERIMENTS}
    text = parser().format_help()
    assert [name for name in SCENARIOS if f"\n  {name} " not in text] == []
