"""Processes that do not start, or end early, say why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.load.workload import Load
from bench.run.processes import GeneratorProcess, NatsProcess, ProcessError, WatcherProcess
from bench.run.stage import Stage
from bench.run.subjects import Subject


def test_a_watcher_that_cannot_listen_says_why(tmp_path: Path) -> None:
    with NatsProcess(tmp_path) as gone:
        pass
    with pytest.raises(ProcessError, match=r"(?s)late: the process ended; .*Connect"):
        WatcherProcess("late", gone, tmp_path, is_stuck=False)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (("/nowhere/provider",), "broken-.*: .*No such file or directory"),
        (
            (sys.executable, "-c", "import sys; sys.exit('no data')"),
            "(?s): the process ended with exit status 1; .*no data",
        ),
    ],
)
def test_a_provider_that_does_not_start_says_why(stage: Stage, command: Sequence[str], error: str) -> None:
    with pytest.raises(ProcessError, match=error):
        stage.launch(Subject("broken", tuple(command)))


def test_a_load_generator_that_ended_says_so(stage: Stage, tmp_path: Path) -> None:
    with GeneratorProcess(tmp_path) as generator:
        generator.popen.kill()
        generator.popen.wait()
        with pytest.raises(ProcessError, match="load: the process ended"):
            generator.run(Load(url=stage.nats.url, prefix="default.kv"))
