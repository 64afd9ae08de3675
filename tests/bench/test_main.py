"""The commands of the suite: which is meant."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.__main__ import USAGE, main


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["endtoend", "--quick"], ["--quick"]),
        (["--quick"], ["--quick"]),
        (["--rounds", "3", "--quick"], ["--rounds", "3", "--quick"]),
    ],
)
def test_options_without_a_command_are_those_of_endtoend(
    monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], options: Sequence[str]
) -> None:
    given: list[Sequence[str]] = []

    def endtoend(options: Sequence[str]) -> int:
        given.append(options)
        return 7

    monkeypatch.setattr("bench.endtoend.main", endtoend)
    assert main(arguments) == 7
    assert given == [options]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_is_that_of_all_commands(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == USAGE
    assert "Without a COMMAND, OPTIONS are those of endtoend." in USAGE


def test_what_is_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fast"]) == 2
    assert "unknown command 'fast'" in capsys.readouterr().err
