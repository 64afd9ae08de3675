"""The parser and its help: every declared option is a flag, and help shows it."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser
from functools import cache

import pytest

from keyvalue_provider.config.command_line import command_line, flags_of
from keyvalue_provider.config.options import OPTIONS, SERVE_OPTIONS, STANDALONE_OPTIONS
from tests.conftest import DEADLINE_S, PROVIDER


@cache
def parser() -> ArgumentParser:
    """Return a parser that several tests share."""
    return command_line()


def flags(*arguments: str) -> dict[str, str]:
    """Return the options that a command line sets."""
    given = flags_of(parser().parse_args(["serve", *arguments]))
    return {name: text for name, text in given.items() if text is not None}


@pytest.mark.parametrize("name", [*SERVE_OPTIONS, *SERVE_OPTIONS.old_names])
def test_every_option_is_a_flag(name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    assert flags(flag, "text") == {name: "text"}


def test_the_flag_of_wrpc_kv_is_an_alias() -> None:
    assert flags("--url", "text") == flags("--nats", "text")
    assert flags() == {}


@pytest.mark.parametrize("name", [name for name, option in SERVE_OPTIONS.items() if option.value_type.bare])
def test_a_flag_without_a_value_is_true(name: str) -> None:
    assert flags(f"--{name.replace('_', '-')}") == {name: "true"}


@pytest.mark.parametrize(
    ("flag", "more"),
    [
        ("--acess=read-only", "; did you mean --access?\n"),
        ("--page-key", "; did you mean --page-keys?\n"),  # not accepted as short for it
        ("--bytes", "\n"),  # nor as an old name
        ("--colour", "\n"),
    ],
)
@pytest.mark.parametrize("command", [["serve"], ["config", "check"]])
def test_an_unknown_flag_is_refused(
    command: list[str], flag: str, more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line().parse_args([*command, flag, "3"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"unrecognized arguments: {flag} 3{more}")


def test_help_names_every_flag() -> None:
    ended = subprocess.run([PROVIDER, "serve", "--help"], capture_output=True, timeout=DEADLINE_S, text=True)
    assert ended.returncode == 0
    for name, option in (*SERVE_OPTIONS.items(), ("config", None)):
        assert f"  --{name.replace('_', '-')} " in ended.stdout, name
        if option is not None and option.default is not None:
            assert f"default: {option.shown(option.default)}" in " ".join(ended.stdout.split()), name
    for name in SERVE_OPTIONS.old_names:
        assert f"--{name.replace('_', '-')}" not in ended.stdout, name


@pytest.mark.parametrize("command", ["import-snapshot", "export-snapshot"])
def test_the_moving_commands_accept_the_flags_of_serve_and_show_those_that_they_use(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command_line().parse_args([command, "file", "--page-keys", "7", "--jetstream-bucket", "b"])
    given = {name: text for name, text in flags_of(arguments).items() if text is not None}
    assert (arguments.file, given) == ("file", {"page_keys": "7", "jetstream_bucket": "b"})
    with pytest.raises(SystemExit):
        command_line().parse_args([command, "--help"])
    text = capsys.readouterr().out
    for name in SERVE_OPTIONS:
        is_used = name in STANDALONE_OPTIONS.keys() - {"allow_split"} or name.startswith(("jetstream_", "tls_"))
        assert is_used <= (f"  --{name.replace('_', '-')} " in text), name
    assert "--page-keys" not in text
    assert "--allow-split" not in text


def test_help_of_the_command_names_every_option() -> None:
    text = command_line().format_help()
    column = max(map(len, OPTIONS))
    for name, option in OPTIONS.items():
        assert f"\n  {name:<{column}} {option.help}" in text


def test_help_imports_nothing_that_only_serving_needs() -> None:
    """Each of these takes tens of milliseconds to import."""
    code = "import sys; from keyvalue_provider.config.command_line import command_line; command_line(); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=DEADLINE_S, text=True, check=True)
    assert not {"ssl", "nats", "nacl", "asyncio", "prometheus_client"} & set(ended.stdout.split())
