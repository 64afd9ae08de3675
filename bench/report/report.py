"""Reports: a run as Markdown, two runs compared. Reads and writes files; the tables themselves are pure functions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.report.bars import Standing, standings
from bench.report.figures import FIGURES, REFERENCE, Row, Run, Spread, grouped, ratios, spread
from bench.run.processes import ROOT
from bench.run.scenarios import SCENARIOS

__all__ = [
    "RESULTS",
    "Change",
    "Failure",
    "changes",
    "compared",
    "fill",
    "main",
    "markdown",
    "missed",
    "say_changes",
    "share",
    "write",
]

RESULTS = ROOT / "bench" / "results"
DOCUMENT = ROOT / "docs" / "performance.md"
RUN_FILE = "run.json"
BEGIN, END = "<!-- run: begin -->", "<!-- run: end -->"
RATIO_DIGITS = 2
NOTHING_IN_COMMON = 2


@dataclass(frozen=True, slots=True)
class Failure:
    """A case in which a peer gave nothing, and which is left out for it from then on; if `is_gone`, all its cases are."""

    subject: str
    case: str
    round: int
    why: str
    is_gone: bool

    def covers(self, subject: str, case: str) -> bool:
        """Whether a case is left out for a subject."""
        return subject == self.subject and (self.is_gone or case == self.case)

    @property
    def text(self) -> str:
        """One line."""
        left_out = "; all its cases are left out" if self.is_gone else ""
        return f"{self.subject}: {self.case}, round {self.round + 1}: {self.why}{left_out}"


def markdown(run: Run) -> str:
    """A run as Markdown: what it was made on, how the bars stand, a table for each scenario."""
    parts = ["\n".join(_about_lines(run))]
    if failed := run.about.get("failed"):
        lines = [f"- {Failure(**fields).text}" for fields in failed]
        parts.append("### Failed\n\nPeers, and what was left out for them from then on:\n\n" + "\n".join(lines))
    if run.void:
        parts.append("\n".join(f"**This run is void: {fault}.**" for fault in run.void))
    parts.append("### Bars\n\n" + "\n".join(_bar_lines(run.rows)))
    for scenario, rows in grouped(run.rows, lambda row: row.scenario):
        if scenario in SCENARIOS:
            parts.append(f"### {scenario}\n\n{SCENARIOS[scenario]}\n\n" + "\n".join(_scenario_lines(rows)))
    return "\n\n".join(parts) + "\n"


def fill(document: str, text: str) -> str:
    """The document with `text` between its two marks.

    >>> fill(f"a\\n{BEGIN}\\nold\\n{END}\\nb\\n", "new\\n")
    'a\\n<!-- run: begin -->\\nnew\\n<!-- run: end -->\\nb\\n'

    :raises ValueError: the marks are not there, once each and in order
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before or END in behind:
        raise ValueError(f"found no place for the run, expected {BEGIN} and behind it {END}, each once")
    return f"{before}{BEGIN}\n{text}{END}{behind}"


def _about_lines(run: Run) -> Iterator[str]:
    about = run.about
    machine, commit, settings = about["machine"], about["commit"], about["settings"]
    changed = ", with changes that are in no commit" if commit["changed"] else ""
    yield f"- {about['when']}, {about.get('minutes', '?')} minutes, commit `{commit['id'][:12]}`{changed}"
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    yield f"- {machine['processor']} ({machine['architecture']}), {machine['cores']} cores, {memory}, {machine['system']}"
    yield f"- load average {about['load_average_before']} before, {about.get('load_average_after', '?')} after"
    yield "- " + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield f"- {settings['rounds']} rounds, {settings['seconds']:g} s a load; subjects: {', '.join(settings['subjects'])}"


def _bar_lines(rows: Sequence[Row]) -> Iterator[str]:
    found = list(standings(rows))
    measured = [standing for standing in found if standing.found]
    if measured:
        yield "| bar | found | allowed | |"
        yield "|---|---|---|---|"
    for standing in measured:
        verdict = "ok" if standing.is_kept else "**missed**"
        yield f"| {standing.bar.what} | {' | '.join(standing.texts)} | {verdict} |"
    if absent := unmeasured(found):
        yield f"\n{len(absent)} of {len(found)} bars were not measured in this run:\n"
        yield from (f"- {what}" for what in absent)


def unmeasured(found: Iterable[Standing]) -> list[str]:
    """The bars that a run says nothing about."""
    return [standing.bar.what for standing in found if standing.found is None]


def unfit(run: Run) -> list[str]:
    """Why a run is none to put into a document: it is void, which it is too if it ended early, or says nothing about a bar."""
    reasons = [f"the run is void: {fault}" for fault in run.void]
    if bars := unmeasured(standings(run.rows)):
        reasons.append(f"{len(bars)} bars were not measured, the first: {bars[0]}")
    return reasons


