"""The command line of `scripts/bench`.

Each command is imported only when it runs, so `--help` works without any installed package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

__all__ = ["main"]

USAGE = """\
usage: scripts/bench [COMMAND] [OPTIONS]

  endtoend    compare providers under load with a bare responder, through a real NATS server. It prints tables, and
              writes JSON, a report and a picture to bench/results/. With --quick it takes about a minute
  start       endtoend --scenario start: the time from the launch of a provider to its first answer
  redis       endtoend --scenario redis: redis-benchmark against redis-server and against a provider
  report      print a run; --markdown puts it into docs/performance.md
  compare     report --compare: compare OLD.json [NEW.json] lists the cases that got slower between two runs
  micro       run pytest-benchmark on the direct path without a socket; OPTIONS go to pytest, for example -k NAME
  engine      compare the store with a dict under one lock, and say where its time goes

scripts/bench COMMAND --help lists the options of a command. Without COMMAND, endtoend runs with OPTIONS. For example:

  scripts/bench --quick                                  for a first look
  scripts/bench --output bench/results/before            before a change, on a machine that runs nothing else
  scripts/bench --compare bench/results/before/run.json  after the change
  scripts/bench --against REVISION                       CPU time per call beside an earlier revision, in turns
  scripts/bench --scenario all --against bf582ab         every bar in one run: half an hour

Speed depends on the machine, so quote ratios to the bare responder. docs/performance.md explains them.
"""
HELP = ("-h", "--help")
#: The module of each command, and the options that it always gets.
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "endtoend": ("bench.endtoend", ()),
    "start": ("bench.endtoend", ("--scenario", "start")),
    "redis": ("bench.endtoend", ("--scenario", "redis")),
    "report": ("bench.report.commands", ()),
    "compare": ("bench.report.commands", ("--compare",)),
    "micro": ("pytest", ("bench/micro", "--benchmark-columns=min,median,max,rounds", "--benchmark-sort=name")),
    "engine": ("bench.micro.engine", ()),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name. Return its exit status."""
    command, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in HELP:
        print(USAGE, end="")
        return 0
    if command.startswith("-"):
        command, options = "endtoend", [command, *options]
    if command not in COMMANDS:
        print(f"scripts/bench: unknown command {command!r}\n\n{USAGE}", file=sys.stderr, end="")
        return 2
    module, always = COMMANDS[command]
    return int(import_module(module).main([*(always if {*options}.isdisjoint(HELP) else ()), *options]))


if __name__ == "__main__":
    sys.exit(main())
