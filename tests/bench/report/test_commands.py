"""The commands `report` and `compare`: what they print, and which run is put into no document."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.report.bars import BARS
from bench.report.commands import compare_main, main
from bench.report.markdown import BEGIN, END
from bench.report.run_file import Run
from bench.run.rows import Row
from tests.bench.rows import ABOUT, rounds, row, run_of, saved


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    run_of(rounds("bare", [100.0] * 3), rounds("direct", [80.0, 81.0, 82.0])).save(path)
    return path


def test_report_prints_a_run(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_path)]) == 0
    assert "### functions" in capsys.readouterr().out


def test_report_takes_the_newest_run(
    run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.report.commands.RESULTS", tmp_path / "results")
    assert main([]) == 2
    assert "no run in" in capsys.readouterr().err
    for name, written_s in (("2026-02", 2), ("before", 1)):
        folder = tmp_path / "results" / name
        Run(ABOUT | {"when": name}, rounds("bare", [1.0])).save(folder / "run.json")
        os.utime(folder / "run.json", (written_s, written_s))
    assert main([]) == 0
    assert "- 2026-02, 1.5 minutes" in capsys.readouterr().out


def test_report_fills_a_document(run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\n{END}\nbehind\n")
    assert main([str(run_path), "--markdown", str(document), "--force"]) == 0
    assert document.read_text().startswith(f"before\n{BEGIN}\n- 2026-01-31")
    assert document.read_text().endswith(f"{END}\nbehind\n")
    assert "holds the run of 2026-01-31" in capsys.readouterr().out


def test_report_says_what_is_wrong_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing.json")]) == 2
    assert "missing.json" in capsys.readouterr().err


def test_compare_exits_with_1_where_something_got_slower(
    run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = tmp_path / "slower.json"
    run_of(rounds("bare", [100.0] * 3), rounds("direct", [60.0, 61.0, 62.0])).save(slower)
    assert compare_main([str(run_path), str(slower)]) == 1
    assert "direct: calls/s over bare: 33% worse" in capsys.readouterr().out
    assert compare_main([str(run_path), str(slower), "--threshold", "50%"]) == 0
    assert "nothing got slower by more than 50%" in capsys.readouterr().out
    assert compare_main([str(slower), str(run_path)]) == 0


def test_compare_says_that_machines_differ_and_that_runs_are_void(
    run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    machine = ABOUT["machine"] | {"processor": "Another"}
    Run(ABOUT | {"machine": machine}, rounds("direct", [80.0]), ["busy"]).save(other)
    assert compare_main([str(run_path), str(other)]) == 0
    said = capsys.readouterr().out
    assert "the machines differ" in said
    assert "the new run is void: busy" in said


def every_bar() -> list[Row]:
    """Rows by which each bar is measured."""
    figures: dict[tuple[str, str, str], dict[str, float]] = {}
    for bar in BARS:
        for case in filter(None, (bar.case, bar.reference_case)):
            for subject in (bar.subject, bar.reference):
                figures.setdefault((bar.scenario, case, subject), {})[bar.figure] = 1.0
    return [row(subject, 0, scenario, case, **here) for (scenario, case, subject), here in figures.items()]


@pytest.mark.parametrize(
    ("rows", "void", "reason"),
    [
        (every_bar(), ("stopped",), "the run is void: stopped"),
        (
            [one for one in every_bar() if one.scenario != "memory"],
            (),
            "bars not measured: 1, the first is 2,000 gets",
        ),
    ],
    ids=["void", "partial"],
)
def test_a_run_that_is_void_or_partial_is_not_put_into_a_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[Row], void: tuple[str, ...], reason: str
) -> None:
    document = tmp_path / "performance.md"
    empty = f"{BEGIN}\n{END}\n"
    document.write_text(empty)
    bad, good = saved(tmp_path, "bad", rows, void=void), saved(tmp_path, "good", every_bar())
    assert main([bad, "--markdown", str(document)]) == 1
    assert f"bench: {reason}" in capsys.readouterr().err
    assert document.read_text() == empty
    assert main([bad, "--markdown", str(document), "--force"]) == 0
    assert document.read_text() != empty
    assert main([good, "--markdown", str(document)]) == 0
