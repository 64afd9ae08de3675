"""The commands `report` and `compare`: what they print, and which run is not written into a document."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.report.commands import main
from bench.report.tables import BEGIN, END
from bench.run.results import REFERENCE, Row, Run
from bench.run.scenarios import SCENARIOS
from tests.bench.rows import ABOUT, rounds, row, saved


def test_report_takes_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.report.commands.RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "error: no run in" in capsys.readouterr().err
    for name, written_s in (("2026-02", 2), ("before", 1)):
        path = tmp_path / "results" / name / "run.json"
        Run(ABOUT | {"when": name}, rounds("bare", [1.0])).save(path)
        os.utime(path, (written_s, written_s))
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("2026-02, 1.5 min")


def test_report_names_the_fault_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "missing.json")])
    assert "missing.json" in capsys.readouterr().err


def test_compare_names_slower_figures_and_differences_between_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = rounds("bare", [100.0] * 3)
    old, slower = (
        saved(tmp_path, name, bare, rounds("direct", values))
        for name, values in (("old", [80.0, 81.0, 82.0]), ("slower", [60.0, 61.0, 62.0]))
    )
    assert main(["--compare", old, slower]) == 1
    assert "direct: calls/s over bare: 33% worse (29% .. 37%): 0.81 (0.80 .. 0.82) -> " in capsys.readouterr().out
    assert main(["--compare", old, slower, "--threshold", "50%"]) == 0
    assert "nothing got slower by more than 50%" in capsys.readouterr().out
    assert main(["--compare", slower, old]) == 0
    Run(ABOUT | {"machine": "Another"}, rounds("direct", [80.0]), ["busy"]).save(tmp_path / "other.json")
    capsys.readouterr()
    assert main(["--compare", old, str(tmp_path / "other.json")]) == 1  # a void run shows nothing
    said = capsys.readouterr().out
    assert "the machines differ" in said
    assert "the new run is void: busy" in said


def every_bar() -> list[Row]:
    """Return rows that measure each bar."""
    figures: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, scenario in SCENARIOS.items():
        for bar in scenario.bars:
            is_case = ", " in bar.over
            for case in (bar.case, bar.over if is_case else bar.case):
                for subject in (bar.subject, REFERENCE if is_case or not bar.over else bar.over):
                    figures.setdefault((name, case, subject), {})[bar.figure] = 1.0
    return [row(subject, 0, scenario, case, **here) for (scenario, case, subject), here in figures.items()]


@pytest.mark.parametrize(
    ("without", "void", "reason"),
    [
        ("", ("stopped",), "the run is void: stopped"),
        ("memory", (), "bars not measured: 1, the first is memory: get 1 MiB, 2000 in flight"),
    ],
    ids=["void", "partial"],
)
def test_only_a_complete_run_is_written_into_a_document_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without: str, void: tuple[str, ...], reason: str
) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    bad = saved(tmp_path, "bad", [one for one in every_bar() if one.scenario != without], void=void)
    assert main([bad, "--markdown", str(document)]) == 1
    assert f"bench: {reason}" in capsys.readouterr().err
    assert document.read_text() == f"before\n{BEGIN}\n{END}\nafter\n"
    assert main([bad, "--markdown", str(document), "--force"]) == 0
    assert document.read_text().startswith(f"before\n{BEGIN}\n- 2026-01-31")
    assert document.read_text().endswith(f"{END}\nafter\n")
    assert "holds the run of 2026-01-31" in capsys.readouterr().out
    assert main([saved(tmp_path, "good", every_bar()), "--markdown", str(document)]) == 0
