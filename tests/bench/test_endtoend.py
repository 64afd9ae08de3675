"""The command `endtoend`: failures that do not end the run, runs that end early, and the exit status."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.endtoend import is_in_all, main, parser, plan_of
from bench.load.outcome import LoadError
from bench.run import ROOT
from bench.run.results import REFERENCE, Row, Run
from bench.run.scenarios import QUICK, SCENARIOS
from tests.bench.rows import rounds, row, saved

#: The path contains a space, as a path may.
PEER = f"{shlex.quote(sys.executable)} -m tests.bench.peer"


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which the command replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets the measured rows, and an error to raise after them."""

    def let(*rows: Row, error: BaseException | None = None) -> None:
        def measure(*_: object) -> Iterator[Row]:
            yield from rows
            if error is not None:
                raise error

        monkeypatch.setattr("bench.endtoend.measure", measure)

    return let


def test_a_peer_that_fails_loses_only_its_own_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rounds", "2", "--seconds", "0.05", "--scenario", "increment", "--subject", "direct"]
    for name, command in {"absent": "/bin/false", "dying": f"{PEER} dying", "setting": f"{PEER} setting"}.items():
        arguments += ["--peer", f"{name}={command}"]
    assert main([*arguments, "--output", str(tmp_path)]) == 1
    run = Run.load(tmp_path / "run.json")
    sets, increments = "set 64 B, 64 in flight", "increment, 64 in flight"
    found = {(one.subject, one.case, one.round) for one in run.rows if one.scenario == "increment"}
    whole = {(name, case) for name in (REFERENCE, "direct") for case in (sets, increments)}
    assert found == {(*which, number) for which in {*whole, ("setting", sets)} for number in (0, 1)}
    said = capsys.readouterr()
    failed = [
        rf"absent: {sets}, round 1: absent-\d: the process ended with exit status 1; all its cases are skipped",
        rf"dying: {sets}, round 1: dying-\d: .*; its process ended with exit status 7; last output: out of memory; "
        "all its cases are skipped",
        rf"setting: {increments}, round 1: nobody serves increment at default\.setting-\d",
    ]
    for text in failed:
        assert re.search(f"^bench: {text}$", said.err, re.MULTILINE)
        assert text.split(":")[0] in said.out
    gone = [(one["subject"], one["is_gone"]) for one in run.about["failed"]]
    assert gone == [("absent", True), ("dying", True), ("setting", False)]


# Runs that end early.


@pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (SystemExit(143), 143, "stopped"),
        (
            LoadError("kv-1: the process ended; last output:\na\nb"),
            1,
            "a scenario failed: kv-1: the process ended; last output: b",
        ),
    ],
    ids=["Ctrl-C", "SIGTERM", "failure"],
)
def test_the_rows_measured_before_the_end_are_written_as_a_void_run(
    measured: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    why: str,
) -> None:
    measured(error=error)
    assert main(["--output", str(tmp_path / "run")]) == status
    assert list(tmp_path.iterdir()) == []  # nothing was measured
    rows = rounds("bare", [100.0, 90.0])
    measured(*rows, error=error)
    assert main(["--output", str(tmp_path / "run")]) == status
    run = Run.load(tmp_path / "run" / "run.json")
    assert (run.rows, run.void) == (rows, [why])
    assert f"This run is void: {why}" in " ".join(capsys.readouterr().out.split())
    assert f"**This run is void: {why}.**" in (tmp_path / "run" / "report.md").read_text()


def test_ctrl_c_ends_processes_and_keeps_the_measured_rows(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "bench", "endtoend", "--quick", "--scenario", "functions", "--output", tmp_path)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as popen:
        assert popen.stderr is not None
        assert popen.stderr.readline().startswith("round 1/5")
        popen.send_signal(signal.SIGINT)
        found, said = popen.communicate()
    assert popen.returncode == 130
    assert "This run is void: stopped" in found
    assert "Traceback" not in said
    assert Run.load(tmp_path / "run.json").void[0] == "stopped"


