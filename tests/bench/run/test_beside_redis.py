"""`scripts/bench redis`: its table, and a short run against real servers."""

from __future__ import annotations

import pytest

from bench.run.beside_redis import CASES, OURS, THEIRS, Sample, main, summary
from tests.provider.observe.test_metrics import debian_program


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    theirs = [Sample(100, 1, 1), Sample(200, 1, 3), Sample(100, 1, 2)]
    ours = [Sample(50, 2, 4), Sample(180, 1, 4), Sample(80, 3, 4)]
    lines = summary({case.name: {THEIRS: theirs, OURS: ours} for case in CASES}).splitlines()[1:]
    for case, line in zip(CASES, lines, strict=True):
        assert line.startswith(case.name)
        assert ("2.00 (1.00 to 3.00)" if case.is_latency else "0.80 (0.50 to 0.90)") in line
        assert line.endswith("2.0 4.0")


def test_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    debian_program("redis-benchmark", "redis-tools")
    assert main(["--rounds", "1", "--scale", "0.01"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CASES) + 2
