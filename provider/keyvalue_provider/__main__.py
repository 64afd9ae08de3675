"""The command `keyvalue-inmemory`. It reads its configuration and runs the provider.

The configuration is host data, or comes from flags, environment variables and a file.

Exit codes:

- 0: the provider stopped cleanly
- 1: NATS can't be reached or refuses the connection; TLS, the KV bucket or a Redis address can't be used; the snapshot
  is in use or was not saved; or another instance serves the prefix with other keys
- 2: the host data or an option is wrong, or the snapshot's file can't be used
- 3: the host must start the provider again, because secrets of links are missing

`import-snapshot` and `export-snapshot` have their own, which their `--help` lists.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keyvalue_provider.late_import import import_late
from keyvalue_provider.launcher import Launcher
from keyvalue_provider.outer_process import OuterProcess
from keyvalue_provider.standard_streams import drop_output, open_closed_streams

if TYPE_CHECKING:
    import argparse

__all__ = ["main"]

STANDARD_INPUT = 0
INTERRUPTED = 130
AT_A_TERMINAL = """\
keyvalue-inmemory: waiting for host data, which a wasmCloud host writes. To start without a host, press Ctrl-C and type:
  keyvalue-inmemory serve --nats 127.0.0.1:4222
"""

# Slow modules are imported inside functions, so that `--help` stays fast, and so that a start by a host does not wait
# for the command line. Calls are lost until the provider serves.


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    open_closed_streams()
    outer = OuterProcess()
    try:
        return _main(argv, outer)
    finally:
        outer.clean_up()


def _main(argv: Sequence[str] | None, outer: OuterProcess) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        return _serve(None, outer)
    done: int | argparse.Namespace = 0
    try:
        try:
            done = _carry_out(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has gone away, as `head` does
        drop_output()
    except OSError as error:
        drop_output()
        sys.stderr.write(f"keyvalue-inmemory: standard output: {error.strerror}\n")
        return 1
    except ValueError as error:
        return _refuse(error)
    return done if isinstance(done, int) else _serve(done if done.command == "serve" else None, outer)


def _carry_out(argv: Sequence[str]) -> int | argparse.Namespace:
    """Run a command and return its exit code. If the command is to serve, return the arguments instead."""
    if argv[0] == "archive":
        from keyvalue_provider.packaging.archive_command import run

        return run(argv[1:])
    from keyvalue_provider.config.command_line import command_line

    arguments = command_line().parse_args(argv)  # --help and --version raise SystemExit
    if arguments.command == "config":
        from keyvalue_provider.config_check import check

        return check(arguments, os.environ)
    if arguments.command in ("import-snapshot", "export-snapshot"):
        from keyvalue_provider.moving import move

        return move(arguments, os.environ)
    return arguments


def _serve(arguments: argparse.Namespace | None, outer: OuterProcess) -> int:
    """Run the provider and return its exit code. Without arguments, read host data from standard input."""
    # Without a host, the provider may outlive the shell that started it.
    launcher = None if arguments is not None else Launcher(outer)
    gc.disable()  # until the provider serves; the imports would trigger 70 collections, which take 7 ms
    # Delay nats-py's client of JetStream, which the provider does not use. Its import takes 25 ms.
    import_late("nats.js")
    try:
        from keyvalue_provider.signals import ignore_requests

        ignore_requests()
        from keyvalue_provider.config.start_plan import read_hosted_plan, read_standalone_plan
        from keyvalue_provider.process import run

        if arguments is not None:
            plan, configuration = read_standalone_plan(arguments, os.environ)
        else:
            if os.isatty(STANDARD_INPUT):
                sys.stderr.write(AT_A_TERMINAL)
            plan, configuration = read_hosted_plan(STANDARD_INPUT, os.environ)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ValueError as error:
        return _refuse(error)
    return run(plan, configuration, outer, launcher)


def _refuse(error: ValueError) -> int:
    """Print the error and return the exit code."""
    sys.stderr.write(f"keyvalue-inmemory: {error}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