def missed(rows: Sequence[Row]) -> list[str]:
    """The bars that a run does not keep, with what was found and what is allowed."""
    missing = (standing for standing in standings(rows) if standing.is_kept is False)
    return [f"{standing.bar.what}: found {', allowed '.join(standing.texts)}" for standing in missing]


def _scenario_lines(rows: Sequence[Row]) -> Iterator[str]:
    """One line for each case and subject: medians over the rounds, and ratios with their spread."""
    names = [name for name in FIGURES if _has(rows, name)]
    has_ratios = any(row.subject == REFERENCE for row in rows)
    titles = ["case", "subject", *(["calls/s of bare", "p50 of bare"] if has_ratios else [])]
    titles += [FIGURES[name].title for name in names]
    yield f"| {' | '.join(titles)} |"
    yield "|---|---|" + "---:|" * (len(titles) - 2)
    for case, here in grouped(rows, lambda row: row.case):
        for subject, own in grouped(sorted(here, key=lambda row: row.subject != REFERENCE), lambda row: row.subject):
            cells = [case, subject]
            if has_ratios:
                for name in ("calls_per_s", "p50_us"):
                    found = [] if subject == REFERENCE else ratios(here, subject, name)
                    cells.append(spread(found).text(RATIO_DIGITS) if found else "")
            for name in names:
                values = [row.figures[name] for row in own if name in row.figures]
                figure = FIGURES[name]
                cells.append(f"{spread(values).median * figure.scale:,.{figure.digits}f}" if values else "")
            yield f"| {' | '.join(cells)} |"


class Change(NamedTuple):
    """A figure of two runs: its spread then and now, over the bare responder's if `is_ratio`."""

    scenario: str
    case: str
    subject: str
    figure: str
    is_ratio: bool
    old: Spread
    new: Spread

    @property
    def worse(self) -> float:
        """By which share."""
        return worse_share(self.old.median, self.new.median, FIGURES[self.figure].better)

    @property
    def is_apart(self) -> bool:
        """Whether neither median lies in the other's range."""
        old, new = self.old, self.new
        return not old.min <= new.median <= old.max and not new.min <= old.median <= new.max

    @property
    def text(self) -> str:
        """One line."""
        figure = FIGURES[self.figure]
        digits, scale = (RATIO_DIGITS, 1.0) if self.is_ratio else (figure.digits, figure.scale)
        title = figure.title + (" of bare" if self.is_ratio else "")
        return (
            f"{self.scenario}: {self.case}: {self.subject}: {title}: {self.worse:.0%} worse: "
            f"{self.old.text(digits, scale)} -> {self.new.text(digits, scale)}"
        )


def worse_share(old: float, new: float, better: int) -> float:
    """By which share a figure got worse; negative where it got better.

    >>> worse_share(100.0, 80.0, better=1), worse_share(100.0, 125.0, better=-1)
    (0.25, 0.25)
    """
    was, now = (old, new) if better < 0 else (new, old)
    return now / was - 1 if was else 0.0


def compared(old: Run, new: Run) -> Iterator[Change]:
    """All figures that two runs can be compared by: of the same case and subject, where more is better or less is.

    Compared are the ratios to the bare responder where both runs have it, since those of two machines, or of one on two days, can be.
    """
    new_cases = _cases(new)
    for key, old_rows in _cases(old).items():
        new_rows = new_cases.get(key, [])
        for subject, own in grouped(old_rows, lambda row: row.subject):
            if subject == REFERENCE:
                continue
            for name in (name for name, figure in FIGURES.items() if figure.better and _has(own, name)):
                is_ratio = all(
                    any(row.subject == REFERENCE and name in row.figures for row in rows)
                    for rows in (old_rows, new_rows)
                )
                before, after = (_spread_of(rows, subject, name, is_ratio) for rows in (old_rows, new_rows))
                if before is not None and after is not None:
                    yield Change(*key, subject, name, is_ratio, before, after)


def changes(pairs: Iterable[Change], threshold: float) -> list[Change]:
    """What got worse by more than a share, and beyond the spread of both runs."""
    return [change for change in pairs if change.worse > threshold and change.is_apart]


def absent(old: Run, new: Run) -> list[str]:
    """What the old run alone has: subjects, scenarios, and of those that both have, cases."""
    subjects, scenarios = ({row.subject for row in new.rows}, {row.scenario for row in new.rows})
    there = {(row.scenario, row.case, row.subject) for row in new.rows}
    found = []
    for row in old.rows:
        if row.subject == REFERENCE or (row.scenario, row.case, row.subject) in there:
            continue
        if row.subject not in subjects:
            found.append(row.subject)
        elif row.scenario not in scenarios:
            found.append(row.scenario)
        else:
            found.append(f"{row.scenario}: {row.case}: {row.subject}")
    return list(dict.fromkeys(found))


def _has(rows: Sequence[Row], figure: str) -> bool:
    return any(figure in row.figures for row in rows)


