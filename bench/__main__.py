"""The command line of `scripts/bench`.

Each command is imported only when it runs, so `--help` works without any installed package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

USAGE = """\
usage: scripts/bench [COMMAND] [OPTIONS]

  endtoend    compare providers under load with a bare responder, through a real NATS server.
              It writes JSON, a report and plots to bench/results/. With --quick it takes under a minute
  report      print a run as Markdown; --markdown puts it into docs/performance.md
  compare     list the cases that got slower between two runs; exit status 1 if there are any
  functions   run end-to-end calls under pytest-benchmark, one group per function; OPTIONS go to pytest
  micro       run pytest-benchmark on codec, frames, engine, pages, threads and watchers; OPTIONS go to pytest,
              for example -k NAME or --benchmark-json=FILE
  engine      compare the store with a dict under one lock: time per call and page, memory per key
  start       measure the time and the CPU time from the launch of a provider to its first answer
  redis       run redis-benchmark against redis-server and against a provider, in turns
  load        call a running provider and print JSON

scripts/bench COMMAND --help lists the options of a command. Without COMMAND, endtoend runs with OPTIONS.

For a first look:

  scripts/bench --quick

To measure batches, counters, deadlines and watchers, and compare them with their performance goals:

  scripts/bench endtoend --scenario batch --scenario increment --scenario expiry --scenario watch

To measure before and after a change, on a machine that runs nothing else:

  scripts/bench endtoend --output bench/results/before
  scripts/bench endtoend --compare bench/results/before/run.json

Speed depends on the machine. So quote a result as a ratio to the bare responder, with its spread.
docs/performance.md explains these ratios.
"""
HELP = ("-h", "--help")
COLUMNS = "--benchmark-columns=min,median,max,rounds"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name. Return its exit status."""
    command, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command.startswith("-") and command not in HELP:
        command, options = "endtoend", [command, *options]
    match command:
        case "endtoend":
            from bench.endtoend import main as run
        case "report":
            from bench.report.commands import main as run
        case "compare":
            from bench.report.commands import compare_main as run
        case "engine":
            from bench.micro.store_beside_dict import main as run
        case "start":
            from bench.run.startup import main as run
        case "redis":
            from bench.run.beside_redis import main as run
        case "load":
            from bench.load.generator_process import main as run
        case "micro" | "functions":
            import pytest

            path = "bench/micro" if command == "micro" else "bench/run/test_functions.py"
            return pytest.main([path, COLUMNS, "--benchmark-sort=name", *options])
        case _ if command in HELP:
            print(USAGE, end="")
            return 0
        case _:
            print(f"scripts/bench: unknown command {command!r}\n\n{USAGE}", file=sys.stderr, end="")
            return 2
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
