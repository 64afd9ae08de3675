"""The command line of `wrpc-kv`: its arguments, its help, and the completion for shells."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from keyvalue_provider.client.streams import Output
from keyvalue_transport.nats.subjects import check_subject
from keyvalue_transport.nats.urls import split_urls

__all__ = ["DEFAULT_BUCKET", "parse"]

DEFAULT_BUCKET = "default"
DEFAULT_URL = "127.0.0.1:4222"
SHELLS = ("bash", "zsh")
SECONDS_MAX = 86_400
DELTA_MAX = 2**64 - 1
PINGS_MAX = 1_000_000
#: The names of arguments in the help that stand for a path.
PATH_NAMES = ("FILE", "PATH")
EPILOG = """\
examples:
  wrpc-kv set hello world
  wrpc-kv get hello
  wrpc-kv --bucket pictures set cat --file cat.png
  wrpc-kv --bucket pictures get cat > copy.png
  date | wrpc-kv set now -
  wrpc-kv keys
  wrpc-kv increment visits
  wrpc-kv set-many sky blue grass green
  wrpc-kv get-many sky grass --json
  wrpc-kv export keys.jsonl
  wrpc-kv import keys.jsonl
  wrpc-kv watch 'session*'
  wrpc-kv health

exit codes:
  0    success; also if the reader of the output goes away, as `head` does
  1    the call failed, a key is missing, or the provider is unhealthy or does not answer
  2    the command line is malformed
  130  Ctrl-C; `watch` ends with 0

Keys and values are UTF-8, whatever the locale. On a terminal, control characters are escaped.
Completion: eval "$(wrpc-kv --print-completion bash)"
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the command line, by default that of this process. The entries of `set-many` become a dict.

    :raises SystemExit: the command line is malformed, or it asks for the help, the version or the completion
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        _check(arguments)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    """Check the arguments that argparse does not check alone.

    :raises ValueError: they are malformed
    """
    check_subject(arguments.prefix, "prefix")
    if arguments.command == "set-many":
        texts = arguments.entries
        if len(texts) % 2:
            raise ValueError(f"found {len(texts)} arguments, expected pairs of key and value")
        try:
            arguments.entries = {key.decode(): value for key, value in zip(texts[::2], texts[1::2], strict=True)}
        except UnicodeDecodeError:
            raise ValueError("found a key that is not UTF-8") from None
    elif arguments.command == "watch":
        from keyvalue_provider.client.watch_link import watch_option

        if "." not in arguments.prefix:
            raise ValueError(f"prefix: found {arguments.prefix!r}, allowed {{lattice}}.{{provider key}}")
        watch_option(DEFAULT_BUCKET if arguments.bucket is None else arguments.bucket, arguments.pattern)


class _PrintVersion(argparse.Action):
    """The flag `--version`."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        Output().line(f"wrpc-kv {version('keyvalue-inmemory')}")
        parser.exit()


class _PrintCompletion(argparse.Action):
    """The flag `--print-completion`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, shell: Any, option: str | None = None
    ) -> None:
        import shtab

        _complete_paths(parser, shtab.FILE)
        Output().write(shtab.complete(parser, shell).encode() + b"\n")
        parser.exit()


def _complete_paths(parser: argparse.ArgumentParser, paths: object) -> None:
    for action in parser._actions:
        if action.metavar in PATH_NAMES or action.dest == "file":
            action.complete = paths  # type: ignore[attr-defined] # shtab reads it
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, paths)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wrpc-kv",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Read and write keys of a wrpc:keyvalue provider over NATS.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version")
    parser.add_argument(
        "--print-completion", action=_PrintCompletion, choices=SHELLS, help="print a script for completion in a shell"
    )
    parser.add_argument(
        "--nats",
        "--url",
        type=_urls,
        default=os.environ.get("NATS_URL") or DEFAULT_URL,
        metavar="URL",
        help=f"NATS server: HOST:PORT, nats://USER:PASSWORD@HOST:PORT, tls://HOST; default: $NATS_URL or {DEFAULT_URL}",
    )
    parser.add_argument(
        "--prefix",
        type=_text,
        default="default.keyvalue-inmemory",
        help="prefix of the provider's subjects: {lattice}.{provider key}; default: %(default)s",
    )
    parser.add_argument("--bucket", type=_text, help=f"name of the bucket; default: {DEFAULT_BUCKET}")
    _add_credentials(parser)
    parser.add_argument("--source-id", type=_name, help="call as the component with this id")
    parser.add_argument("--link-name", type=_name, help="call over the link with this name")
    parser.add_argument(
        "--timeout", type=_timeout, default=10.0, metavar="SECONDS", help="timeout for each call; default: %(default)g"
    )
    parser.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="SECONDS", help="wait at most this long for a provider"
    )
    parser.add_argument("--json", action="store_true", help="print answers and errors as JSON, one per line")
    everywhere = argparse.ArgumentParser(add_help=False)
    everywhere.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as before the command")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, what: str, details: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=what, description=what + details, parents=[everywhere], allow_abbrev=False
        )

    _add_functions(add)
    _add_transfer(add)
    _add_others(add)
    return parser


Add = Callable[..., argparse.ArgumentParser]


