"""The documents agree with the code: the tables of options and metrics, and links between documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client.metrics_core import Metric

import keyvalue_engine
import keyvalue_transport
from keyvalue_engine import Store
from keyvalue_provider.config.declaration import Option, OptionTable
from keyvalue_provider.config.options import LINK_OPTIONS, OPTIONS, STANDALONE_OPTIONS, WATCHING_LINK_OPTIONS
from keyvalue_transport.keyvalue.outcomes import OUTCOMES
from tests.provider.observe.test_exports import metrics_of_exports
from tests.provider.observe.test_metrics import FUNCTIONS, Pieces
from tests.provider.observe.test_redis_metrics import metrics_of_a_listener
from tests.provider.observe.test_replica_metrics import metrics_of_a_new_replica
from tests.provider.observe.test_snapshot_metrics import metrics_of_new_snapshots

ROOT = Path(__file__).parent.parent


def provider_row(option: Option) -> str:
    change = "at once" if option.is_live else "at restart"
    return f"| `{option.name}` | {option.shown(option.default)} | {change} | {option.help} |"


def link_row(option: Option) -> str:
    return f"| `{option.name}` | as the provider | {option.help} |"


def row(option: Option) -> str:
    return f"| `{option.name}` | {option.shown(option.default)} | {option.help} |"


@pytest.mark.parametrize(
    ("head", "options", "row_of"),
    [
        ("| option | default | a change takes effect | what |", OPTIONS, provider_row),
        ("| option of a link | default | what |", LINK_OPTIONS, link_row),
        ("| option of serve | default | what |", STANDALONE_OPTIONS, row),
        ("| option of a watching link | default | what |", WATCHING_LINK_OPTIONS, row),
    ],
)
def test_the_tables_of_options_are_the_declarations(
    head: str, options: OptionTable, row_of: Callable[[Option], str]
) -> None:
    lines = [head, "|---" * (head.count("|") - 1) + "|", *map(row_of, options.values())]
    text = (ROOT / "docs" / "operating.md").read_text()
    found = text[text.index(f"\n{head}\n") + 1 :].partition("\n\n")[0]
    assert found.splitlines() == lines, "the table in docs/operating.md must be\n\n" + "\n".join(lines)


def rows_of_metrics() -> list[tuple[str, str, str, str]]:
    """Return name, type, labels and meaning of each metric that the provider exposes."""
    suffixes = {"counter": "_total", "info": "_info"}
    rows = []
    for family in Pieces.of(Store()).registry().collect():
        name = family.name + suffixes.get(family.type, "")
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        rows.append((name, family.type, ", ".join(labels), family.documentation.removesuffix(".")))
    return rows


@pytest.mark.parametrize(
    "families",
    [metrics_of_a_new_replica, metrics_of_new_snapshots, metrics_of_a_listener, metrics_of_exports],
)
def test_the_tables_of_optional_metrics_are_the_code(families: Callable[[], Iterable[Metric]]) -> None:
    suffixes = {"counter": "_total"}
    rows = [
        f"| {family.name}{suffixes.get(family.type, '')} | {family.type} | {family.documentation.removesuffix('.')} |"
        for family in families()
    ]
    text = (ROOT / "docs" / "observing.md").read_text()
    assert "\n".join(["| metric | type | meaning |", "|---|---|---|", *rows]) in text, "\n".join(rows)


def test_the_table_of_metrics_is_the_code() -> None:
    _, _, section = (ROOT / "docs" / "observing.md").read_text().partition("\n## Metrics\n")
    section = section.partition("\n## ")[0]
    found = re.findall(r"^\| (\w+) \| (\w+) \| ?(.*?) \| (.+) \|$", section, re.MULTILINE)[1:]  # without the head
    expected = rows_of_metrics()
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    own, expected_own = ([row for row in rows if row[0].startswith("wrpc_")] for rows in (found, expected))
    assert own == expected_own  # prometheus-client defines the meaning of the process metrics
    assert f"`operation` is one of {', '.join(FUNCTIONS)}." in section
    assert f"`result` is one of {', '.join(OUTCOMES)}:" in section


@pytest.mark.parametrize("package", [keyvalue_engine, keyvalue_transport], ids=lambda package: package.__name__)
def test_the_stable_names_are_those_of_the_packages(package: ModuleType) -> None:
    text = (ROOT / "docs" / "stability.md").read_text()
    (row,) = re.findall(rf"^\| `{package.__name__}` \| (.+) \|$", text, re.MULTILINE)
    assert row == ", ".join(f"`{name}`" for name in sorted(package.__all__))


def test_links_between_documents_have_targets() -> None:
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    links = [
        (document, target) for document in documents for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    ]
    assert links
    missing = [(document.name, target) for document, target in links if not (document.parent / target).exists()]
    assert not missing
