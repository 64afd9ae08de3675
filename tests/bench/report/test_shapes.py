"""What is no run is told from one, with what is found and what is allowed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.report.commands import main
from tests.bench.rows import ABOUT

A_ROW = {"scenario": "s", "case": "c", "fields": {}, "subject": "direct", "round": 0, "figures": {"p50_us": 1.0}}


@pytest.mark.parametrize(
    ("about", "rows", "fault"),
    [
        ({}, [], "about.when is missing, expected text"),
        ([], [], "about: found [], expected an object"),
        (ABOUT | {"commit": None}, [], "about.commit: found None, expected an object"),
        (ABOUT | {"machine": {}}, [], "about.machine.processor is missing, expected text"),
        (ABOUT | {"failed": [{}]}, [], "about.failed[0].subject is missing, expected text"),
        (ABOUT, [{}], "rows[0].scenario is missing, expected text"),
        (ABOUT, [A_ROW | {"round": True}], "rows[0].round: found True, expected a whole number"),
        (ABOUT, [A_ROW, A_ROW | {"figures": {"p50_us": "1"}}], "rows[1].figures.p50_us: found '1', expected a number"),
        (ABOUT, {}, "rows: found {}, expected a list"),
        (ABOUT, [A_ROW | {"figure": 1}], "unexpected keyword argument 'figure'"),
    ],
)
def test_a_file_that_is_almost_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], about: Any, rows: Any, fault: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"format": 1, "about": about, "void": [], "rows": rows}))
    assert main([str(path)]) == 2
    assert re.search(f"run\\.json is not a run of this benchmark: .*{re.escape(fault)}", capsys.readouterr().err)
