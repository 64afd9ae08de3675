"""A run as tables: for the terminal, in at most `WIDTH` columns, and as Markdown for documents. All functions are pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import NamedTuple

from bench.report.bars import standings, unmeasured
from bench.report.figures import FIGURES, grouped, interval, over_bare, values_of
from bench.report.run_file import Run
from bench.run.rows import REFERENCE, Failure, Row
from bench.run.scenarios import SCENARIOS

__all__ = ["BEGIN", "END", "WIDTH", "fill", "markdown", "summary", "terminal"]

BEGIN, END = "<!-- run: begin -->", "<!-- run: end -->"
WIDTH = 100


class ReportTable(NamedTuple):
    """A table. Each row has a name, under which rows with the same name are grouped, and a cell for each column."""

    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


def markdown(run: Run) -> str:
    """Format a run as Markdown."""
    parts = ["\n".join(f"- {line}" for line in about_lines(run))]
    parts += [f"**This run is void: {fault}.**" for fault in run.void]
    for table in tables(run):
        lines = [f"| case | {' | '.join(table.columns)} |", "|---|---|" + "---:|" * (len(table.columns) - 1)]
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in table.rows]
        parts += [f"### {table.title}", *filter(None, [table.text]), "\n".join(lines)]
    return "\n\n".join((*parts, *unmeasured_lines(run))) + "\n"


def terminal(run: Run) -> str:
    """Format a run for a terminal. Columns that do not fit are left out; figures are ordered by importance."""
    lines = [line for about in about_lines(run) for line in wrap(about, WIDTH)]
    for table in tables(run):
        lines += ["", *wrap(f"{table.title}: {table.text}" if table.text else table.title, WIDTH)]
        columns = [[title, *(cells[place] for _, cells in table.rows)] for place, title in enumerate(table.columns)]
        while sum(widths := [max(map(len, column)) for column in columns]) + 2 * len(widths) > WIDTH:
            columns.pop()
        is_grouped = table.columns[0] == "subject"
        names = ["", *(name for name, _ in table.rows)]
        for name, before, cells in zip(names, ["", *names], zip(*columns, strict=True), strict=False):
            if is_grouped:
                lines += wrap(name, WIDTH) * (name != before)
                lines.append("  " + _line(cells, widths))
            else:
                room = WIDTH - sum(widths) - 2 * len(widths)
                first, *more = wrap(name, room) or [""]
                lines += [f"{first:<{room}}  {_line(cells, widths)}".rstrip(), *(f"  {line}" for line in more)]
    return "\n".join((*lines, "", *unmeasured_lines(run, is_short=True)))


def summary(run: Run) -> str:
    """Format a quick run in about ten lines: our provider beside the limit, the bars, and what was not measured."""
    found = [standing for standing in standings(run.rows) if standing.found]
    others = [name for name in run.about["settings"]["subjects"] if name not in (REFERENCE, "direct")]
    rows = [
        ["case", "limit/s", "direct/s", "over limit", "p50 us", "CPU us", "bars", *(f"{name}/s" for name in others)]
    ]
    once = {(row.case, row.subject, row.round): row for row in run.rows}.values()
    for case, here in grouped(once, lambda row: row.case):
        if ratio := over_bare(here, "calls_per_s", case, "direct"):
            verdicts = {standing.verdict for standing in found if standing.bar.case == case}
            worst = next((one for one in ("missed", "unclear", "ok") if one in verdicts), "")
            cells = [
                _cell(here, REFERENCE, "calls_per_s"),
                _cell(here, "direct", "calls_per_s"),
                interval(ratio).text(),
            ]
            cells += [_cell(here, "direct", "p50_us"), _cell(here, "direct", "provider_cpu_us"), worst]
            rows.append([case, *cells, *(_cell(here, name, "calls_per_s") for name in others)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    bad = [one for one in found if one.verdict != "ok"]
    lines = [about_lines(run)[0], *(_line(row, widths) for row in rows)]
    lines.append(f"bars met: {len(found) - len(bad)} of {len(found)} measured")
    lines += [f"  {one.verdict}: {one.what}: {one.cells[1]}, allowed {one.cells[2]}" for one in bad]
    return "\n".join((*lines, *unmeasured_lines(run, is_short=True)))


def tables(run: Run) -> Iterator[ReportTable]:
    """Yield the tables of a run: failures, bars, and a table for each scenario."""
    if failed := run.about.get("failed"):
        text = "each peer skipped its remaining rounds of the case in which it failed"
        yield ReportTable(
            "failures", text, ["error"], [(fields["case"], [Failure(**fields).text]) for fields in failed]
        )
    measured = [standing for standing in standings(run.rows) if standing.found]
    if measured:
        bars = [(standing.what, standing.cells[1:]) for standing in measured]
        yield ReportTable("bars", "", ["found", "limit", "verdict"], bars)
    for name, rows in grouped(run.rows, lambda row: row.scenario):
        if name in SCENARIOS:
            yield _scenario_table(name, rows)


def _scenario_table(name: str, rows: Sequence[Row]) -> ReportTable:
    """Return the table of a scenario: a row for each case and subject, with medians, and ratios if there are any."""
    figures = [figure for figure in FIGURES if any(figure in row.figures for row in rows)]
    if all(row.figures.get("keys_per_s") == row.figures.get("calls_per_s") for row in rows):
        figures = [figure for figure in figures if figure != "keys_per_s"]
    has_ratios = any(row.subject == REFERENCE for row in rows)
    lines = []
    for case, here in grouped(rows, lambda row: row.case):
        for subject, own in grouped(sorted(here, key=lambda row: row.subject != REFERENCE), lambda row: row.subject):
            cells = [subject]
            if has_ratios:
                found = [] if subject == REFERENCE else over_bare(here, "calls_per_s", case, subject)
                cells.append(interval(found).text() if found else "")
            lines.append((case, [*cells, *(_cell(own, subject, figure) for figure in figures)]))
    titles = ["subject", *["calls/s over bare"] * has_ratios, *(FIGURES[figure].title for figure in figures)]
    return ReportTable(name, SCENARIOS[name].text, titles, lines)


def about_lines(run: Run) -> list[str]:
    """Return lines about the run: time, commit, rounds, machine, load and versions."""
    about, settings = run.about, run.about["settings"]
    changed = " with uncommitted changes" if about["commit"]["dirty"] else ""
    commit = f"commit {about['commit']['id'][:12]}{changed}"
    return [
        f"{about['when']}, {about.get('minutes', '?')} min, {commit}, {settings['rounds']} rounds of "
        f"{settings['seconds']:g} s",
        f"{about['machine']}, load average {about['load_before']} before, {about.get('load_after', '?')} after",
        ", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        *(f"subject {name}: {note}" for name, note in settings.get("notes", {}).items()),
    ]


def unmeasured_lines(run: Run, is_short: bool = False) -> list[str]:
    """Return a line for each scenario with bars that the run did not measure; if short, one line for all of them."""
    absent = list(grouped(unmeasured(standings(run.rows)), lambda standing: standing.scenario))
    if not absent:
        return []
    many = sum(len(bars) for _, bars in absent)
    if is_short:
        return wrap(f"not measured: {many} bars of {', '.join(name for name, _ in absent)}", WIDTH)
    lines = [f"- {name}: {bar.what}" for name, bars in absent for bar in bars]
    return [f"Bars that this run did not measure: {many}.", "\n".join(lines)]


def fill(document: str, text: str) -> str:
    """Return the document with `text` in place of everything between its two marks.

    >>> fill(f"a\\n{BEGIN}\\nold\\n{END}\\nb\\n", "new\\n")
    'a\\n<!-- run: begin -->\\nnew\\n<!-- run: end -->\\nb\\n'

    :raises ValueError: a mark is missing, repeated or out of order
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, behind = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before or END in behind:
        raise ValueError(f"the document has no place for the run: expected {BEGIN} and later {END}, each once")
    return f"{before}{BEGIN}\n{text}{END}{behind}"


def _cell(rows: Sequence[Row], subject: str, name: str) -> str:
    values, figure = values_of(rows, subject, name), FIGURES[name]
    return f"{interval(values).median * figure.scale:,.{figure.digits}f}" if values else ""


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join((first.strip().ljust(widths[0]), *others)).rstrip()
