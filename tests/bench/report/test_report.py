"""What is said of measurements: spreads, ratios, bars, changes, tables. No process and no load."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from bench.endtoend import parser, plan_of
from bench.load.latency import Latencies
from bench.report.bars import BARS, standings
from bench.report.commands import compare_main, main
from bench.report.comparison import changes, compared, share
from bench.report.figures import FIGURES, Spread, case_ratios, grouped, ratios, spread
from bench.report.markdown import BEGIN, END, fill, markdown
from bench.report.plots import plot
from bench.report.run_file import Run
from bench.run.experiments import EXPERIMENTS, GROWTH_LOADS
from bench.run.plan import faults
from bench.run.rows import REFERENCE, Row
from bench.run.scenarios import CASES, QUICK_CASES, SCENARIOS, Case
from bench.run.subjects import BARE, DIRECT, EXPIRING, PLAIN, STUCK, VARIANTS, WATCHED, peer
from tests.conftest import options_of

ABOUT: dict[str, Any] = {
    "when": "2026-01-31T12:00:00+00:00",
    "commit": {"id": "0123456789abcdef", "changed": False},
    "versions": {"python": "CPython 3.11.0", "nats-server": "v2.12.0"},
    "machine": {
        "processor": "A processor",
        "architecture": "x86_64",
        "cores": 2,
        "memory_bytes": 8 * 2**30,
        "system": "Linux 6",
    },
    "settings": {"rounds": 3, "seconds": 1.0, "subjects": {"bare": {}, "direct": {}}},
    "load_average_before": "0.10 0.10 0.10",
    "load_average_after": "1.00 0.50 0.20",
    "minutes": 1.5,
}
CASE = "get 64 B, 64 in flight"


def row(subject: str, number: int, scenario: str = "functions", case: str = CASE, **figures: float) -> Row:
    return Row(scenario=scenario, case=case, fields={"function": "get"}, subject=subject, round=number, figures=figures)


def rounds(subject: str, values: Iterable[float], figure: str = "calls_per_s", **where: str) -> list[Row]:
    """Rows of one figure, one a round."""
    return [row(subject, number, **where, **{figure: value}) for number, value in enumerate(values)]  # type: ignore[arg-type]


def run_of(*rows: list[Row], void: tuple[str, ...] = ()) -> Run:
    return Run(ABOUT, [one for several in rows for one in several], list(void))


# Figures.


def test_a_spread_is_median_and_extremes() -> None:
    assert spread([5.0, 1.0, 2.0, 9.0]) == Spread(3.5, 1.0, 9.0)


def test_a_spread_is_written_in_the_unit_of_its_figure() -> None:
    assert Spread(2**20 * 1.5, 2.0**20, 2.0**21).text(1, 1 / 2**20) == "1.5 (1.0 .. 2.0)"


def test_ratios_are_of_one_round() -> None:
    rows = rounds("bare", [100.0, 200.0, 400.0]) + rounds("direct", [80.0, 180.0, 320.0])
    assert ratios(rows, "direct", "calls_per_s") == [0.8, 0.9, 0.8]


def test_rounds_without_the_reference_have_no_ratio() -> None:
    rows = rounds("bare", [100.0]) + rounds("direct", [80.0, 180.0]) + rounds("bare", [7.0], case="another")
    assert ratios(rows, "direct", "calls_per_s") == [0.8]
    assert ratios(rows, "direct", "p50_us") == []


def test_ratios_to_another_reference() -> None:
    rows = rounds("direct-unmetered", [4.0], "provider_cpu_us") + rounds("direct", [5.0], "provider_cpu_us")
    assert ratios(rows, "direct", "provider_cpu_us", "direct-unmetered") == [1.25]


def test_ratios_of_two_cases_are_of_one_subject_and_round() -> None:
    rows = rounds("direct", [10.0, 20.0], case="one") + rounds("direct", [90.0, 200.0, 7.0], case="many")
    rows += rounds("bare", [1.0, 1.0], case="one") + rounds("direct", [5.0], case="one", scenario="another")
    assert case_ratios(rows, "direct", "calls_per_s", "many", "one") == [9.0, 10.0]
    assert case_ratios(rows, "bare", "calls_per_s", "many", "one") == []
    assert case_ratios(rows, "direct", "p50_us", "many", "one") == []


def test_groups_keep_the_order_of_first_appearance() -> None:
    rows = [row("b", 0), row("a", 0), row("b", 1)]
    assert [(name, len(own)) for name, own in grouped(rows, lambda row: row.subject)] == [("b", 2), ("a", 1)]


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = run_of(rounds("bare", [1.0]), rounds("direct", [2.0]), void=("busy",))
    run.save(tmp_path / "deep" / "run.json")
    assert Run.load(tmp_path / "deep" / "run.json") == run


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "about": {}, "rows": [{}], "void": []}']
)
def test_what_is_no_run_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.json: no run of this benchmark"):
        Run.load(path)


def test_histograms_of_rounds_are_merged() -> None:
    first, second = Latencies([1_000] * 99), Latencies([1_000_000])
    merged = Latencies.merged([first.encoded(), second.encoded()])
    assert len(merged) == 100
    assert merged.percentiles_us([50, 99, 100]) == pytest.approx([1, 1, 1_000], rel=0.001)


def test_latencies_beyond_the_histogram_are_counted_at_its_ends() -> None:
    latencies = Latencies([0, 10**15])
    assert len(latencies) == 2
    assert latencies.percentiles_us([100]) == pytest.approx([6e8], rel=0.001)


# Bars.


def test_every_bar_names_a_case_that_is_measured() -> None:
    labels = {(name, case.label) for name, cases in CASES.items() for case in cases}
    for function, in_flight in GROWTH_LOADS:
        labels |= {("growth", Case(function=function, in_flight=in_flight, keys=10**power).label) for power in (3, 6)}
    wide = set(EXPERIMENTS)
    assert {bar.scenario for bar in BARS} <= set(SCENARIOS)
    assert [bar for bar in BARS if bar.scenario not in wide and (bar.scenario, bar.case) not in labels] == []
    cases = {(bar.scenario, case) for bar in BARS if bar.reference_case for case in (bar.case, bar.reference_case)}
    assert cases <= labels
    assert {bar.figure for bar in BARS} <= set(FIGURES)
    names = {subject.name for subject in (BARE, DIRECT, PLAIN, *VARIANTS)}
    assert {bar.subject for bar in BARS} | {bar.reference for bar in BARS} <= names


@pytest.mark.parametrize(
    ("direct", "is_kept", "text"),
    [([80.0, 75.0, 60.0], True, "0.75 (0.60 .. 0.80)x"), ([80.0, 74.0, 60.0], False, "0.74 (0.60 .. 0.80)x")],
)
def test_the_median_ratio_is_held_against_a_bar(direct: list[float], is_kept: bool, text: str) -> None:
    where = {"scenario": "headers", "case": CASE}
    rows = rounds("bare", [100.0] * 3, **where) + rounds("direct", direct, **where)
    (standing,) = (found for found in standings(rows) if found.bar.figure == "calls_per_s" and found.found)
    assert standing.is_kept is is_kept
    assert standing.texts == (text, "at least 0.75x")


@pytest.mark.parametrize(("many", "is_kept"), [([950.0, 1000.0, 1020.0], True), ([950.0, 990.0, 1020.0], False)])
def test_a_bar_may_be_over_another_case(many: list[float], is_kept: bool) -> None:
    rows = rounds("direct", [100.0] * 3, "keys_per_s", scenario="batch", case=CASE)
    rows += rounds("direct", many, "keys_per_s", scenario="batch", case="get-many of 100 x 64 B, 64 in flight")
    rows += rounds("plain", [1.0] * 3, "keys_per_s", scenario="batch", case="get-many of 100 x 64 B, 64 in flight")
    (standing,) = (found for found in standings(rows) if found.found)
    assert standing.is_kept is is_kept
    assert standing.texts == (f"{many[1] / 100:.2f} (9.50 .. 10.20)x", "at least 10.00x")


@pytest.mark.parametrize(("stuck", "is_kept"), [(98.0, True), (97.0, False)])
def test_a_bar_may_be_over_another_subject(stuck: float, is_kept: bool) -> None:
    where = {"scenario": "watch", "case": "set 64 B, 64 in flight"}
    rows = rounds("direct", [100.0] * 3, **where) + rounds("direct-stuck", [90.0, stuck, 110.0], **where)
    (standing,) = (found for found in standings(rows) if found.found)
    assert standing.is_kept is is_kept


@pytest.mark.parametrize(("worst", "is_kept"), [(64.0, True), (65.0, False)])
def test_the_worst_round_counts_where_a_bar_says_so(worst: float, is_kept: bool) -> None:
    values = [2**20, worst * 2**20, 2**20]
    where = {"scenario": "memory", "case": "get 1 MiB, 2000 in flight, 64 keys"}
    (standing,) = (found for found in standings(rounds("direct", values, "above_store_bytes", **where)) if found.found)
    assert standing.is_kept is is_kept
    assert standing.texts[1] == "at most 64"


def test_a_bar_that_was_not_measured_is_neither_kept_nor_missed() -> None:
    found = list(standings([]))
    assert len(found) == len(BARS)
    assert {standing.is_kept for standing in found} == {None}
    assert found[0].texts[0] == "not measured"


# Changes.


@pytest.mark.parametrize(
    ("old", "new", "figure", "worse"),
    [
        ([100, 101, 102], [80, 81, 82], "calls_per_s", True),
        ([100, 101, 102], [95, 96, 97], "calls_per_s", False),  # within the threshold
        ([100, 101, 102], [120, 121, 122], "calls_per_s", False),  # better
        ([100, 101, 102], [120, 121, 122], "p50_us", True),
        ([100, 101, 102], [80, 81, 82], "p50_us", False),
        ([70, 100, 130], [75, 85, 95], "calls_per_s", False),  # within the spread of then
        ([99, 100, 101], [70, 85, 110], "calls_per_s", False),  # within the spread of now
        ([100, 101, 102], [200, 200, 200], "max_us", False),  # a figure that is not judged
    ],
)
def test_changes_are_beyond_threshold_and_spread(old: list[float], new: list[float], figure: str, worse: bool) -> None:
    found = changes(compared(run_of(rounds("direct", old, figure)), run_of(rounds("direct", new, figure))), 0.1)
    assert [(change.case, change.subject, change.figure) for change in found] == [(CASE, "direct", figure)] * worse


def test_ratios_are_compared_where_both_runs_have_the_reference() -> None:
    old = run_of(rounds("bare", [100.0, 100.0]), rounds("direct", [80.0, 82.0]))
    slow_machine = run_of(rounds("bare", [50.0, 50.0]), rounds("direct", [40.0, 41.0]))
    slow_code = run_of(rounds("bare", [200.0, 200.0]), rounds("direct", [100.0, 102.0]))
    assert changes(compared(old, slow_machine), 0.1) == []
    (change,) = changes(compared(old, slow_code), 0.1)
    assert change.text == (
        "functions: get 64 B, 64 in flight: direct: calls/s of bare: 60% worse: 0.81 (0.80 .. 0.82) -> 0.51 (0.50 .. 0.51)"
    )


def test_the_reference_is_never_slower() -> None:
    assert changes(compared(run_of(rounds("bare", [100.0])), run_of(rounds("bare", [10.0]))), 0.1) == []


def test_cases_and_subjects_of_one_run_alone_are_not_compared() -> None:
    old = run_of(rounds("direct", [100.0]), rounds("plain", [100.0]))
    new = run_of(rounds("direct", [1.0], case="another"), rounds("redis", [1.0]))
    assert changes(compared(old, new), 0.1) == []


@pytest.mark.parametrize(("text", "value"), [("10%", 0.1), ("0.25", 0.25), ("0", 0.0)])
def test_a_share_is_read(text: str, value: float) -> None:
    assert share(text) == value


@pytest.mark.parametrize("text", ["-1%", "1000%", "much"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"found -1%|found 1000%|could not convert"):
        share(text)


# Tables.


def test_the_table_has_medians_and_ratios_with_their_spread() -> None:
    text = markdown(run_of(rounds("direct", [80.0, 90.0, 70.0]), rounds("bare", [100.0, 100.0, 100.0])))
    assert "| get 64 B, 64 in flight | bare |  |  | 100 |" in text
    assert "| get 64 B, 64 in flight | direct | 0.80 (0.70 .. 0.90) |  | 80 |" in text
    assert text.index("| bare |") < text.index("| direct |")


def test_only_bars_that_were_measured_are_listed() -> None:
    where = {"scenario": "growth", "case": "memory, 1,000,000 keys"}
    text = markdown(run_of(rounds("direct", [331.0], "bytes_a_key", **where)))
    assert "| 1,000,000 keys: bytes a key | 331 | at most 330 | **missed** |" in text
    assert f"{len(BARS) - 1} of {len(BARS)} bars were not measured in this run:\n\n- get of 64 B, a host's" in text
    assert text.count("\n- ") >= len(BARS) - 1


def test_tables_without_the_reference_have_no_ratios() -> None:
    text = markdown(run_of(rounds("direct", [2.0**20], "above_store_bytes", scenario="memory", case="a case")))
    assert "| case | subject | above the store MiB |\n|---|---|---:|\n| a case | direct | 1 |" in text


def test_a_report_says_on_what_it_was_made() -> None:
    text = markdown(run_of(rounds("bare", [1.0])))
    for part in (
        "`0123456789ab`",
        "A processor (x86_64), 2 cores, 8 GiB, Linux 6",
        "nats-server v2.12.0",
        "load average 0.10",
    ):
        assert part in text
    assert "void" not in text


def test_a_void_run_says_so() -> None:
    text = markdown(run_of(rounds("bare", [1.0]), void=("the machine was busy",)))
    assert "**This run is void: the machine was busy.**" in text


def test_a_run_is_void_where_the_bare_responder_is_dear() -> None:
    where = {"scenario": REFERENCE}
    assert faults(rounds("bare", [2.0, 2.2, 9.0], "provider_cpu_us", **where)) == []
    (fault,) = faults(rounds("bare", [2.0, 2.3, 9.0], "provider_cpu_us", **where))
    assert fault.startswith("the bare responder took 2.30 us of CPU a call (get 64 B, 64 in flight), allowed 2.2")
    assert fault.endswith("the machine is busy with something else, or its interpreter is slow: docs/performance.md")
    assert faults(rounds("bare", [9.0], "provider_cpu_us")) == []  # of another scenario


def test_a_document_is_filled_between_its_marks_alone() -> None:
    document = f"# Title\n\n{BEGIN}\nold\n{END}\n\nbehind\n"
    once = fill(document, "| new |\n")
    assert once == f"# Title\n\n{BEGIN}\n| new |\n{END}\n\nbehind\n"
    assert fill(once, "| new |\n") == once


@pytest.mark.parametrize("document", ["", BEGIN, END, END + BEGIN, BEGIN + BEGIN + END, BEGIN + END + END])
def test_a_document_without_its_marks_is_left_alone(document: str) -> None:
    with pytest.raises(ValueError, match="found no place for the run, expected <!-- run: begin -->"):
        fill(document, "text")


# Commands.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    run_of(rounds("bare", [100.0] * 3), rounds("direct", [80.0, 81.0, 82.0])).save(path)
    return path


def test_report_prints_a_run(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(saved)]) == 0
    assert "### functions" in capsys.readouterr().out


def test_report_takes_the_newest_run(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.report.commands.RESULTS", tmp_path / "results")
    assert main([]) == 2
    assert "found no run in" in capsys.readouterr().err
    for name, written_s in (("2026-02", 2), ("before", 1)):
        folder = tmp_path / "results" / name
        Run(ABOUT | {"when": name}, rounds("bare", [1.0])).save(folder / "run.json")
        os.utime(folder / "run.json", (written_s, written_s))
    assert main([]) == 0
    assert "- 2026-02, 1.5 minutes" in capsys.readouterr().out


def test_report_fills_a_document(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\n{END}\nbehind\n")
    assert main([str(saved), "--markdown", str(document), "--force"]) == 0
    assert document.read_text().startswith(f"before\n{BEGIN}\n- 2026-01-31")
    assert document.read_text().endswith(f"{END}\nbehind\n")
    assert "holds the run of 2026-01-31" in capsys.readouterr().out


def test_report_says_what_is_wrong_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing.json")]) == 2
    assert "missing.json" in capsys.readouterr().err


def test_compare_exits_with_1_where_something_got_slower(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = tmp_path / "slower.json"
    run_of(rounds("bare", [100.0] * 3), rounds("direct", [60.0, 61.0, 62.0])).save(slower)
    assert compare_main([str(saved), str(slower)]) == 1
    assert "direct: calls/s of bare: 33% worse" in capsys.readouterr().out
    assert compare_main([str(saved), str(slower), "--threshold", "50%"]) == 0
    assert "nothing got slower by more than 50%" in capsys.readouterr().out
    assert compare_main([str(slower), str(saved)]) == 0


def test_compare_says_that_machines_differ_and_that_runs_are_void(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    machine = ABOUT["machine"] | {"processor": "Another"}
    Run(ABOUT | {"machine": machine}, rounds("direct", [80.0]), ["busy"]).save(other)
    assert compare_main([str(saved), str(other)]) == 0
    said = capsys.readouterr().out
    assert "the machines differ" in said
    assert "the new run is void: busy" in said


def test_plots_are_drawn_of_what_is_there(tmp_path: Path) -> None:
    latencies = Latencies(range(1_000, 100_000, 1_000)).encoded()
    rows = [
        Row(
            scenario=scenario,
            case=f"{scenario} {size}",
            fields={"function": "get", "in_flight": size, "value_bytes": 64 * size, "keys": 10 * size},
            subject=subject,
            round=number,
            figures={"calls_per_s": 1e5 / size, "provider_cpu_us": 2.0 * size},
            latencies=latencies,
        )
        for scenario in ("in-flight", "growth", "values", "fixed-rate")
        for size in (1, 64)
        for subject in ("bare", "direct")
        for number in range(2)
    ]
    drawn = plot(Run(ABOUT, rows), tmp_path / "plots")
    assert [path.name for path in drawn] == ["throughput.png", "latency.png", "keys.png", "values.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert plot(Run(ABOUT, rounds("direct", [1.0])), tmp_path / "none") == []


# Plans.


def test_a_plan_without_options_measures_everything_five_times() -> None:
    plan = plan_of(parser().parse_args([]))
    assert list(plan.scenarios) == list(SCENARIOS)
    assert [subject.name for subject in plan.subjects] == ["bare", "direct", "plain"]
    assert (plan.extent.rounds, plan.extent.growth_keys) == (5, [10**3, 10**4, 10**5, 10**6])
    assert plan.cases()[0][0] == REFERENCE
    assert len(plan.cases()) == 1 + sum(map(len, CASES.values()))


def test_a_quick_plan_measures_less() -> None:
    plan = plan_of(parser().parse_args(["--quick"]))
    loads = plan.extent.rounds * len(plan.cases()) * len(plan.subjects)
    assert loads * plan.extent.seconds < 40
    assert {name for name, _ in plan.cases()} == {REFERENCE, *(name for name, cases in QUICK_CASES.items() if cases)}


def test_experiments_measure_variants_beside_what_they_vary() -> None:
    everything = plan_of(parser().parse_args([]))
    plain = plan_of(parser().parse_args(["--subject", "plain"]))
    assert everything.subjects_of(EXPERIMENTS["watch"]) == [DIRECT, WATCHED, STUCK]
    assert everything.subjects_of(EXPERIMENTS["memory"]) == [DIRECT, PLAIN]
    assert plain.subjects_of(EXPERIMENTS["watch"]) == plain.subjects_of(EXPERIMENTS["expiry"]) == []
    assert plain.subjects_of(EXPERIMENTS["memory"]) == [PLAIN]


def test_subjects_set_options_that_there_are() -> None:
    """A provider passes over a name that it does not know, and then nothing would be measured."""
    for subject in (DIRECT, PLAIN, *VARIANTS):
        assert options_of(subject.config).ttl_ms == (3_600_000 if subject is EXPIRING else None)


def test_every_scenario_is_taught() -> None:
    assert set(SCENARIOS) == {*CASES, *EXPERIMENTS}
    text = parser().format_help()
    assert [name for name in SCENARIOS if f"\n  {name} " not in text] == []


def test_options_choose_scenarios_subjects_and_peers() -> None:
    arguments = [
        "--scenario",
        "idle",
        "--subject",
        "direct",
        "--peer",
        "redis=/opt/redis -v",
        "--rounds",
        "7",
        "--large",
    ]
    plan = plan_of(parser().parse_args(arguments))
    assert list(plan.scenarios) == ["idle"]
    assert [subject.name for subject in plan.subjects] == ["bare", "direct", "redis"]
    assert plan.subjects[2].command == ("/opt/redis", "-v")
    assert (plan.extent.rounds, plan.extent.growth_keys[-1]) == (7, 10**7)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--rounds", "-1"], "found -1, 1.0, allowed from 1"),
        (["--rounds", "0"], "found 0, 1.0, allowed from 1"),
        (["--seconds", "0.01"], "found 5, 0.01, allowed from 1, from 0.05"),
        (["--seconds", "0"], "found 5, 0.0, allowed from 1, from 0.05"),
        (["--subject", "fast"], "--subject: found fast, allowed direct, plain"),
        (["--peer", "a=x", "--peer", "a=y"], "found a name twice"),
    ],
)
def test_plans_that_do_not_fit_are_refused(arguments: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        plan_of(parser().parse_args(arguments))


@pytest.mark.parametrize(
    "text", ["", "name", "name=", "=command", "a b=command", "bare=command", "direct=command", "direct-stuck=command"]
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--peer: found"):
        peer(text)
