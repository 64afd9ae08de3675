"""The documents say what the code does: the table of options, and Python examples that run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from provider.options import OPTIONS, ProviderOptions

ROOT = Path(__file__).parent.parent


def test_the_table_of_options_is_the_code() -> None:
    text = (ROOT / "docs" / "operating.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \|$", text, re.MULTILINE)
    defaults = ProviderOptions()
    expected = []
    for name, option in OPTIONS.items():
        default = getattr(defaults, name)
        expected.append((name, "none" if default is None else str(default).lower(), option.what))
    assert rows == expected


def test_every_field_of_the_options_is_an_option() -> None:
    assert list(OPTIONS) == list(ProviderOptions.__dataclass_fields__)


def test_the_library_example_of_the_readme_runs(tmp_path: Path) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    library = [example for example in examples if "from engine" in example]
    assert len(library) == 1
    done = subprocess.run(
        [sys.executable, "-c", library[0]], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_links_between_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    links = [
        (document, target) for document in documents for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    ]
    assert links
    missing = [(document.name, target) for document, target in links if not (document.parent / target).exists()]
    assert not missing
