"""The commands `scripts/bench report` and `scripts/bench compare`, and the files of a run.

`bench.__main__` calls `main` and `compare_main`. They read one or two runs from run.json, and print a report, write it
into a document, draw plots, or list what got slower. `bench.endtoend` calls `write` after a run, to write run.json, the
report and the plots to the folder of the run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report.bars import standings, unmeasured
from bench.report.comparison import say_changes, share
from bench.report.markdown import fill, markdown
from bench.report.run_file import RUN_FILE, Run
from bench.run.paths import ROOT

__all__ = ["RESULTS", "compare_main", "main", "write"]

RESULTS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"


def unfit(run: Run) -> list[str]:
    """Return the reasons against writing a run into a document: it is void, or it did not measure every bar."""
    reasons = [f"the run is void: {fault}" for fault in run.void]
    if bars := unmeasured(standings(run.rows)):
        reasons.append(f"bars not measured: {len(bars)}, the first is {bars[0]}")
    return reasons


def write(run: Run, folder: Path) -> str:
    """Write run.json, report.md and the plots to a folder. Return the text to print."""
    from bench.report.plots import plot  # this import takes a second

    run.save(folder / RUN_FILE)
    pictures = plot(run, folder)
    text = markdown(run)
    links = "".join(f"![{path.stem}]({path.name})\n" for path in pictures)
    (folder / "report.md").write_text(f"# Run of {run.about['when']}\n\n{text}\n{links}")
    return f"{text}\nwritten to {folder}"


def put(run: Run, document: Path, is_forced: bool) -> int:
    """Write a run into a document if the run is valid and complete, or if forced. Return the exit status.

    :raises ValueError: the document does not have the two marks between which the run belongs
    """
    reasons = [] if is_forced else unfit(run)
    if reasons:
        for reason in reasons:
            print(f"bench: {reason}", file=sys.stderr)
        print(f"bench: {document} is unchanged; use --force to write the run into it anyway", file=sys.stderr)
        return 1
    document.write_text(fill(document.read_text(), markdown(run)))
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
        description="Print a run as Markdown, write it into a document, draw its plots, or compare it to an older run.",
        epilog="exit status: 0 success; 1 the run is void or incomplete, so it was not written into the document, "
        "or something got slower; 2 a run is unreadable, or the runs have nothing in common",
    )
    parser.add_argument("run", nargs="?", type=Path, help="a run.json (default: the newest in bench/results)")
    parser.add_argument(
        "--markdown",
        nargs="?",
        const=DOCUMENT,
        type=Path,
        metavar="FILE",
        help="write the run between the two marks in FILE (default docs/performance.md)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="for --markdown: write the run even if it is void or did not measure every bar",
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the plots again, into FOLDER")
    _add_compare(parser)
    options = parser.parse_args(arguments)
    try:
        run = Run.load(options.run or newest())
        if options.compare:
            return say_changes(Run.load(options.compare), run, options.threshold)
        if options.plots:
            from bench.report.plots import plot

            for path in plot(run, options.plots):
                print(path)
        elif options.markdown:
            return put(run, options.markdown, options.force)
        else:
            print(markdown(run))
    except (OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def compare_main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `compare`. Return its exit status, which is 1 if something got slower."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench compare",
        description="List what got slower from one run to another by more than the threshold and the spread.",
        epilog="exit status: 0 nothing got slower; 1 something got slower; "
        "2 a run is unreadable, or the runs have nothing in common",
    )
    parser.add_argument("old", type=Path, help="run.json of the older run")
    parser.add_argument(
        "new", nargs="?", type=Path, help="run.json of the newer run (default: the newest in bench/results)"
    )
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.1,
        metavar="SHARE",
        help="ignore smaller slowdowns; 0.1 or 10%% (the default)",
    )
    options = parser.parse_args(arguments)
    return main(
        [str(options.new)] * bool(options.new) + ["--compare", str(options.old), "--threshold", str(options.threshold)]
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="list what got slower since an older run")
    parser.add_argument(
        "--threshold",
        type=share,
        default=0.1,
        metavar="SHARE",
        help="for --compare: ignore smaller slowdowns; 0.1 or 10%% (the default)",
    )
