"""The commands `scripts/bench report` and `scripts/bench compare`, and the files of a run.

Both read runs from run.json. `bench.endtoend` calls `write` after a run, to write run.json, the report and the plots to
the folder of the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.report.bars import standings, unmeasured
from bench.report.comparison import say_changes, share
from bench.report.run_file import RUN_FILE, Run
from bench.report.tables import fill, markdown, terminal
from bench.run.paths import ROOT

__all__ = ["RESULTS", "add_threshold", "compare_main", "main", "write"]

RESULTS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"


def unfit(run: Run) -> list[str]:
    """Return the reasons against writing a run into a document: it is void, or it did not measure every bar."""
    reasons = [f"the run is void: {fault}" for fault in run.void]
    if bars := unmeasured(standings(run.rows)):
        reasons.append(f"bars not measured: {len(bars)}, the first is {bars[0].scenario}: {bars[0].what}")
    return reasons


def write(run: Run, folder: Path) -> None:
    """Write run.json, report.md and the plots to a folder."""
    from bench.report.plots import plot  # this import takes a second

    run.save(folder / RUN_FILE)
    links = "".join(f"![{path.stem}]({path.name})\n" for path in plot(run, folder))
    (folder / "report.md").write_text(f"# Run of {run.about['when']}\n\n{markdown(run)}\n{links}")


def put(run: Run, document: Path, is_forced: bool) -> int:
    """Write a run into a document if the run is valid and complete, or if forced. Return the exit status.

    The overview picture goes into the document's folder.

    :raises ValueError: the document does not have the two marks between which the run belongs
    """
    from bench.report.plots import PLOTS, plot

    if reasons := [] if is_forced else unfit(run):
        for reason in reasons:
            print(f"bench: {reason}", file=sys.stderr)
        print(f"bench: {document} is unchanged; use --force to write the run into it anyway", file=sys.stderr)
        return 1
    document.write_text(fill(document.read_text(), markdown(run)))
    plot(run, document.parent, {"overview": PLOTS["overview"]})
    print(f"{document} now holds the run of {run.about['when']}")
    return 0


def newest() -> Path:
    """Return the path of the newest run.json in bench/results.

    :raises ValueError: the folder has no run
    """
    found = list(RESULTS.glob(f"*/{RUN_FILE}"))
    if not found:
        raise ValueError(f"no run in {RESULTS}; make one with `scripts/bench endtoend`")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `report`. Return its exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench report",
        description="Print a run, write it into a document, or draw its plots again.",
        epilog="exit status: 0 success; 1 the run is void or incomplete, so it was not written into the document; "
        "2 the run is unreadable",
    )
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="a run.json (default: the newest in bench/results)")
    add(
        "--markdown",
        nargs="?",
        const=DOCUMENT,
        type=Path,
        metavar="FILE",
        help="write the run between the two marks in FILE (default docs/performance.md), and its picture beside FILE",
    )
    add("--force", action="store_true", help="for --markdown: write the run even if it is void or incomplete")
    add("--plots", type=Path, metavar="FOLDER", help="draw the plots again, into FOLDER")
    options = parser.parse_args(arguments)

    def act() -> int:
        run = Run.load(options.run or newest())
        if options.markdown:
            return put(run, options.markdown, options.force)
        if options.plots:
            write(run, options.plots)
        print(terminal(run))
        return 0

    return _status(act)


def compare_main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `compare`. Return its exit status, which is 1 if something got slower."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench compare",
        description="List what got slower from one run to another: by more than the threshold, with the whole interval.",
        epilog="exit status: 0 nothing got slower; 1 something got slower; "
        "2 a run is unreadable, or the runs have nothing in common",
    )
    parser.add_argument("old", type=Path, help="run.json of the older run")
    parser.add_argument("new", nargs="?", type=Path, help="run.json of the newer run (default: the newest)")
    add_threshold(parser)
    options = parser.parse_args(arguments)
    return _status(lambda: say_changes(Run.load(options.old), Run.load(options.new or newest()), options.threshold))


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Add the option --threshold to the parser of a command that compares runs."""
    text = "for comparisons: ignore smaller slowdowns; 0.1 or 10%% (the default)"
    parser.add_argument("--threshold", type=share, default=0.1, metavar="SHARE", help=text)


def _status(act: Callable[[], int]) -> int:
    """Return the status of a command, or 2 after printing that a file cannot be used."""
    try:
        return act()
    except (OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
