"""The command `scripts/bench endtoend`.

It turns its options into a plan, measures the plan with `bench.run.plan.measure`, and writes run.json and a report. If
a run is interrupted, the command still writes the rows measured so far, and marks the run as void.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from os import getloadavg
from pathlib import Path
from tempfile import TemporaryFile

from bench.report.bars import faults, unmet
from bench.report.commands import RESULTS, add_threshold, write
from bench.report.comparison import say_changes
from bench.report.tables import summary, terminal
from bench.run.experiments import EXPERIMENTS
from bench.run.plan import MEASUREMENT_ERRORS, SUBJECTS, Plan, measure, say
from bench.run.processes import ProcessError, one_line
from bench.run.provenance import about
from bench.run.results import Failure, Run
from bench.run.revision import commit_of, install
from bench.run.scenarios import QUICK, SCENARIOS
from bench.run.stage import Extent
from bench.run.subjects import BARE, BEFORE, peer

__all__ = ["main"]

EPILOG = """\
scenarios, with the subjects of those that choose their own:
{scenarios}

subjects:
  bare is the bare responder, which is the upper limit for a provider written in Python. direct and plain are our
  provider with metrics, on its direct path and on its plain path. docs/performance.md explains the others.

peers:
  COMMAND, split by a shell's rules, runs in this repository's folder with an empty environment. It can read host
  data in base64 from standard input. If a provider reads no host data, write {{nats}} and {{prefix}} in COMMAND, for
  the NATS server's URL and for LATTICE.PROVIDER_KEY. A peer gets host data without options, so list-keys is
  compared only if its pages are as large as ours. If a peer fails in a case, the remaining rounds of that case are
  skipped for the peer; if its process ends, all its cases. The report lists them.

examples:
  scripts/bench endtoend --scenario batch --scenario increment --subject direct
  scripts/bench endtoend --peer redis=/opt/keyvalue-redis --compare bench/results/OLD/run.json
  scripts/bench start --against REVISION               starts beside those of an earlier revision

