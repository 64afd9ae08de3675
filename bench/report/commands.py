"""The command `scripts/bench report`, which reads a run from run.json, and the files that `bench.endtoend` writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report.bars import standings, unmeasured
from bench.report.comparison import say_changes, share
from bench.report.tables import fill, markdown, terminal
from bench.run import ROOT
from bench.run.results import RUN_FILE, Run

__all__ = ["RESULTS", "add_threshold", "main", "write"]

RESULTS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"


def write(run: Run, folder: Path) -> None:
    """Write run.json, report.md and the overview picture to a folder."""
    from bench.report.plots import draw_overview  # this import takes a second

    run.save(folder / RUN_FILE)
    picture = draw_overview(run, folder)
    links = f"![{picture.stem}]({picture.name})\n" if picture else ""
    (folder / "report.md").write_text(f"# Run of {run.about['when']}\n\n{markdown(run)}\n{links}")


def put(run: Run, document: Path, is_forced: bool) -> int:
    """Write a run into a document, and the picture beside it, if the run is valid and complete, or if forced.

    Return the exit status.

    :raises ValueError: the document does not have the two marks between which the run belongs
    """
    from bench.report.plots import draw_overview

    reasons = [f"the run is void: {fault}" for fault in run.void]
    if bars := unmeasured(standings(run.rows)):
        reasons.append(f"bars not measured: {len(bars)}, the first is {bars[0].scenario}: {bars[0].what}")
    if reasons and not is_forced:
        reasons.append(f"{document} is unchanged; use --force to write the run into it anyway")
        print("\n".join(f"bench: {reason}" for reason in reasons), file=sys.stderr)
        return 1
    document.write_text(fill(document.read_text(), markdown(run)))
    draw_overview(run, document.parent)
    print(f"{document} now holds the run of {run.about['when']}")
    return 0


def load(path: Path | None) -> Run:
    """Read a run, by default the newest in bench/results. Raise ValueError if there is none."""
    if path is None:
        path = max(RESULTS.glob(f"*/{RUN_FILE}"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if path is None:
        raise ValueError(f"no run in {RESULTS}; make one with `scripts/bench endtoend`")
    return Run.load(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `report`. Return its exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench report",
        description="Print a run, write it into a document, or compare it with an older run.",
        epilog="exit status: 0 success; 1 the run is void or incomplete, so it was not written into the document, or "
        "something got slower, or a compared run is void; 2 a run is unreadable, or the runs have nothing in common",
    )
    add = parser.add_argument
    add("run", nargs="?", type=Path, help="a run.json (default: the newest in bench/results)")
    text = "write the run between the two marks in FILE (default docs/performance.md), and its picture beside FILE"
    add("--markdown", nargs="?", const=DOCUMENT, type=Path, metavar="FILE", help=text)
    add("--force", action="store_true", help="for --markdown: write the run even if it is void or incomplete")
    text = "list what got slower since an older run: by more than the threshold, with the whole interval"
    add("--compare", type=Path, metavar="OLD.json", help=text)
    add_threshold(parser)
    options = parser.parse_args(arguments)
    try:
        run = load(options.run)
        if options.markdown:
            return put(run, options.markdown, options.force)
        old = Run.load(options.compare) if options.compare else None
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if old:
        return say_changes(old, run, options.threshold)
    print(terminal(run))
    return 0


def add_threshold(parser: argparse.ArgumentParser) -> None:
    """Add the option --threshold to the parser of a command that compares runs."""
    text = "for comparisons: ignore smaller slowdowns; 0.1 or 10%% (the default)"
    parser.add_argument("--threshold", type=share, default=0.1, metavar="SHARE", help=text)
