"""The command line of `keyvalue-inmemory`: the parser and its help, built from the declared options."""

from __future__ import annotations

import argparse
from collections.abc import Container, Sequence
from typing import Any, NoReturn

from keyvalue_provider.config.declaration import Option, OptionTable
from keyvalue_provider.config.names import nearest_names
from keyvalue_provider.config.options import OPTIONS, SERVE_OPTIONS, STANDALONE_OPTIONS

__all__ = ["command_line", "flags_of"]

EXIT_CODES = (
    "exit codes:\n"
    "  0  stopped cleanly by the host or a signal\n"
    "  1  NATS can't be reached or refuses the connection; TLS, the KV bucket or a redis_address can't be used; the\n"
    "     snapshot is in use or was not saved; or another instance has the prefix (allow_split)\n"
    "  2  host data or an option is wrong, or the file snapshot_path can't be used\n"
    "  3  the host must start the provider again, because secrets of links are missing (restart_for_secrets)"
)
MOVING_EPILOG = (
    "The bucket is that of `serve` with the same options. A provider that a host starts uses the bucket with the\n"
    "name of its provider key, unless its option jetstream_bucket names another. Options may also come from the\n"
    "environment (KEYVALUE_NAME) and the file. Those that only serving needs are accepted and ignored.\n\n"
    "exit codes:\n"
    "  0    done\n"
    "  1    NATS or JetStream cannot be reached, or the bucket cannot be used\n"
    "  2    an option or the file is wrong, or keys do not fit\n"
    "  130  interrupted by Ctrl-C"
)
#: The options that the help text of the moving commands contains.
MOVING_OPTIONS = frozenset(
    name
    for name, option in SERVE_OPTIONS.items()
    if (name in STANDALONE_OPTIONS and name != "allow_split")
    or name.startswith(("jetstream_", "tls_"))
    or name in ("batch", "connect_timeout_ms", "log_level", "structured_logging")
)
NAME_COLUMN = max(map(len, OPTIONS))
#: Other flags of the same options. `wrpc-kv` accepts them too.
FLAG_ALIASES = {"nats": ("--url",)}


class Version(argparse.Action):
    """The flag `--version`. It looks up the version only when it is used, because the look-up is slow."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the version and exit."""
        from importlib.metadata import version

        print(f"keyvalue-inmemory {version('keyvalue-inmemory')}")  # noqa: T201 # the flag's output
        parser.exit()


class CommandParser(argparse.ArgumentParser):
    """A parser that refuses abbreviated flags and suggests a correction for a misspelt flag."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with 2."""
        what, _, unknown = message.partition(": ")
        if what == "unrecognized arguments":
            flags = (word[2:].partition("=")[0] for word in unknown.split() if word.startswith("--"))
            for nearest in filter(None, (nearest_names(flag, SERVE_OPTIONS) for flag in flags)):
                meant = " or ".join("--" + name.replace("_", "-") for name in nearest)
                message += f"; did you mean {meant}?"
        super().error(message)


