"""Short runs of the experiments, and the order in which they take turns."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.load.outcome import LoadError
from bench.run.experiments import EXPERIMENTS, Side
from bench.run.processes import ProcessError, ProviderProcess, WatcherProcess
from bench.run.scenarios import SCENARIOS, Case
from bench.run.stage import Extent, Stage
from bench.run.subjects import BEFORE, DIRECT, EXECUTABLE, STUCK, WATCHED, Subject
from tests.bench.loads import CALLS, little
from tests.build import built_executable

FIGURES = {
    "growth": {"bytes_a_key", "scrape_us"},
    "memory": {"above_store_bytes"},
    "pages": {"keys_per_s", "excess_us", "page_cpu_us"},
    "snapshot": {"excess_us", "save_s", "start_s", "idle_bytes"},
    "expiry": {"bytes_a_key"},
    "start": {"start_s", "start_cpu_s", "idle_bytes"},
    "watch": {"events_per_s"},
}


@pytest.mark.timeout(300)  # it may build the executable, or wait for it
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "redis"])
def test_every_experiment_gives_rows(stage: Stage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("bench.run.experiments.ROUNDS_MIN", dict.fromkeys(EXPERIMENTS, 1))
    monkeypatch.setattr("bench.run.experiments.TURNS", 1)
    monkeypatch.setattr("bench.run.experiments.BEGIN_S", 0.05)
    extent = Extent(1, 0.05, growth_keys=[100, 300], keys=2_000, memory_calls=10)
    before = [Subject(BEFORE, DIRECT.command, DIRECT.config)] if name == "against" else []
    subjects = [*SCENARIOS[name].subjects, *before]
    if name == "start":
        built_executable()  # otherwise it is built with this process's environment, and measured by coverage
    rows = list(EXPERIMENTS[name](stage, name, subjects, extent))
    assert {row.scenario for row in rows} == {name}
    assert {row.subject for row in rows} == {subject.name for subject in subjects}
    found = {figure for row in rows for figure in row.figures}
    assert found >= FIGURES.get(name, set()) | {"calls_per_s", "provider_cpu_us"}


def test_a_watcher_is_called_for_each_set(stage: Stage) -> None:
    with WatcherProcess("component", stage.nats, stage.directory, is_stuck=False) as watcher:

        def wait_until_told(calls: int) -> None:
            while watcher.told() < calls:  # each question waits for the watcher's answer
                pass
            assert watcher.told() == calls

        assert watcher.told() == 0
        provider = stage.launch(WATCHED, watcher=watcher.name)
        stage.fill(provider, "watched", CALLS, 64)
        wait_until_told(CALLS)
        side = Side(WATCHED, little(stage, WATCHED, Case(function="set"), provider), watcher)
        side.run(stage.generator)
        assert set(side.figures()) == {"events_per_s"}
        wait_until_told(2 * CALLS)


def test_a_watcher_that_nobody_calls_fails_the_load(stage: Stage, direct: ProviderProcess) -> None:
    with WatcherProcess("nobody", stage.nats, stage.directory, is_stuck=True) as watcher:
        side = Side(STUCK, little(stage, DIRECT, Case(function="set"), direct), watcher)
        side.run(stage.generator)
        with pytest.raises(LoadError, match="nobody received no event, expected one for each set"):
            side.figures()


def test_an_executable_that_cannot_be_built_ends_the_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.run.experiments.ROOT", tmp_path)
    build = tmp_path / "scripts" / "build"
    build.parent.mkdir()
    build.write_text("#!/bin/sh\nexit 3\n")
    build.chmod(0o700)
    with pytest.raises(ProcessError, match="scripts/build ended with exit status 3"):
        next(EXPERIMENTS["start"](stage, "start", [EXECUTABLE], Extent(1, 0.05, [], 1, 1)))
