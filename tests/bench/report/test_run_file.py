"""A run file is read back as it was written, and anything else is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.report.run_file import Run
from tests.bench.rows import ABOUT, rounds, run_of


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = run_of(rounds("bare", [1.0]), rounds("direct", [2.0]), void=("busy",))
    run.save(tmp_path / "deep" / "run.json")
    assert Run.load(tmp_path / "deep" / "run.json") == run


A_ROW = {"scenario": "s", "case": "c", "fields": {}, "subject": "direct", "round": 0, "figures": {"p50_us": 1.0}}


def text_of(about: Any, rows: Any = ()) -> str:
    return json.dumps({"format": 1, "about": about, "void": [], "rows": rows})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ""),
        ("[]", ""),
        ("{}", ""),
        ('{"format": 99}', ""),
        (text_of({}), "about.when is missing, expected text"),
        (text_of([]), "about: found [], expected an object"),
        (text_of(ABOUT | {"commit": None}), "about.commit: found None, expected an object"),
        (text_of(ABOUT | {"machine": {}}), "about.machine.processor is missing, expected text"),
        (text_of(ABOUT | {"failed": [{}]}), "about.failed[0].subject is missing, expected text"),
        (text_of(ABOUT, [{}]), "rows[0].scenario is missing, expected text"),
        (text_of(ABOUT, [A_ROW | {"round": True}]), "rows[0].round: found True, expected a whole number"),
        (
            text_of(ABOUT, [A_ROW, A_ROW | {"figures": {"p50_us": "1"}}]),
            "rows[1].figures.p50_us: found '1', expected a number",
        ),
        (text_of(ABOUT, {}), "rows: found {}, expected a list"),
        (text_of(ABOUT, [A_ROW | {"figure": 1}]), "unexpected keyword argument 'figure'"),
    ],
)
def test_a_malformed_run_is_refused_with_the_reason(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"run\.json is not a run of this benchmark: .*{re.escape(fault)}"):
        Run.load(path)