def command_line() -> argparse.ArgumentParser:
    """Return the argument parser. Without a command, the provider reads host data from standard input."""
    parser = CommandParser(
        prog="keyvalue-inmemory",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A wasmCloud capability provider that serves wrpc:keyvalue from memory, over NATS.\n\n"
        "A wasmCloud host starts it without a command, and writes host data to its standard input. "
        "Without a host:\n\n"
        "  keyvalue-inmemory serve --nats 127.0.0.1:4222\n"
        "  wrpc-kv set hello world",
        epilog="options, as strings in `config` of the host data, or as KEYVALUE_NAME in the environment:\n"
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
        description=f"{what.capitalize()}. The NATS URL and the options come from a file, the environment and flags.\n"
        "Flags override the environment (KEYVALUE_NAME), and the environment overrides the file.",
        epilog="A password in a flag is visible in the process list. Put it into KEYVALUE_NATS or the file.\n\n"
        "  keyvalue-inmemory serve --nats 127.0.0.1:4222 --prefix default.mine --memory-bytes-max 1_000_000_000\n"
        f"  keyvalue-inmemory serve --config keyvalue.toml\n\n{EXIT_CODES}",
    )
    _add_flags(serve)
    config = commands.add_parser("config", help="inspect a configuration", description="Inspect a configuration.")
    what = "show every option with its value and source, and all faults"
    check = config.add_subparsers(dest="config_command", required=True, metavar="COMMAND").add_parser(
        "check",
        help=what,
        usage="keyvalue-inmemory config check [--json] [--host-data FILE | the flags of serve]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{what.capitalize()}.\n"
        "It accepts the flags of `serve`. With --host-data, it checks a start by a host. It does not connect to NATS.",
        epilog="exit codes:\n"
        "  0  nothing is wrong\n"
        "  2  the provider would not start, a link is unusable, or a name is unknown",
    )
    check.add_argument(
        "--host-data", metavar="FILE", help="file with host data: JSON, plain or in base64; - for standard input"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    _add_flags(check)
    _add_moving(commands)
    # Only for the help: this command has a parser of its own, so that the others do not wait for its imports.
    commands.add_parser("archive", help="make, inspect and verify provider archives", add_help=False)
    return parser


def _add_moving(commands: Any) -> None:
    """Add the commands that move data between a memory store and the replicated store."""
    importing = _moving_command(
        commands,
        "import-snapshot",
        "fill the KV bucket of store=jetstream from a snapshot of a memory store",
        "keyvalue-inmemory import-snapshot FILE [--skip] [the flags of serve]",
        "The bucket must be new or empty, and no instance may run. All buckets, keys, values and deadlines are\n"
        "kept, and so is the order of keys: a component's cursor from the memory store stays valid.\n\n"
        "You can interrupt it at any time, even with kill -9. Run the same command again to continue. Until it has\n"
        "finished, no instance serves the bucket.\n\n"
        "Before it begins, it names the keys that do not fit: values larger than max_payload of the NATS server\n"
        "less 256 bytes, and names that are too long for a NATS subject. Then it stops, unless --skip is given.\n\n"
        "With --keys plain, each bucket of the snapshot becomes a KV bucket of its own. Then names that NATS does not\n"
        "allow do not fit either.",
        "  keyvalue-inmemory import-snapshot store.snapshot --nats 127.0.0.1:4222 --jetstream-bucket mine\n"
        "  keyvalue-inmemory serve --store jetstream --nats 127.0.0.1:4222 --jetstream-bucket mine",
    )
    importing.add_argument("file", metavar="FILE", help="the snapshot, written by Store.save or export-snapshot")
    importing.add_argument("--skip", action="store_true", help="leave out keys that do not fit, and import the others")
    exporting = _moving_command(
        commands,
        "export-snapshot",
        "write a snapshot of the KV bucket of store=jetstream, which a memory store loads",
        "keyvalue-inmemory export-snapshot FILE [--force] [the flags of serve]",
        "Instances may run meanwhile. The snapshot has every change that was acknowledged before the command\n"
        "began, and shows the whole bucket as of one moment. It holds deadlines, and the order of keys.\n\n"
        "The file appears when it is complete. The command needs memory for all keys, as an instance does.",
        "  keyvalue-inmemory export-snapshot store.snapshot --nats 127.0.0.1:4222 --jetstream-bucket mine",
    )
    exporting.add_argument("file", metavar="FILE", help="the file to write, with mode 0600")
    exporting.add_argument("--force", action="store_true", help="replace the file if it exists")


def _moving_command(
    commands: Any, name: str, what: str, usage: str, more: str, examples: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=what,
        usage=usage,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{what[0].upper()}{what[1:]}.\n\n{more}",
        epilog=f"{examples}\n\n{MOVING_EPILOG}",
    )
    _add_flags(command, MOVING_OPTIONS)
    return command


def flags_of(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Return the text of each option in the arguments, by name. Old names are included."""
    return {name: getattr(arguments, name) for name in (*SERVE_OPTIONS, *SERVE_OPTIONS.old_names)}


def _help_of(option: Option) -> str:
    return option.help if option.default is None else f"{option.help}; default: {option.shown(option.default)}"


def _add_flags(parser: argparse.ArgumentParser, shown: Container[str] = SERVE_OPTIONS) -> None:
    """Add a flag for each option. The help text contains only the options in `shown`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file with lines NAME = VALUE; a NAME is a flag below, with _ instead of -",
    )
    for name, option in SERVE_OPTIONS.items():
        _add_flag(parser, name, option, _help_of(option).replace("%", "%%") if name in shown else argparse.SUPPRESS)
    for name, present_name in SERVE_OPTIONS.old_names.items():
        _add_flag(parser, name, SERVE_OPTIONS[present_name], argparse.SUPPRESS)


def _add_flag(parser: argparse.ArgumentParser, name: str, option: Option, what: str) -> None:
    flag, value_type = f"--{name.replace('_', '-')}", option.value_type
    if value_type.bare is None:
        flags = (flag, *FLAG_ALIASES.get(name, ()))
        parser.add_argument(*flags, dest=name, metavar=value_type.metavar, help=what)
    else:
        parser.add_argument(flag, dest=name, nargs="?", const=value_type.bare, metavar=value_type.metavar, help=what)


def _listed(table: OptionTable) -> str:
    return "\n".join(f"  {name:<{NAME_COLUMN}} {_help_of(option)}" for name, option in table.items())