# Options.


def test_a_folder_that_cannot_be_made_is_refused_before_the_measurement(
    measured: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(error=AssertionError("measured"))
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/nope")):
        with pytest.raises(SystemExit, match="2"):
            main(["--output", str(folder)])
        assert str(folder) in capsys.readouterr().err


@pytest.mark.parametrize(("bytes_a_key", "status"), [(330.0, 0), (331.0, 1)])
def test_a_missed_bar_fails_only_a_strict_run(
    measured: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], bytes_a_key: float, status: int
) -> None:
    measured(row("direct", 0, "growth", "memory, 1,000,000 keys", bytes_a_key=bytes_a_key))
    assert main(["--output", str(tmp_path)]) == 0
    assert main(["--output", str(tmp_path), "--strict"]) == status
    text = "bench: bar missed: growth: memory, 1,000,000 keys: bytes a key: found 331, allowed <= 330\n"
    assert (text in capsys.readouterr().err) == bool(status)


def test_a_run_that_has_nothing_in_common_with_the_old_one_says_so(
    measured: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(*rounds("direct", [1.0]))
    old = saved(tmp_path, "old", rounds("plain", [1.0]))
    assert main(["--output", str(tmp_path / "run"), "--compare", old]) == 2
    assert "the runs have nothing in common" in capsys.readouterr().err
    assert (tmp_path / "run" / "run.json").exists()


def test_help_says_how_a_peer_is_launched() -> None:
    text = parser().format_help()
    for part in ("an empty environment", "standard input", "{nats}", "{prefix}"):
        assert part in text


def test_a_plan_without_options_measures_everything_seven_times_and_a_quick_one_less() -> None:
    plan = plan_of(parser().parse_args([]))
    assert list(plan.scenarios) == [name for name, scenario in SCENARIOS.items() if not scenario.is_optional]
    assert [subject.name for subject in plan.subjects] == ["bare", "direct", "plain"]
    assert (plan.extent.rounds, plan.extent.growth_keys) == (7, [10**3, 10**5, 10**6])
    assert plan_of(parser().parse_args(["--scenario", "all"])).scenarios == plan.scenarios
    assert [name for name in SCENARIOS if is_in_all(name, False, "HEAD")] == list(SCENARIOS)
    plan = plan_of(parser().parse_args(["--quick"]))
    assert plan.extent.rounds * len(plan.loads()) * len(plan.subjects) * plan.extent.seconds < 40
    assert {case for case, _ in plan.loads()} == set(QUICK)


def test_options_choose_scenarios_subjects_and_peers() -> None:
    arguments = ["--scenario", "idle", "--subject", "direct", "--rounds", "7", "--large"]
    plan = plan_of(parser().parse_args([*arguments, "--peer", "redis=/opt/redis -v"]))
    assert list(plan.scenarios) == ["idle"]
    assert [subject.name for subject in plan.subjects] == ["bare", "direct", "redis"]
    assert plan.subjects[2].command == ("/opt/redis", "-v")
    assert (plan.extent.rounds, plan.extent.growth_keys[-1]) == (7, 10**7)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--rounds", "0"], "--rounds is 0 and --seconds 0.5; the minimum is 1"),
        (["--seconds", "0.01"], "--rounds is 7 and --seconds 0.01; the minimum is 1 and 0.05"),
        (["--peer", "a=x", "--peer", "a=y"], "a name is used twice"),
        (["--against", "no-such-revision"], "found no-such-revision, which is no revision"),
        (["--scenario", "against"], "--scenario against needs --against REVISION"),
        (["--scenario", "idle", "--against", "HEAD"], "--against: found --scenario idle, allowed start or against"),
    ],
)
def test_plans_that_do_not_fit_are_refused(arguments: list[str], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        plan_of(parser().parse_args(arguments))
