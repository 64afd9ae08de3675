"""The command `keyvalue-inmemory`: finds out what is to run, from host data or from flags, environment and file, and runs it.

Exit codes: 0 stopped in order; 1 NATS could not be reached, or refuses us; 2 host data or an option can't be used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from keyvalue_provider.config.command_line import command_line
from keyvalue_provider.outer_process import OuterProcess

__all__ = ["main"]

STANDARD_INPUT = 0

# What serves is imported by whoever needs it: `--help` need not wait for nats-py, uvloop and the rest.


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; the exit code."""
    outer = OuterProcess()
    try:
        return _main(argv, outer)
    finally:
        outer.clean_up()


def _main(argv: Sequence[str] | None, outer: OuterProcess) -> int:
    try:
        try:
            arguments = command_line().parse_args(argv)  # prints what --help and --version want, and raises SystemExit
            if arguments.command == "config":
                from keyvalue_provider.config_check import check

                return check(arguments, os.environ)
        finally:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter's own flush fails again
        sys.stderr.write(f"keyvalue-inmemory: standard output: {error.strerror}\n")
        return 1
    except ValueError as error:
        return _refuse(error)
    try:
        from keyvalue_provider.config.start_plan import read_hosted_plan, read_standalone_plan
        from keyvalue_provider.process import run

        if arguments.command == "serve":
            plan, configuration = read_standalone_plan(arguments, os.environ)
        else:
            plan, configuration = read_hosted_plan(STANDARD_INPUT, os.environ)
    except ValueError as error:
        return _refuse(error)
    return run(plan, configuration, outer)


def _refuse(error: ValueError) -> int:
    """What was given to us can't be used; the message says where it stands."""
    sys.stderr.write(f"keyvalue-inmemory: {error}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