def _cases(run: Run) -> dict[tuple[str, str], list[Row]]:
    return dict(grouped(run.rows, lambda row: (row.scenario, row.case)))


def _spread_of(rows: Sequence[Row], subject: str, name: str, is_ratio: bool) -> Spread | None:
    if is_ratio:
        values = ratios(rows, subject, name)
    else:
        values = [row.figures[name] for row in rows if row.subject == subject and name in row.figures]
    return spread(values) if values else None


def say_changes(old: Run, new: Run, threshold: float) -> int:
    """Print what got slower. Returns the exit status: 1 if anything did, 2 if there is nothing to compare."""
    pairs = list(compared(old, new))
    if not pairs:
        print(
            "found nothing in common: no case of a subject beside the bare responder is in both runs", file=sys.stderr
        )
        return NOTHING_IN_COMMON
    found = changes(pairs, threshold)
    if old.about["machine"] != new.about["machine"]:
        print("the machines differ: figures that are no ratios compare them, and not the code")
    for name, run in (("old", old), ("new", new)):
        for fault in run.void:
            print(f"the {name} run is void: {fault}")
    if alone := absent(old, new):
        print(f"only the old run has: {'; '.join(alone)}")
    for change in found:
        print(change.text)
    if not found:
        cases = {(change.scenario, change.case) for change in pairs}
        print(
            f"nothing got slower by more than {threshold:.0%} and beyond the spread, in {len(cases)} cases that both runs have"
        )
    return int(bool(found))


def share(text: str) -> float:
    """A share from text.

    >>> share("10%"), share("0.1")
    (0.1, 0.1)
    """
    value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= value < 10:
        raise ValueError(f"found {text}, allowed a share as 0.1 or 10%")
    return value


def write(run: Run, folder: Path) -> str:
    """Write run, report and plots into a folder; what to tell of it."""
    from bench.report.plots import plot  # it takes a second to import

    run.save(folder / RUN_FILE)
    pictures = plot(run, folder)
    text = markdown(run)
    links = "".join(f"![{path.stem}]({path.name})\n" for path in pictures)
    (folder / "report.md").write_text(f"# Run of {run.about['when']}\n\n{text}\n{links}")
    return f"{text}\nwritten to {folder}"


def put(run: Run, document: Path, is_forced: bool) -> int:
    """Put a run into a document, if it is fit for one or that is forced. Returns the exit status.

    :raises ValueError: the document has no place for it
    """
    reasons = [] if is_forced else unfit(run)
    if reasons:
        for reason in reasons:
            print(f"bench: {reason}", file=sys.stderr)
        print(f"bench: {document} is left as it is; --force fills it", file=sys.stderr)
        return 1
    document.write_text(fill(document.read_text(), markdown(run)))
    print(f"{document} holds the run of {run.about['when']}")
    return 0


def newest() -> Path:
    """The newest run in bench/results.

    :raises ValueError: there is none
    """
    found = list(RESULTS.glob(f"*/{RUN_FILE}"))
    if not found:
        raise ValueError(f"found no run in {RESULTS}: `scripts/bench endtoend` makes one")
    return max(found, key=lambda path: path.stat().st_mtime_ns)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `report`. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench report",
        description="Print a run as Markdown, put it into the document, or compare it.",
        epilog="exit status: 0; 1 if the run is none for a document, or something got slower; 2 a run cannot be read, or --compare found "
        "nothing in common",
    )
    parser.add_argument("run", nargs="?", type=Path, help="a run.json (default: the newest in bench/results)")
    parser.add_argument(
        "--markdown",
        nargs="?",
        const=DOCUMENT,
        type=Path,
        metavar="FILE",
        help="rewrite its part between the marks (default docs/performance.md)",
    )
    parser.add_argument(
        "--force", action="store_true", help="with --markdown: even if it is void, or says nothing about a bar"
    )
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw its plots anew, there")
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
    """The command `compare`. Returns the exit status: 1 where something got slower."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench compare",
        description="Say what got slower from one run to another: by more than the threshold, and beyond the spread of the rounds.",
        epilog="exit status: 0 nothing; 1 something got slower; 2 a run cannot be read, or the runs have nothing in common",
    )
    parser.add_argument("old", type=Path, help="run.json of then")
    parser.add_argument("new", nargs="?", type=Path, help="run.json of now (default: the newest in bench/results)")
    parser.add_argument("--threshold", type=share, default=0.1, metavar="SHARE", help="as 0.1 or 10%% (the default)")
    options = parser.parse_args(arguments)
    return main(
        [str(options.new)] * bool(options.new) + ["--compare", str(options.old), "--threshold", str(options.threshold)]
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="say what got slower than in an older run")
    parser.add_argument("--threshold", type=share, default=0.1, metavar="SHARE", help="as 0.1 or 10%% (the default)")
