"""A run file is read back as it was written, and anything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.run.results import Run
from tests.bench.rows import rounds, run_of


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = run_of(rounds("bare", [1.0]), rounds("direct", [2.0]), void=("busy",))
    run.save(tmp_path / "deep" / "run.json")
    assert Run.load(tmp_path / "deep" / "run.json") == run


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"about": {}}',
        '{"about": {}, "rows": [{}], "void": []}',
    ],
)
def test_a_malformed_run_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is not a run of this benchmark: "):
        Run.load(path)
