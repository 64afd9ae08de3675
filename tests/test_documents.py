"""The documents say what the code does: the tables of options and metrics, and links between documents."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import keyvalue_engine
import keyvalue_transport
from keyvalue_engine import Store
from keyvalue_provider.config.options import (
    LINK_OPTIONS,
    OPTIONS,
    STANDALONE_OPTIONS,
    LinkOptions,
    ProviderOptions,
    StandaloneOptions,
)
from keyvalue_provider.watching.patterns import WATCH_OPTIONS
from keyvalue_transport.keyvalue.outcomes import OUTCOMES
from tests.provider.observe.test_metrics import FUNCTIONS, Pieces

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
    assert list(LINK_OPTIONS) == list(LinkOptions.__dataclass_fields__)


def rows_under(heading: str) -> list[tuple[str, str, str]]:
    """Cells of a table of three columns in docs/operating.md, without its head."""
    _, _, section = (
        (ROOT / "docs" / "operating.md").read_text().partition(f"\n| {heading} | default | what |\n|---|---|---|\n")
    )
    return re.findall(r"^\| (\w+) \| (.+) \| (.+) \|$", section.partition("\n\n")[0], re.MULTILINE)


def test_the_table_of_a_links_options_is_the_code() -> None:
    shared = OPTIONS.keys() - {"keys_max"}
    assert rows_under("option of a link") == [
        (name, "as the provider" if name in shared else "none", option.what) for name, option in LINK_OPTIONS.items()
    ]


def test_the_table_of_standalone_options_is_the_code() -> None:
    defaults = StandaloneOptions()
    assert rows_under("option of serve") == [
        (name, "none" if getattr(defaults, name) is None else getattr(defaults, name), option.what)
        for name, option in STANDALONE_OPTIONS.items()
    ]


def test_the_table_of_a_watching_links_options_is_the_code() -> None:
    defaults = {"watch": "none", "watch_bucket": "0"}
    assert rows_under("option of a watching link") == [
        (name, defaults[name], what) for name, what in WATCH_OPTIONS.items()
    ]


def rows_of_metrics() -> list[tuple[str, str, str, str]]:
    """Name, type, labels and meaning of each metric that the provider exposes."""
    suffixes = {"counter": "_total", "info": "_info"}
    rows = []
    for family in Pieces.of(Store()).registry().collect():
        name = family.name + suffixes.get(family.type, "")
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        rows.append((name, family.type, ", ".join(labels), family.documentation.removesuffix(".")))
    return rows


def test_the_table_of_metrics_is_the_code() -> None:
    _, _, section = (ROOT / "docs" / "operating.md").read_text().partition("\n## Metrics\n")
    section = section.partition("\n## ")[0]
    found = re.findall(r"^\| (\w+) \| (\w+) \| ?(.*?) \| (.+) \|$", section, re.MULTILINE)[1:]  # without the head
    expected = rows_of_metrics()
    assert [row for row in found if row[0].startswith("wrpc_")] == [
        row for row in expected if row[0].startswith("wrpc_")
    ]
    # What the process metrics mean is prometheus-client's to say.
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert f"`operation` is one of {', '.join(FUNCTIONS)}." in section
    assert f"`result` is one of {', '.join(OUTCOMES)}:" in section


@pytest.mark.parametrize("package", [keyvalue_engine, keyvalue_transport], ids=lambda package: package.__name__)
def test_the_stable_names_are_those_of_the_packages(package: ModuleType) -> None:
    text = (ROOT / "docs" / "stability.md").read_text()
    (row,) = re.findall(rf"^\| `{package.__name__}` \| (.+) \|$", text, re.MULTILINE)
    assert row == ", ".join(f"`{name}`" for name in sorted(package.__all__))


def test_links_between_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    links = [
        (document, target) for document in documents for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    ]
    assert links
    missing = [(document.name, target) for document, target in links if not (document.parent / target).exists()]
    assert not missing
