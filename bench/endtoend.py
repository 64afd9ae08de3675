"""The command `scripts/bench endtoend`.

It turns its options into a plan, measures the plan with `bench.run.plan.measure`, and writes run.json, a report and
plots. If a run is interrupted, the command still writes the rows measured so far, and marks the run as void.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from bench.load.outcome import LoadError
from bench.load.usage import UsageError
from bench.report.bars import missed
from bench.report.commands import RESULTS, add_threshold, write
from bench.report.comparison import say_changes
from bench.report.run_file import Run
from bench.report.tables import summary, terminal
from bench.run.experiments import EXPERIMENTS
from bench.run.plan import BESIDE_BEFORE, SUBJECTS, Plan, faults, measure, say, settings
from bench.run.processes import ProcessError, one_line
from bench.run.provenance import about, load_average
from bench.run.revision import commit_of, install
from bench.run.rows import Failure
from bench.run.scenarios import QUICK, SCENARIOS
from bench.run.stage import Extent
from bench.run.subjects import BARE, DIRECT, peer

__all__ = ["main"]


EPILOG = """\
scenarios:
{scenarios}

subjects:
  bare                 the bare responder: the upper limit for a provider written in Python
  direct, plain        our provider with metrics, on its direct path and on its plain path
  every --peer NAME    another provider

A scenario after whose description subjects are named chooses its own.

peers:
  COMMAND runs in this repository's folder with an empty environment. It can read host data in base64 from
  standard input. If a provider reads no host data, write {{nats}} and {{prefix}} in COMMAND. {{nats}} becomes the NATS
  server's URL, and {{prefix}} becomes LATTICE.PROVIDER_KEY. COMMAND is split into words by a shell's rules, so
  quote a path that contains a space.

  A peer gets host data without options, so list-keys is compared only if its pages are as large as ours.
  If a peer fails in a case, the remaining rounds of that case are skipped for the peer. If the peer's process ends,
  all its remaining cases are skipped. The report lists the skipped cases.

examples:
  scripts/bench endtoend --quick                       about a minute, for a first look
  scripts/bench endtoend                               all scenarios: about half an hour on a quiet machine
  scripts/bench endtoend --scenario in-flight --scenario values
  scripts/bench endtoend --scenario batch --scenario increment --scenario expiry --scenario watch --subject direct
  scripts/bench endtoend --peer redis=/opt/keyvalue-redis --compare bench/results/OLD/run.json
  scripts/bench endtoend --against REVISION            only the scenario against: calls beside an earlier revision
  scripts/bench start --against REVISION               starts beside those of an earlier revision

exit status:
  0      success
  1      an answer was wrong, a peer failed, the run is void, something is slower than in the --compare run,
         or --strict is set and a bar (a performance goal) is missed with its whole interval
  2      wrong arguments, or the run and the --compare run have nothing in common
  130    Ctrl-C

If a run ends early, the rows measured so far are still written, and the run is marked as void.
"""


def parser() -> argparse.ArgumentParser:
    names = {
        name: scenario.text + f" [{', '.join(subject.name for subject in scenario.subjects)}]" * bool(scenario.subjects)
        for name, scenario in SCENARIOS.items()
    }
    parser = argparse.ArgumentParser(
        prog="scripts/bench endtoend",
        description="Compare providers under load with a bare responder, and write a report to bench/results/.",
        epilog=EPILOG.format(scenarios="\n".join(f"  {name:<12} {text}" for name, text in names.items())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--scenario", action="append", choices=list(SCENARIOS), metavar="NAME", help="run only this one; repeatable")
    add("--subject", action="append", metavar="NAME", help="measure only this one, direct or plain; repeatable")
    add(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another provider, launched as a host launches it; see below",
    )
    add(
        "--against",
        metavar="REVISION",
        help="install an earlier revision of this provider, and measure both in turns (scenarios against, start)",
    )
    add("--rounds", type=int, metavar="N", help="number of rounds (default 5)")
    add("--seconds", type=float, metavar="S", help="duration of each load (default 1, quick 0.5)")
    add("--quick", action="store_true", help="few cases, short loads, a summary of ten lines: about a minute")
    add("--large", action="store_true", help="continue growth to 10^7 keys: needs 4 GB of memory and takes longer")
    add("--output", type=Path, metavar="FOLDER", help="for run.json, report.md and plots (default bench/results/TIME)")
    add("--compare", type=Path, metavar="OLD.json", help="list what got slower since an older run")
    add("--strict", action="store_true", help="exit with status 1 if a bar (a performance goal) is missed")
    add_threshold(parser)
    return parser


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan that the options describe.

    :raises ValueError: an option is out of range or unknown
    """
    quick = options.quick
    rounds = 5 if options.rounds is None else options.rounds
    seconds = (0.5 if quick else 1.0) if options.seconds is None else options.seconds
    if rounds < 1 or seconds < 0.05:
        raise ValueError(f"--rounds is {rounds} and --seconds {seconds}; the minimum is 1 and 0.05")
    named = options.subject or [subject.name for subject in SUBJECTS if not quick or subject is DIRECT]
    if unknown := set(named) - {subject.name for subject in SUBJECTS}:
        raise ValueError(f"--subject: found {', '.join(sorted(unknown))}, allowed direct, plain")
    subjects = [subject for subject in SUBJECTS if subject is BARE or subject.name in named]
    subjects += [peer(text) for text in options.peer]
    if len({subject.name for subject in subjects}) < len(subjects):
        raise ValueError("--peer: a name is used twice")
    commit = commit_of(options.against) if options.against else ""
    scenarios = options.scenario or (["against"] if commit else _default_scenarios(quick))
    if "against" in scenarios and not commit:
        raise ValueError("--scenario against needs --against REVISION")
    if commit and not {*scenarios} & {*BESIDE_BEFORE}:
        raise ValueError(f"--against: found --scenario {', '.join(scenarios)}, allowed {' or '.join(BESIDE_BEFORE)}")
    last = 5 if quick else 7 if options.large else 6
    growth_keys = [10**power for power in range(3, last + 1)]
    extent = Extent(rounds, seconds, growth_keys, 100_000 if quick else 1_000_000, 200 if quick else 2_000)
    return Plan(scenarios, subjects, quick, extent, install(commit) if commit else None)


