"""The command line of `scripts/torture`. A command is imported only when it runs, so `--help` needs no packages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

__all__ = ["COMMANDS", "main"]

#: The module of each command, whose `main` takes the options and returns the exit status; and what the command does.
COMMANDS = {
    "hostile": (
        "tests.torture.hostile",
        "send every kind of call as fast as one connection can, beside half-open calls, unread answers and watchers;\n"
        "             check that memory stays in proportion to the keys, and that a careful caller gets its answers",
    ),
    "peer": (
        "tests.hostile.frames",
        "send raw frames with odd headers, subjects, lengths and order, on both paths;\n"
        "             check that the provider is not deaf, ends each call, and logs little",
    ),
    "redis": (
        "tests.torture.redis_inputs",
        "send a million inputs of any bytes, cut anywhere, to the Redis listener;\n"
        "             check that each is answered or refused, that others are served, and that memory stays bounded",
    ),
    "replicated": (
        "tests.torture.replicated",
        "break instances and servers of a replicated store while clients call;\n"
        "             check that an order of the calls explains every answer",
    ),
    "restart": (
        "tests.torture.restart",
        "kill the only instance of a replicated store under load, and start it again;\n"
        "             check that it serves soon, and that no acknowledged change is missing",
    ),
}
USAGE = """\
usage: scripts/torture COMMAND [OPTIONS]

  {commands}

scripts/torture COMMAND --help lists the options of a command. The exit status is 0 if the provider kept all bars, 1 if
it missed one, and 2 if the options are wrong. Ctrl-C ends a run, which then prints its figures so far.

For a first look:

  scripts/torture hostile --seconds 60 --seed 1
  scripts/torture peer --seconds 60 --seed 1
  scripts/torture redis --inputs 20000 --seed 1
  scripts/torture replicated --seconds 60 --seed 1
  scripts/torture restart --tries 10 --seed 1
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name. Return its exit status."""
    command, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    usage = USAGE.format(commands="\n  ".join(f"{name:10} {what}" for name, (_, what) in COMMANDS.items()))
    if command in ("-h", "--help"):
        print(usage, end="")
        return 0
    if command not in COMMANDS:
        print(f"scripts/torture: unknown command {command!r}\n\n{usage}", file=sys.stderr, end="")
        return 2
    status: int = import_module(COMMANDS[command][0]).main(options)
    return status


if __name__ == "__main__":
    logging.getLogger("keyvalue_transport").setLevel(logging.ERROR)  # faults end many connections
    sys.exit(main())