exit status:
  0      success
  1      an answer was wrong, a peer failed, the run is void, something is slower than in the --compare run, or
         --strict is set and a bar (a performance goal) is missed with its whole interval, or cannot be judged
  2      wrong arguments, or the run and the --compare run have nothing in common
  130    Ctrl-C; the rows measured so far are written as a void run
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    scenarios = (
        f"  {name:<12} {scenario.text}" + f" [{', '.join(scenario.subjects)}]" * bool(scenario.subjects)
        for name, scenario in SCENARIOS.items()
    )
    parser = argparse.ArgumentParser(
        prog="scripts/bench endtoend",
        description="Compare providers under load with a bare responder, and write a report to bench/results/.",
        epilog=EPILOG.format(scenarios="\n".join(scenarios)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    text = "run only this one; repeatable; all: every scenario, also with --against"
    add("--scenario", action="append", choices=[*SCENARIOS, "all"], metavar="NAME", help=text)
    add("--subject", action="append", choices=("direct", "plain"), help="measure only this one; repeatable")
    text = "another provider, launched as a host launches it; see below"
    add("--peer", action="append", default=[], metavar="NAME=COMMAND", help=text)
    text = "install an earlier revision of this provider, and measure both in turns (scenarios against, start)"
    add("--against", metavar="REVISION", help=text)
    add("--rounds", type=int, metavar="N", help="number of rounds (default 7, quick 5)")
    add("--seconds", type=float, default=0.5, metavar="S", help="duration of each load (default 0.5)")
    add("--quick", action="store_true", help="few cases, short loads, a summary of ten lines: about a minute")
    add("--large", action="store_true", help="continue growth to 10^7 keys: needs 4 GB of memory and takes longer")
    text = "for run.json, report.md and overview.png (default bench/results/TIME)"
    add("--output", type=Path, metavar="FOLDER", help=text)
    add("--compare", type=Path, metavar="OLD.json", help="list what got slower since an older run")
    add("--strict", action="store_true", help="exit with status 1 if a bar (a performance goal) is not met")
    add_threshold(parser)
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan that the options describe.

    :raises ValueError: an option is out of range or unknown
    :raises ProcessError: the revision of --against cannot be installed
    """
    quick, seconds = options.quick, options.seconds
    rounds = (5 if quick else 7) if options.rounds is None else options.rounds
    if rounds < 1 or seconds < 0.05:
        raise ValueError(f"--rounds is {rounds} and --seconds {seconds}; the minimum is 1 and 0.05")
    named = options.subject or (["direct"] if quick else ["direct", "plain"])
    subjects = [subject for subject in SUBJECTS if subject is BARE or subject.name in named]
    subjects += [peer(text) for text in options.peer]
    if len({subject.name for subject in subjects}) < len(subjects):
        raise ValueError("--peer: a name is used twice")
    commit = commit_of(options.against) if options.against else ""
    scenarios = options.scenario or (["against"] if commit else ["all"])
    if "all" in scenarios:
        scenarios = [name for name in SCENARIOS if is_in_all(name, quick, commit)]
    if "against" in scenarios and not commit:
        raise ValueError("--scenario against needs --against REVISION")
    beside = [name for name, scenario in SCENARIOS.items() if BEFORE in scenario.subjects]
    if commit and not {*scenarios} & {*beside}:
        raise ValueError(f"--against: found --scenario {', '.join(scenarios)}, allowed {' or '.join(beside)}")
    last = 5 if quick else 7 if options.large else 6
    growth_keys = [10**power for power in (3, 5, 6, 7) if power <= last]
    extent = Extent(rounds, seconds, growth_keys, 100_000 if quick else 1_000_000, 200 if quick else 2_000)
    return Plan(scenarios, subjects, quick, extent, install(commit) if commit else None)


def is_in_all(name: str, quick: bool, commit: str) -> bool:
    """Return True for a scenario of a run of all. A quick run has only scenarios with one of its cases."""
    scenario = SCENARIOS[name]
    is_long = name in EXPERIMENTS or scenario.subjects or {*scenario.cases}.isdisjoint(QUICK)
    return bool(commit or not scenario.is_optional) and not (quick and is_long)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit status."""
    options = parser().parse_args(arguments)
    try:
        plan = plan_of(options)
        old = Run.load(options.compare) if options.compare else None
        run = Run({**about(), "settings": plan.settings, "load_before": f"{getloadavg()[0]:.2f}"})
        folder = options.output or RESULTS / str(run.about["when"]).replace(":", "").replace("+0000", "Z")
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()  # so that nothing is measured in vain
    except (ValueError, OSError) as error:
        parser().error(str(error))
    except ProcessError as error:
        say(f"bench: {error}")
        return 1
    failures: list[Failure] = []
    began_s = time.monotonic()
    # `Stage` stops its processes when SystemExit leaves its `with` block.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    status = collect(run, plan, failures)
    if not run.rows:
        say(f"bench: {run.void[0] if run.void else 'no scenario fits'}; nothing was measured, so no files are written")
        if is_new:
            folder.rmdir()
        return status or 1
    run.void.extend(faults(run.rows))
    after = {"load_after": f"{getloadavg()[0]:.2f}", "minutes": round((time.monotonic() - began_s) / 60, 1)}
    run = replace(run, about={**run.about, **after, "failed": [asdict(failure) for failure in failures]})
    write(run, folder)
    print(summary(run) if options.quick else terminal(run))
    say(f"written to {folder}: run.json, report.md")
    wrong = [failure.text for failure in failures] + (unmet(run.rows) if options.strict else [])
    for text in wrong:
        say(f"bench: {text}")
    compared = say_changes(old, run, options.threshold) if old and not status else 0
    return status or compared or int(bool(wrong or run.void))


def collect(run: Run, plan: Plan, failures: list[Failure]) -> int:
    """Measure the plan, and append each row to the run. If it ends early, the run becomes void.

    Return the exit status of the command: 0 if the run is complete.
    """
    try:
        with closing(measure(plan, failures)) as rows:
            for row in rows:
                run.rows.append(row)
    except MEASUREMENT_ERRORS as error:
        run.void.append(f"a scenario failed: {one_line(str(error))}")
        return 1
    except (KeyboardInterrupt, SystemExit) as error:  # the handler of SIGTERM raises SystemExit
        run.void.append("stopped")
        return 128 + (signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
    return 0
