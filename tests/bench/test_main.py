"""The command line chooses a command of the suite."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import Mock

import pytest

from bench.__main__ import USAGE, main


@pytest.mark.parametrize("arguments", [["endtoend", "--rounds", "3", "--quick"], ["--rounds", "3", "--quick"]])
def test_options_without_a_command_are_those_of_endtoend(
    monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]
) -> None:
    endtoend = Mock(return_value=7)
    monkeypatch.setattr("bench.endtoend.main", endtoend)
    assert main(arguments) == 7
    endtoend.assert_called_once_with(["--rounds", "3", "--quick"])


def test_help_covers_all_commands_and_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out == USAGE
    assert main(["fast"]) == 2
    assert "unknown command 'fast'" in capsys.readouterr().err
