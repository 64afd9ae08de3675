"""A run as Markdown, and its place in a document."""

from __future__ import annotations

import pytest

from bench.report.bars import BARS
from bench.report.markdown import BEGIN, END, fill, markdown
from tests.bench.rows import rounds, run_of


def test_the_table_has_medians_and_ratios_with_their_spread() -> None:
    text = markdown(run_of(rounds("direct", [80.0, 90.0, 70.0]), rounds("bare", [100.0, 100.0, 100.0])))
    assert "| get 64 B, 64 in flight | bare |  |  | 100 |" in text
    assert "| get 64 B, 64 in flight | direct | 0.80 (0.70 .. 0.90) |  | 80 |" in text
    assert text.index("| bare |") < text.index("| direct |")


def test_only_bars_that_were_measured_are_listed() -> None:
    where = {"scenario": "growth", "case": "memory, 1,000,000 keys"}
    text = markdown(run_of(rounds("direct", [331.0], "bytes_a_key", **where)))
    assert "| 1,000,000 keys: bytes per key | 331 | at most 330 | **missed** |" in text
    assert f"Bars that this run did not measure: {len(BARS) - 1} of {len(BARS)}.\n\n- get of 64 B, a host's" in text
    assert text.count("\n- ") >= len(BARS) - 1


def test_tables_without_the_reference_have_no_ratios() -> None:
    text = markdown(run_of(rounds("direct", [2.0**20], "above_store_bytes", scenario="memory", case="a case")))
    assert "| case | subject | above the store MiB |\n|---|---|---:|\n| a case | direct | 1 |" in text


def test_a_report_names_the_machine_and_says_if_the_run_is_void() -> None:
    text = markdown(run_of(rounds("bare", [1.0])))
    machine = "A processor (x86_64), 2 cores, 8 GiB, Linux 6"
    parts = ("`0123456789ab`", machine, "nats-server v2.12.0", "load average 0.10")
    assert [part for part in parts if part not in text] == []
    assert "void" not in text
    text = markdown(run_of(rounds("bare", [1.0]), void=("the machine was busy",)))
    assert "**This run is void: the machine was busy.**" in text


def test_a_document_is_filled_only_between_its_marks() -> None:
    document = f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    once = fill(document, "| new |\n")
    assert once == f"# Title\n\n{BEGIN}\n| new |\n{END}\n\nafter\n"
    assert fill(once, "| new |\n") == once


@pytest.mark.parametrize("document", ["", BEGIN, END, END + BEGIN, BEGIN + BEGIN + END, BEGIN + END + END])
def test_a_document_without_marks_is_unchanged(document: str) -> None:
    with pytest.raises(ValueError, match="the document has no place for the run: expected <!-- run: begin -->"):
        fill(document, "text")