def _default_scenarios(is_quick: bool) -> list[str]:
    """Return the scenarios of a run that names none. A quick run leaves out scenarios that none of its cases is in."""
    if not is_quick:
        return [name for name, scenario in SCENARIOS.items() if not scenario.is_optional]
    return [
        name
        for name, one in SCENARIOS.items()
        if name not in EXPERIMENTS and not one.subjects and {*one.cases} & {*QUICK}
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit status."""
    options = parser().parse_args(arguments)
    try:
        plan = plan_of(options)
        old = Run.load(options.compare) if options.compare else None
        run = Run({**about(), "settings": settings(plan), "load_before": load_average()})
        folder = options.output or RESULTS / str(run.about["when"]).replace(":", "").replace("+0000", "Z")
        is_new = make(folder)
    except (ValueError, OSError) as error:
        parser().error(str(error))
    except ProcessError as error:
        say(f"bench: {error}")
        return 1
    failures: list[Failure] = []
    began_s = time.monotonic()
    # `Stage` stops its processes when SystemExit leaves its `with` block.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    early = collect(run, plan, failures)
    if not run.rows:
        say(f"bench: {early.why if early else 'no scenario fits'}; nothing was measured, so no files are written")
        if is_new:
            folder.rmdir()
        return early.status if early else 1
    after = {"load_after": load_average(), "minutes": round((time.monotonic() - began_s) / 60, 1)}
    failed = [asdict(failure) for failure in failures]
    void = [*([early.why] if early else []), *faults(run.rows)]
    run = Run({**run.about, **after, "failed": failed}, run.rows, void)
    write(run, folder)
    print(summary(run) if options.quick else terminal(run))
    return finish(run, folder, options, failures, early, old)


def finish(
    run: Run,
    folder: Path,
    options: argparse.Namespace,
    failures: Sequence[Failure],
    early: EarlyEnd | None,
    old: Run | None,
) -> int:
    """Print where the files are, and everything that is wrong with a run. Return the exit status of the command."""
    say(f"written to {folder}: run.json, report.md, plots")
    for fault in run.void:
        say(f"bench: this run is void: {fault}")
    for failure in failures:
        say(f"bench: {failure.text}")
    if early:
        return early.status
    bars = missed(run.rows) if options.strict else []
    for bar in bars:
        say(f"bench: bar missed: {bar}")
    compared = say_changes(old, run, options.threshold) if old else 0
    return compared or int(bool(run.void or failures or bars))


def make(folder: Path) -> bool:
    """Create the folder for the results before anything is measured. Return True if it is new.

    :raises ValueError: the folder is not writable
    """
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"--output: {folder} is not a writable folder: {error.strerror}") from None
    return is_new


class EarlyEnd(NamedTuple):
    """The reason why a run ended early, and the exit status of the command."""

    why: str
    status: int


def collect(run: Run, plan: Plan, failures: list[Failure]) -> EarlyEnd | None:
    """Measure the plan, and append each row to the run.

    Return None if the run is complete. Otherwise, return the reason why it ended early.
    """
    try:
        with closing(measure(plan, failures)) as rows:
            for row in rows:
                run.rows.append(row)
    except (LoadError, ProcessError, UsageError) as error:
        say(f"bench: {error}")
        return EarlyEnd(f"it ended early: {one_line(str(error))}", 1)
    except KeyboardInterrupt:
        return EarlyEnd("stopped", 128 + signal.SIGINT)
    except SystemExit:  # raised by the handler of SIGTERM
        return EarlyEnd("stopped", 128 + signal.SIGTERM)
    return None


if __name__ == "__main__":
    sys.exit(main())
