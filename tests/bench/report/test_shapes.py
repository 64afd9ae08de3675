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
        ({}, [], "about.when: found nothing, allowed text"),
        ([], [], "about: found [], allowed an object"),
        (ABOUT | {"commit": None}, [], "about.commit: found None, allowed an object"),
        (ABOUT | {"machine": {}}, [], "about.machine.processor: found nothing, allowed text"),
        (ABOUT | {"failed": [{}]}, [], "about.failed[0].subject: found nothing, allowed text"),
        (ABOUT, [{}], "rows[0].scenario: found nothing, allowed text"),
        (ABOUT, [A_ROW | {"round": True}], "rows[0].round: found True, allowed a whole number"),
        (ABOUT, [A_ROW, A_ROW | {"figures": {"p50_us": "1"}}], "rows[1].figures.p50_us: found '1', allowed a number"),
        (ABOUT, {}, "rows: found {}, allowed a list"),
        (ABOUT, [A_ROW | {"figure": 1}], "unexpected keyword argument 'figure'"),
    ],
)
def test_a_file_that_is_almost_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], about: Any, rows: Any, fault: str
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"format": 1, "about": about, "void": [], "rows": rows}))
    assert main([str(path)]) == 2
    assert re.search(f"run\\.json: no run of this benchmark: .*{re.escape(fault)}", capsys.readouterr().err)
