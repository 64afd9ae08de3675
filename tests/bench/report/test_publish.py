"""Runs that are put into a document: what is not to be published."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report.bars import BARS
from bench.report.commands import main
from bench.report.markdown import BEGIN, END
from bench.run.rows import Row
from tests.bench.report.test_compare import saved
from tests.bench.report.test_report import row


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
            "1 bars were not measured, the first: 2,000 gets",
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
