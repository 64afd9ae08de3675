"""The commands of the benchmark suite. Each is imported when it is asked for, so that help needs nothing but Python."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

USAGE = """\
usage: scripts/bench [COMMAND] [OPTIONS]

  endtoend    providers under load beside a bare responder: a real NATS server, providers launched as a host does it, a load generator.
              Writes JSON, a report and plots to bench/results/. --quick takes under a minute
  report      a run as Markdown; --markdown puts it into docs/performance.md
  compare     what got slower from one run to another; exit status 1 if anything did
  functions   the same under pytest-benchmark, a group for each function; OPTIONS are pytest's
  micro       pytest-benchmark over codec, frames, engine, pages, threads, watchers; OPTIONS are pytest's,
              as -k NAME and --benchmark-json=FILE
  engine      the store beside a dict under one lock: time a call, a page, memory a key
  load        call a provider that runs already; prints JSON

scripts/bench COMMAND --help says what its options are. Without a COMMAND, OPTIONS are those of endtoend. A first look:

  scripts/bench --quick

What is not `store`, with its bars: batches, counters, deadlines, watchers:

  scripts/bench endtoend --scenario batch --scenario increment --scenario expiry --scenario watch

Before and after a change, on a quiet machine, without anything else that runs:

  scripts/bench endtoend --output bench/results/before
  scripts/bench endtoend --compare bench/results/before/run.json

Quote ratios to the bare responder with their spread, never a figure alone: docs/performance.md says how to read them.
"""
HELP = ("-h", "--help")
COLUMNS = "--benchmark-columns=min,median,max,rounds"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status."""
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
            print(f"scripts/bench: found the command {command!r}\n\n{USAGE}", file=sys.stderr, end="")
            return 2
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
