"""A run as tables for the terminal and as Markdown, and its place in a document."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.load.case import Case
from bench.report.report_table import WIDTH
from bench.report.tables import BEGIN, END, fill, markdown, summary, terminal
from bench.run.scenarios import QUICK, SCENARIOS
from tests.bench.rows import CASE, rounds, row, run_of


def test_a_table_has_medians_and_ratios_with_their_interval() -> None:
    run = run_of(rounds("direct", [80.0, 90.0, 70.0]), rounds("bare", [100.0, 100.0, 100.0]))
    text = markdown(run)
    assert "| get 64 B, 64 in flight | direct | 0.80 (0.70 .. 0.90) | 80 |" in text
    assert "| bare |" not in text
    lines = [line.split() for line in terminal(run).splitlines()]
    at = lines.index(["get", "64", "B,", "64", "in", "flight"])
    assert lines[at + 1 : at + 3] == [["bare", "100"], ["direct", "0.80", "(0.70", "..", "0.90)", "80"]]


def test_bars_are_listed_with_their_verdict_and_the_rest_as_not_measured() -> None:
    where = {"scenario": "growth", "case": "memory, 1,000,000 keys"}
    run = run_of(rounds("direct", [331.0], "bytes_a_key", **where))
    assert "| memory, 1,000,000 keys: bytes a key | 331 | <= 330 | missed |" in markdown(run)
    absent = sum(len(scenario.bars) for scenario in SCENARIOS.values() if not scenario.is_optional) - 1
    assert f"Bars that this run did not measure: {absent}.\n" in markdown(run)
    assert markdown(run).count("\n- ") >= absent
    said = " ".join(terminal(run).split())
    assert "bars: 1 missed missed: memory, 1,000,000 keys: bytes a key: found 331, allowed <= 330 " in said
    assert f"not measured: {absent} bars; all or parts of functions, in-flight, " in said
    assert said.endswith(" listening")


def test_markdown_has_each_case_once_and_no_minor_figures() -> None:
    names = [name for name, scenario in SCENARIOS.items() if Case() in scenario.cases and not scenario.subjects]
    assert len(names) > 2
    run = run_of(*(rounds("direct", [7.0], scenario=name) for name in names), rounds("direct", [3.0], "peak_bytes"))
    text = markdown(run)
    assert text.count(f"| {CASE} | direct |") == 1
    assert "### functions\n" in text
    assert "peak" not in text
    assert terminal(run).count(CASE) == len(names)


def test_tables_fit_a_terminal() -> None:
    names = [(name, case) for name, scenario in SCENARIOS.items() for case in scenario.cases]
    figures = dict.fromkeys(("calls_per_s", "provider_cpu_us", "keys_per_s", "p50_us", "p99_us", "peak_bytes"), 1e8)
    rows = [
        row(subject, number, name, case.label, **{figure: value + number for figure, value in figures.items()})
        for name, case in names
        for subject in ("bare", "direct", "direct-expiring", "plain")
        for number in range(3)
    ]
    lines = terminal(run_of(rows)).splitlines()
    assert [line for line in lines if len(line) > WIDTH] == []
    assert len(lines) > len(rows) / 3


def test_the_summary_of_a_quick_run_has_about_ten_lines() -> None:
    rows = [row(subject, 0, case=case.label, calls_per_s=5e6) for case in QUICK for subject in ("bare", "direct")]
    lines = summary(run_of(rows)).splitlines()
    assert len(lines) <= 12
    assert lines[1].split() == ["case", "limit/s", "direct/s", "over", "limit", "CPU", "us", "p50", "us"]
    assert "1.00" in lines[2]
    assert "bars: none measured" in lines
    assert any(line.startswith("not measured: ") for line in lines[-3:])


def test_the_summary_shows_a_peer_and_fits_a_terminal() -> None:
    names = ("bare", "direct", "keyvalue-redis")
    rows = [
        row(name, number, case=case.label, calls_per_s=5e6, provider_cpu_us=1e3)
        for case in QUICK
        for name in names
        for number in range(2)
    ]
    run = run_of(rows)
    run = replace(run, about={**run.about, "settings": {**run.about["settings"], "subjects": dict.fromkeys(names)}})
    lines = summary(run).splitlines()
    assert "keyvalue-redis/s" in lines[1]
    assert max(map(len, lines)) <= WIDTH


def test_a_report_names_the_machine_and_says_if_the_run_is_void() -> None:
    text = markdown(run_of(rounds("bare", [1.0])))
    parts = ("commit 0123456789ab,", "A processor", "nats-server v2.12.0", "load average 0.10", "redis: /opt/redis")
    assert [part for part in parts if part not in text] == []
    assert "void" not in text
    run = run_of(rounds("bare", [1.0]), void=("the machine was busy",))
    assert "**This run is void: the machine was busy.**" in markdown(run)
    for lines in (terminal(run), summary(run)):
        assert lines.endswith("\nThis run is void: the machine was busy")
    slow = run_of(rounds("bare", [4.0] * 3, "provider_cpu_us", scenario="bare"))
    for lines in (markdown(slow), terminal(slow), summary(slow)):
        assert "Bars without a ratio are not judged: the bare responder took 4.00 us" in lines


def test_a_document_is_filled_only_between_its_marks() -> None:
    document = f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    once = fill(document, "| new |\n")
    assert once == f"# Title\n\n{BEGIN}\n| new |\n{END}\n\nafter\n"
    assert fill(once, "| new |\n") == once


@pytest.mark.parametrize("document", ["", BEGIN, END, END + BEGIN, BEGIN + BEGIN + END, BEGIN + END + END])
def test_a_document_without_marks_is_unchanged(document: str) -> None:
    with pytest.raises(ValueError, match="the document has no place for the run: expected <!-- run: begin -->"):
        fill(document, "text")
