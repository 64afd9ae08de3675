"""The command line chooses a command of the suite."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from unittest.mock import Mock

import pytest

from bench.__main__ import COMMANDS, USAGE, main
from bench.run import ROOT


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["endtoend", "--quick"], ["--quick"]),
        (["--rounds", "3"], ["--rounds", "3"]),
        (["start", "--rounds", "3"], ["--scenario", "start", "--rounds", "3"]),
    ],
)
def test_several_commands_are_endtoend(
    monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], given: Sequence[str]
) -> None:
    endtoend = Mock(return_value=7)
    monkeypatch.setattr("bench.endtoend.main", endtoend)
    assert main(arguments) == 7
    endtoend.assert_called_once_with(given)


def test_help_covers_all_commands_and_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out == USAGE
    assert [name for name in COMMANDS if f"\n  {name} " not in USAGE] == []
    assert main(["fast"]) == 2
    assert "unknown command 'fast'" in capsys.readouterr().err


def test_every_micro_benchmark_runs() -> None:
    command = (sys.executable, "-m", "bench", "micro", "--benchmark-disable", "-q", "-p", "no:cacheprovider")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
