"""The measurement of starts: its table, and a round with a peer that answers and one that ends."""

from __future__ import annotations

import sys

import pytest

from bench.run.processes import ProcessError
from bench.run.startup import Start, main, measure, summary
from bench.run.subjects import BARE, peer


def test_the_table_has_medians_quartiles_and_the_ratio_of_each_round() -> None:
    starts = {
        "old": [Start(200, 100), Start(400, 200), Start(300, 150)],
        "executable": [Start(100, 50), Start(110, 150), Start(120, 75)],
    }
    old, executable = summary(starts).splitlines()[1:]
    assert " ".join(old.split()) == "old 300 (250 to 350) 150 (125 to 175) 1.00"
    assert " ".join(executable.split()) == "executable 110 (105 to 115) 75 (62 to 112) 0.50 230 ms"


def test_a_start_lasts_until_the_first_answer() -> None:
    (start,) = measure([BARE], 1)[BARE.name]
    assert start.cpu_ms > 0
    assert start.wall_ms > 0


def test_a_provider_that_ends_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ProcessError, match="ending: the process ended with 7"):
        measure([peer(f"ending={sys.executable} -c exit(7)")], 1)
    with pytest.raises(SystemExit):
        main(["--rounds", "1"])
    assert "--rounds: found 1, allowed 2 or more" in capsys.readouterr().err
