"""A late module is complete when it is used, however it is imported, and its package can still be imported from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PREAMBLE = """
import sys
from keyvalue_provider.late_import import import_late
import_late("package.late")
def is_loaded():
    return "ran" in {name for name in object.__getattribute__(sys.modules["package.late"], "__dict__")}
"""


@pytest.mark.parametrize(
    ("code", "loaded"),
    [
        ("import package", "False"),
        ("import package.late", "False"),
        ("import package; assert package.late.ran", "True"),
        ("from package.late import ran", "True"),
        ("import package.late.inner; assert package.late.inner.VALUE == 1", "True"),
        ("try:\n    import package.missing\nexcept ModuleNotFoundError:\n    import package", "False"),
    ],
)
def test_the_code_of_a_late_module_runs_at_its_first_use(tmp_path: Path, code: str, loaded: str) -> None:
    (tmp_path / "package" / "late").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("import package.late\n")
    (tmp_path / "package" / "late" / "__init__.py").write_text("ran = True\n")
    (tmp_path / "package" / "late" / "inner.py").write_text("VALUE = 1\n")
    command = [sys.executable, "-c", f"{PREAMBLE}{code}\nprint(is_loaded())"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.stdout.strip(), ended.stderr) == (loaded, "")
