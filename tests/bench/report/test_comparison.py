"""Comparison of two runs: which differences count as changes, and what is not compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report.commands import main
from bench.report.comparison import Change, compared, share
from bench.run.results import Row, Run
from tests.bench.rows import CASE, rounds, run_of, saved


def slower(old: Run, new: Run) -> list[Change]:
    return [change for change in compared(old, new) if change.exceeds(0.1)]


@pytest.mark.parametrize(
    ("old", "new", "figure", "worse"),
    [
        ([100, 101, 102], [80, 81, 82], "calls_per_s", True),
        ([100, 101, 102], [95, 96, 97], "calls_per_s", False),  # within the threshold
        ([100, 101, 102], [120, 121, 122], "calls_per_s", False),  # better
        ([100, 101, 102], [120, 121, 122], "p50_us", True),
        ([100, 101, 102], [80, 81, 82], "p50_us", False),
        ([70, 100, 130], [75, 85, 95], "calls_per_s", False),  # within the spread of the old run
        ([99, 100, 101], [70, 85, 110], "calls_per_s", False),  # within the spread of the new run
        ([99, 100, 101], [80, 85, 95], "calls_per_s", False),  # beyond the spread, but not beyond the threshold
        ([99, 100, 101], [80, 85, 89], "calls_per_s", True),
        ([100, 101, 102], [200, 200, 200], "max_us", False),  # a figure that is not judged
    ],
)
def test_changes_exceed_the_threshold_with_their_whole_interval(
    old: list[float], new: list[float], figure: str, worse: bool
) -> None:
    found = slower(run_of(rounds("direct", old, figure)), run_of(rounds("direct", new, figure)))
    assert [(*change.where, change.figure) for change in found] == [("functions", CASE, "direct", figure)] * worse


def test_ratios_are_compared_where_both_runs_have_the_reference() -> None:
    old = run_of(rounds("bare", [100.0, 100.0]), rounds("direct", [80.0, 82.0]))
    slow_machine = run_of(rounds("bare", [50.0, 50.0]), rounds("direct", [40.0, 41.0]))
    slow_code = run_of(rounds("bare", [200.0, 200.0]), rounds("direct", [100.0, 102.0]))
    assert slower(old, slow_machine) == []
    (change,) = slower(old, slow_code)
    assert change.text == (
        "functions: get 64 B, 64 in flight: direct: calls/s over bare: 60% worse (57% .. 64%): 0.81 (0.80 .. 0.82) -> 0.51 (0.50 .. 0.51)"
    )


def test_a_share_is_read() -> None:
    assert [share(text) for text in ("10%", "0.25", "0")] == [0.1, 0.25, 0.0]
    for text in ("-1%", "1000%", "much"):
        with pytest.raises(ValueError, match=r"share such as 0.1 or 10%, found (-1|1000)%|could not convert"):
            share(text)


def test_unknown_figures_are_ignored(tmp_path: Path) -> None:
    rows = rounds("direct", [1.0], "of_a_later_version"), rounds("direct", [5.0])
    run = run_of(*rows)
    assert slower(run, run) == []
    assert main([saved(tmp_path, "run", *rows)]) == 0


@pytest.mark.parametrize(
    "new",
    [
        [],
        rounds("bare", [1.0]),
        rounds("direct", [1.0], case="another"),
        rounds("plain", [1.0]),
        rounds("direct", [1.0], "max_us"),
    ],
    ids=["nothing", "the reference", "another case", "another subject", "a figure that is not judged"],
)
def test_runs_with_nothing_in_common_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], new: list[Row]
) -> None:
    old = saved(tmp_path, "old", rounds("bare", [2.0]), rounds("direct", [1.0]))
    assert main(["--compare", old, saved(tmp_path, "new", new)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("the runs have nothing in common: ")
    assert said.out == ""


def test_rows_that_only_the_old_run_has_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = rounds("bare", [2.0]) + rounds("direct", [1.0])
    alone = rounds("plain", [1.0], case="one") + rounds("plain", [1.0], case="two")
    alone += rounds("direct", [1.0], case="gone") + rounds("direct", [1.0], scenario="growth")
    alone += rounds("bare", [1.0], case="gone")
    old, new = saved(tmp_path, "old", both, alone), saved(tmp_path, "new", both, rounds("redis", [1.0]))
    assert main(["--compare", old, new]) == 0
    assert capsys.readouterr().out == (
        "only the old run has: plain; functions: gone: direct; growth\n"
        "nothing got slower by more than 10% and beyond its interval; cases in both: 1\n"
    )
    assert main(["--compare", new, old]) == 0
    assert capsys.readouterr().out.startswith("only the old run has: redis\n")
