"""wrpc-kv with the standard streams that people and scripts give it: terminals, closed streams, full disks, locales."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence

import pytest

from keyvalue_provider.client.streams import shown
from tests.conftest import DEADLINE_S, SCRIPTS, NatsServer, Provider
from tests.provider.client.test_command import COMMANDS

WRPC_KV = str(SCRIPTS / "wrpc-kv")
#: A key and a value that would change the title of a terminal, and clear it.
HOSTILE = "a\x1b]0;title\x07\x9b2J"
READ = b"reading the value from standard input"


@pytest.fixture(scope="module")
def path() -> None:
    """Use only the default path, since nothing here depends on it."""


@pytest.fixture
def command(nats_server: NatsServer, provider: Provider, bucket: str) -> Sequence[str]:
    return WRPC_KV, "--nats", nats_server.url, "--prefix", provider.prefix, "--bucket", bucket


def run(
    command: Sequence[str], *arguments: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    """Run the command with pipes. Return the exit code and both outputs."""
    ended = subprocess.run(
        [*command, *arguments], input=stdin, capture_output=True, timeout=DEADLINE_S,
        env=dict(environment or {}),
    )  # fmt: skip
    return ended.returncode, ended.stdout, ended.stderr


def on_terminal(command: Sequence[str], *arguments: str, typed: bytes = b"") -> tuple[int, bytes]:
    """Run the command on a terminal. Return the exit code and everything that the terminal shows."""
    own, terminal = pty.openpty()
    attributes = termios.tcgetattr(terminal)
    attributes[1] &= ~termios.OPOST  # no CR before a line feed
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, attributes)
    process = subprocess.Popen([*command, *arguments], stdin=terminal, stdout=terminal, stderr=terminal, env={})
    os.close(terminal)
    shown = b""
    try:
        while True:
            if typed and READ in shown:
                os.write(own, typed)
                typed = b""
            try:
                shown += os.read(own, 65536)
            except OSError:  # every process has closed the terminal
                break
        return process.wait(DEADLINE_S), shown
    finally:
        process.kill()
        process.wait()
        os.close(own)


def test_a_terminal_gets_a_newline_and_a_pipe_does_not(command: Sequence[str]) -> None:
    for value, line in (("world", b"world\n"), ("two\nlines\n", b"two\nlines\n"), ("", b"\n")):
        assert run(command, "set", "k", value) == (0, b"", b"")
        assert on_terminal(command, "get", "k") == (0, line)
        assert run(command, "get", "k") == (0, value.encode(), b"")


def test_a_terminal_gets_no_control_characters(command: Sequence[str]) -> None:
    assert run(command, "set-many", HOSTILE, HOSTILE, "tab", "a\tb\n")[0] == 0
    escaped = rb"a\x1b]0;title\x07\x9b2J"
    as_json = rb'"a\u001b]0;title\u0007\u009b2J"'
    assert on_terminal(command, "get", HOSTILE) == (0, escaped + b"\n")
    assert on_terminal(command, "get", "tab") == (0, b"a\tb\n")
    assert sorted(on_terminal(command, "keys")[1].splitlines()) == [escaped, b"tab"]
    assert on_terminal(command, "get-many", HOSTILE, "tab") == (0, escaped + b"\n" + rb"a\tb\n" + b"\n")
    for shows in (on_terminal, lambda *arguments: run(*arguments)[:2]):
        assert shows(command, "get", HOSTILE, "--json") == (
            0,
            b'{"key": ' + as_json + b', "value": ' + as_json + b"}\n",
        )
    code, text = on_terminal(command, "get", HOSTILE + "absent")
    assert (code, text.count(b"\x1b"), text.count(b"\x9b")) == (1, 0, 0)
    assert HOSTILE.encode() in run(command, "keys")[1], "a pipe gets the keys as they are"


def test_set_says_that_it_reads_standard_input(command: Sequence[str]) -> None:
    code, text = on_terminal(command, "set", "k", typed=b"typed\n\x04")
    assert (code, text.count(b"\n"), READ in text) == (0, 1, True)
    assert run(command, "get", "k")[1] == b"typed\n"


@pytest.mark.parametrize("closed", range(3))
def test_a_closed_stream(command: Sequence[str], closed: int) -> None:
    """The command does its work, or says which stream is closed. It had a traceback."""

    def closing(*arguments: str) -> tuple[int, bytes, bytes]:
        shell = ("sh", "-c", f'exec "$@" {closed}{"<" if closed == 0 else ">"}&-', "sh", *command)
        return run(shell, *arguments)

    assert closing("set", "k", "v") == (0, b"", b"")
    assert run(command, "get", "k") == (0, b"v", b"")
    results: dict[tuple[str, ...], list[tuple[int, bytes, bytes | None]]] = {
        ("get", "k"): [(0, b"v", b""), (1, b"", b"wrpc-kv: standard output is closed\n"), (0, b"v", b"")],
        ("--version",): [(0, b"wrpc-kv 0.1.0\n", b""), (1, b"", b"wrpc-kv: standard output is closed\n")],
        ("get", "none"): [(1, b"", None), (1, b"", b"wrpc-kv: standard output is closed\n"), (1, b"", b"")],
    }
    for arguments, by_stream in results.items():
        code, out, err = by_stream[closed] if closed < len(by_stream) else by_stream[0]
        found = closing(*arguments)
        assert found[:2] == (code, out)
        assert err is None or found[2] == err
    if closed == 0:
        assert closing("set", "k")[0::2] == (
            1, b"wrpc-kv: standard input is closed; give the value as an argument, or with --file PATH\n",
        )  # fmt: skip
    assert run(command, "get", "k")[1] == b"v", "nothing else was written"


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_full_disk(command: Sequence[str], size: int) -> None:
    assert run(command, "set", "k", stdin=b"v" * size)[0] == 0
    for arguments in (("get", "k"), ("--help",)):
        with open("/dev/full", "wb") as full:
            ended = subprocess.run(
                [*command, *arguments], stdout=full, stderr=subprocess.PIPE, env={}, timeout=DEADLINE_S
            )
        assert ended.returncode == 1
        assert ended.stderr == b"wrpc-kv: standard output: No space left on device\n"


@pytest.mark.parametrize("name", ["C", "POSIX", "en_US.ISO-8859-1"])
def test_a_locale_other_than_utf_8(command: Sequence[str], name: str) -> None:
    """Names and values are UTF-8 all the same."""
    environment = {"LC_ALL": name, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    key, value = "ключ \U0001f511", "Ωμέγα"
    assert run(command, "set", key, value, environment=environment) == (0, b"", b"")
    assert run(command, "get", key, environment=environment) == (0, value.encode(), b"")
    assert run(command, "keys", environment=environment) == (0, f"{key}\n".encode(), b"")
    code, out, err = run(command, "get", "нет", environment=environment)
    assert (code, out, b"Traceback" in err, err.count(b"\n")) == (1, b"", False, 1)
    assert run(command, "--help", environment=environment)[0] == 0


def test_the_completion_knows_every_command(command: Sequence[str]) -> None:
    """Bash completes with the printed script. Zsh is not always installed."""
    code, script, err = run(command, "--print-completion", "bash")
    assert (code, err) == (0, b"")
    complete = 'COMP_WORDS=(wrpc-kv "$1"); COMP_CWORD=1; _shtab_wrpc_kv; printf "%s\\n" "${COMPREPLY[@]}"'

    def completed(word: str) -> list[str]:
        shell = ["bash", "-c", f"{script.decode()}\n{complete}", "bash", word]
        return subprocess.run(shell, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout.split()

    assert sorted(completed("")) == sorted(COMMANDS)
    assert completed("get") == ["get", "get-many"]
    assert "--print-completion" in completed("--")
    assert run(command, "--print-completion", "zsh")[1].startswith(b"#compdef wrpc-kv\n")


def test_shown() -> None:
    assert shown("a\x1b[0m\u202eb\nключ") == r"a\x1b[0m\u202eb\nключ"


def test_one_get_loads_no_event_loop(command: Sequence[str]) -> None:
    """Imports take most of the time of a call."""
    assert run(command, "set", "k", "v")[0] == 0
    code = (
        "import sys; from keyvalue_provider.client.command import main; assert main(sys.argv[1:]) == 0;"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "assert loaded.isdisjoint(('asyncio', 'nats', 'ssl', 'email', 'uvloop', 'shtab', 'logging', 'nacl', 'msgpack')), loaded"
    )
    for arguments in (("get", "k"), ("keys",), ("set-many", "k", "v"), ("ping",), ("health",), ("set", "k", "v" * 100)):
        assert run((sys.executable, "-c", code, *command[1:]), *arguments)[0::2] == (0, b"")
