"""The command line of `keyvalue-inmemory`: what can be asked for, and its help. Starts nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from keyvalue_provider.config.options import (
    FLAGS,
    OPTIONS,
    STANDALONE_OPTIONS,
    Option,
    ProviderOptions,
    StandaloneOptions,
)

__all__ = ["command_line", "flags_of"]

EXIT_CODES = "exit codes: 0 stopped in order (by the host, SIGTERM or SIGINT); 1 NATS can't be reached, or refuses us; 2 host data or an option can't be used"
NAME_COLUMN = 22
#: By the end of an option's name; others are numbers.
METAVARS = {
    "_ms": "MS",
    "bytes": "BYTES",
    "bytes_max": "BYTES",
    "nats": "URL",
    "bucket_prefix": "TEXT",
    "prefix": "LATTICE.KEY",
    "bucket": "NAME",
    "buckets": "NAME,...",
    "access": "read-write|read-only",
    "transport": "direct|plain",
    "metrics_address": "HOST:PORT",
    "log_level": "LEVEL",
    **dict.fromkeys(("credentials", "nkey", "tls_ca", "tls_certificate", "tls_key"), "FILE"),
}
DEFAULTS = {
    **dict.fromkeys(OPTIONS, ProviderOptions()),
    **dict.fromkeys(STANDALONE_OPTIONS, StandaloneOptions()),
}


class Version(argparse.Action):
    """Reads the version when it is asked for: that takes as long as all else that `--help` needs."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it and exit."""
        from importlib.metadata import version

        print(f"keyvalue-inmemory {version('keyvalue-inmemory')}")  # noqa: T201 # what was asked for
        parser.exit()


def command_line() -> argparse.ArgumentParser:
    """The parser. Without a command, host data is on standard input."""
    parser = argparse.ArgumentParser(
        prog="keyvalue-inmemory",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A wasmCloud capability provider that serves wrpc:keyvalue from memory, over NATS.\n\n"
        "Without a command it is what a wasmCloud host starts, and reads host data from standard input. By hand:\n\n"
        "  keyvalue-inmemory serve --nats 127.0.0.1:4222\n"
        "  wrpc-kv set hello world",
        epilog="options, as strings in the host data's object `config`, or as KEYVALUE_NAME in the environment:\n"
        f"{_listed(OPTIONS)}\n\n{EXIT_CODES}",
    )
    parser.add_argument("--version", action=Version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    what = "serve without a host"
    serve = commands.add_parser(
        "serve",
        help=what,
        usage="keyvalue-inmemory serve [--nats URL] [--prefix LATTICE.KEY] [--config FILE] [--OPTION VALUE]...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{what.capitalize()}: NATS and options come from a file, the environment and flags.\n"
        "A flag goes before KEYVALUE_NAME in the environment, and that before the file.",
        epilog="A password in a flag is seen by whoever lists processes: KEYVALUE_NATS or the file keeps it.\n\n"
        "  keyvalue-inmemory serve --nats 127.0.0.1:4222 --prefix default.keyvalue-inmemory --memory-bytes-max 1_000_000_000\n"
        f"  keyvalue-inmemory serve --config keyvalue.toml\n\n{EXIT_CODES}",
    )
    _add_flags(serve)
    config = commands.add_parser("config", help="look at a configuration", description="Look at a configuration.")
    what = "show every option, where it came from, and what is wrong"
    check = config.add_subparsers(dest="config_command", required=True, metavar="COMMAND").add_parser(
        "check",
        help=what,
        usage="keyvalue-inmemory config check [--json] [--host-data FILE | the flags of serve]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{what.capitalize()}: of `serve` with the same flags, or of a start with host data. Connects to nothing.",
        epilog="exit codes: 0 nothing is wrong; 2 the provider would not start, or a link can't be used",
    )
    check.add_argument("--host-data", metavar="FILE", help="as a host writes it; - is standard input")
    check.add_argument("--json", action="store_true", help="one JSON object")
    _add_flags(check)
    return parser


def flags_of(arguments: argparse.Namespace) -> dict[str, str | None]:
    """The options among the arguments, by name."""
    return {name: getattr(arguments, name) for name in (*STANDALONE_OPTIONS, *OPTIONS)}


def metavar_of(name: str) -> str:
    """What stands for the value of an option.

    >>> metavar_of("ttl_ms"), metavar_of("page_keys")
    ('MS', 'N')
    """
    for end, metavar in METAVARS.items():
        if name.endswith(end):
            return metavar
    return "N"


def _with_default(name: str, option: Option) -> str:
    default = getattr(DEFAULTS.get(name), name, None)
    return option.what if default is None else f"{option.what}; default: {str(default).lower()}"


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="a TOML file: lines NAME = VALUE, of the names below with _ in place of -"
    )
    for table in (STANDALONE_OPTIONS, OPTIONS):
        for name, option in table.items():
            what = _with_default(name, option).replace("%", "%%")
            flag = f"--{name.replace('_', '-')}"
            if name in FLAGS:
                parser.add_argument(flag, dest=name, nargs="?", const="true", metavar="true|false", help=what)
            else:
                parser.add_argument(flag, dest=name, metavar=metavar_of(name), help=what)


def _listed(table: Mapping[str, Option]) -> str:
    return "\n".join(f"  {name:<{NAME_COLUMN}} {_with_default(name, option)}" for name, option in table.items())
