"""Runs that are compared: what has nothing in common, what one run alone has, what a later version has measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.endtoend import main as endtoend_main
from bench.report.commands import compare_main, main
from bench.report.comparison import changes, compared
from bench.run.rows import Row
from tests.bench.report.test_report import rounds, run_of


def saved(folder: Path, name: str, *rows: list[Row], void: tuple[str, ...] = ()) -> str:
    path = folder / f"{name}.json"
    run_of(*rows, void=void).save(path)
    return str(path)


def test_figures_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    rows = rounds("direct", [1.0], "of_a_later_version"), rounds("direct", [5.0])
    run = run_of(*rows)
    assert changes(compared(run, run), 0.1) == []
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
    assert compare_main([old, saved(tmp_path, "new", new)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("found nothing in common: ")
    assert said.out == ""


def test_what_the_old_run_alone_has_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = rounds("bare", [2.0]), rounds("direct", [1.0])
    alone = (
        *(rounds("plain", [1.0], case=case) for case in ("one", "two")),
        rounds("direct", [1.0], case="gone"),
        rounds("direct", [1.0], scenario="growth"),
        rounds("bare", [1.0], case="gone"),
    )
    old, new = saved(tmp_path, "old", *both, *alone), saved(tmp_path, "new", *both, rounds("redis", [1.0]))
    assert compare_main([old, new]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "only the old run has: plain; functions: gone: direct; growth\nnothing got slower by more than 10%"
    )
    assert said.endswith("in 1 cases that both runs have\n")
    assert compare_main([new, old]) == 0
    assert capsys.readouterr().out.startswith("only the old run has: redis\n")


def test_a_run_that_has_nothing_in_common_with_the_old_one_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.endtoend.measure", lambda *_: (one for one in rounds("direct", [1.0])))
    old = saved(tmp_path, "old", rounds("plain", [1.0]))
    assert endtoend_main(["--output", str(tmp_path / "run"), "--compare", old]) == 2
    assert "found nothing in common" in capsys.readouterr().err
    assert (tmp_path / "run" / "run.json").exists()
