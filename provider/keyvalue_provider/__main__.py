"""The command `keyvalue-inmemory`. It reads host data, or flags, environment and a file, and runs the provider.

Exit codes:

- 0: the provider stopped cleanly
- 1: NATS cannot be reached, or refuses the connection
- 2: the host data or an option is wrong
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from keyvalue_provider.config.command_line import command_line
from keyvalue_provider.outer_process import OuterProcess

__all__ = ["main"]

STANDARD_INPUT = 0

# The functions below import what they need, so that `--help` does not wait for nats-py, uvloop and the rest.


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code."""
    outer = OuterProcess()
    try:
        return _main(argv, outer)
    finally:
        outer.clean_up()


def _main(argv: Sequence[str] | None, outer: OuterProcess) -> int:
    try:
        try:
            arguments = command_line().parse_args(argv)  # --help and --version print, and raise SystemExit
            if arguments.command == "config":
                from keyvalue_provider.config_check import check

                return check(arguments, os.environ)
        finally:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the flush at exit fails again
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
    """Print why the input is refused, and return the exit code."""
    sys.stderr.write(f"keyvalue-inmemory: {error}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
