"""Short runs of the experiments, and the order in which they take turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.load.outcome import LoadError
from bench.run.experiments import EXPERIMENTS, Trial
from bench.run.processes import ProcessError, ProviderProcess
from bench.run.scenarios import SCENARIOS
from bench.run.stage import Extent, Stage
from bench.run.subjects import ANSWERING, BEFORE, DIRECT, OWN, STUCK, Subject
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
    monkeypatch.setattr("bench.run.experiments.SCENARIOS", {name: replace(SCENARIOS[name], rounds_min=1)})
    monkeypatch.setattr("bench.run.experiments.TURNS", 1)
    monkeypatch.setattr("bench.run.experiments.BEGIN_S", 0.05)
    extent = Extent(1, 0.05, growth_keys=[100, 300], keys=2_000, memory_calls=10)
    known = {**OWN, BEFORE: Subject(BEFORE, DIRECT.command, DIRECT.config)}
    subjects = [known[subject] for subject in SCENARIOS[name].subjects]
    if name == "start":
        built_executable()  # otherwise it is built with this process's environment, and measured by coverage
    rows = list(EXPERIMENTS[name](stage, name, subjects, extent))
    assert {row.scenario for row in rows} == {name}
    assert {row.subject for row in rows} == {subject.name for subject in subjects}
    found = {figure for row in rows for figure in row.figures}
    assert found >= FIGURES.get(name, set()) | {"calls_per_s", "provider_cpu_us"}


@pytest.mark.parametrize("watcher", [ANSWERING, STUCK])
def test_the_events_of_a_watcher_are_counted(stage: Stage, watcher: Subject) -> None:
    with stage.launch(watcher) as component, stage.launch(DIRECT, watcher=component.name) as provider:
        trial = Trial(stage, "watch", DIRECT, provider)
        assert trial.events() == 0
        stage.fill(provider, 20_000)  # more than fit into the queue of a watcher that never answers
        while trial.events() < (20_000 if watcher is ANSWERING else 1):
            assert component.popen.poll() is None


def test_a_watcher_that_nobody_calls_fails_the_scenario(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run.experiments.TURNS", 1)
    monkeypatch.setattr("bench.run.stage.Stage.launch", without_link(Stage.launch))
    with pytest.raises(LoadError, match="direct-stuck: the watcher received no event, expected one for each set"):
        list(EXPERIMENTS["watch"](stage, "watch", [OWN["direct-stuck"]], Extent(1, 0.05, [], 1, 1)))


def without_link(launch: Callable[..., ProviderProcess]) -> Callable[..., ProviderProcess]:
    return lambda stage, subject, config=None, watcher="": launch(stage, subject, config)


def test_an_executable_that_cannot_be_built_ends_the_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.run.experiments.ROOT", tmp_path)
    build = tmp_path / "scripts" / "build"
    build.parent.mkdir()
    build.write_text("#!/bin/sh\nexit 3\n")
    build.chmod(0o700)
    with pytest.raises(ProcessError, match="scripts/build ended with exit status 3"):
        next(EXPERIMENTS["start"](stage, "start", [OWN["executable"]], Extent(1, 0.05, [], 1, 1)))