def _add_functions(add: Add) -> None:
    """Add the commands that call one function of the provider."""
    for name, what in (
        ("get", "write the value's bytes to standard output; a terminal gets a newline at the end"),
        ("set", "store a value from an argument, a file, or standard input"),
        ("delete", "remove a key; a missing key is not an error"),
        ("exists", "print true or false"),
        ("increment", "add to a key's number and print the sum; a missing key counts as 0"),
    ):
        command = add(name, what)
        command.add_argument("key", type=_text)
        if name == "set":
            source = command.add_mutually_exclusive_group()
            source.add_argument("value", nargs="?", type=_value, help="the value; -, or no value, for standard input")
            source.add_argument("--file", metavar="PATH", help="read the value from this file; - for standard input")
        elif name == "increment":
            command.add_argument("delta", nargs="?", type=_delta, default=1, help="number to add; default: %(default)s")
    for name, what in (
        ("get-many", "print one line for each key: its value, or nothing if the key is missing"),
        ("delete-many", "remove keys; a missing key is not an error"),
    ):
        add(name, what).add_argument("keys", nargs="+", metavar="key", type=_text)
    command = add("set-many", "store a value for each key, or none if any is refused")
    command.add_argument("entries", nargs="+", metavar="key value", type=_value)
    add("keys", "print all keys of the bucket, one per line")


def _add_transfer(add: Add) -> None:
    command = add(
        "export",
        "write all keys of the bucket to a file",
        ". An export to a file that was interrupted continues when you repeat it. Calls do not show when a key expires.",
    )
    command.add_argument("file", metavar="FILE", help="the file; - for standard output")
    _add_format(command)
    command.add_argument("--force", action="store_true", help="replace the file if it exists")
    command = add(
        "import",
        "store the keys of a file",
        ". An import from a file that was interrupted continues when you repeat it. Calls cannot set when a key "
        "expires.",
    )
    command.add_argument("file", metavar="FILE", help="the file; - for standard input")
    _add_format(command)


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format",
        choices=("jsonl", "snapshot"),
        help="JSON lines, or a snapshot of the store; default: snapshot if the name ends in .snapshot, otherwise jsonl",
    )
    command.add_argument(
        "--restart", action="store_true", help="begin again, even if an interrupted run could continue"
    )


def _add_others(add: Add) -> None:
    command = add(
        "watch",
        "print changes of keys as they happen, until Ctrl-C",
        ". The command serves the watcher interface as a component does. It adds a link from the provider to itself to "
        "the lattice, and removes the link at the end.",
    )
    command.add_argument(
        "pattern", nargs="?", type=_text, default="*", help="a key, or the start of keys and a *; default: all keys"
    )
    command.add_argument(
        "--component",
        type=_name,
        metavar="ID",
        help="serve as this component, and add no link; the command says which link is needed",
    )
    command = add(
        "ping", "measure how long calls take; the exit code is 1 unless all are answered", ". It calls `exists`."
    )
    command.add_argument("--count", type=_count, default=10, help="number of calls, one after another; default: 10")
    add(
        "health",
        "print the health of a provider that a host has started; the exit code is 1 if it is unhealthy",
        ".\nThe request goes to wasmbus.rpc.PREFIX.health.",
    )


def _add_credentials(parser: argparse.ArgumentParser) -> None:
    user = parser.add_mutually_exclusive_group()
    user.add_argument(
        "--creds", metavar="FILE", help="connect as the user in this file: JWT and seed, as nsc writes them"
    )
    user.add_argument("--nkey", metavar="FILE", help="connect with the nkey seed in this file")
    for name, what in (
        (
            "ca",
            "certificate authorities to trust; TLS is mandatory if any --tls option is set or the URL is tls://",
        ),
        ("certificate", "client certificate to present to the server"),
        ("key", "private key of the client certificate, unless it is in the same file"),
    ):
        parser.add_argument(f"--tls-{name}", default="", metavar="FILE", help=what)


# The types of arguments. A locale may decode the bytes of an argument otherwise than as UTF-8, so they are encoded again.


def _value(text: str) -> bytes:
    return os.fsencode(text) if isinstance(text, str) else text


def _text(text: str) -> str:
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError("found bytes that are not UTF-8") from None


def _urls(text: str) -> str:
    try:
        split_urls(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _name(text: str) -> str:
    name = _text(text)
    if not name.isprintable():
        raise argparse.ArgumentTypeError(f"found {name!r}, allowed printable characters")
    return name


def _seconds(text: str) -> float:
    allowed = f"found {text}, allowed 0 to {SECONDS_MAX}"
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(allowed) from None
    if not 0 <= seconds <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(allowed)
    return seconds


def _timeout(text: str) -> float:
    seconds = _seconds(text)
    if not seconds:
        raise argparse.ArgumentTypeError(f"found {text}, allowed above 0, up to {SECONDS_MAX}")
    return seconds


def _delta(text: str) -> int:
    return _number(text, 0, DELTA_MAX)


def _count(text: str) -> int:
    return _number(text, 1, PINGS_MAX)


def _number(text: str, least: int, most: int) -> int:
    if text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(f"found {text}, allowed {least} to {most}")
