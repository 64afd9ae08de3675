"""A run as text: tables for the terminal and for documents, and the short summary of a quick run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap

from bench.report.bars import standings, unmeasured
from bench.report.figures import FIGURES, grouped, interval, over_bare, values_of
from bench.report.report_table import WIDTH, ReportTable
from bench.run.results import REFERENCE, Failure, Row, Run
from bench.run.scenarios import SCENARIOS

__all__ = ["BEGIN", "END", "fill", "markdown", "summary", "terminal"]

BEGIN, END = "<!-- run: begin -->", "<!-- run: end -->"


def markdown(run: Run) -> str:
    """Format a run as Markdown."""
    parts = ["\n".join(f"- {line}" for line in about_lines(run))]
    parts += [f"**This run is void: {fault}.**" for fault in run.void]
    for title, text, table in tables(run):
        parts += [f"### {title}", *filter(None, [text]), table.markdown()]
    absent = unmeasured(standings(run.rows))
    if absent:
        parts += [f"Bars that this run did not measure: {len(absent)}."]
        parts += ["\n".join(f"- {standing.scenario}: {standing.what}" for standing in absent)]
    return "\n\n".join(parts) + "\n"


def terminal(run: Run) -> str:
    """Format a run for a terminal. Figures are ordered by importance, because columns that do not fit are left out."""
    lines = [line for about in about_lines(run) for line in wrap(about, WIDTH)]
    for title, text, table in tables(run):
        lines += ["", *wrap(f"{title}: {text}" if text else title, WIDTH), *table.terminal()]
    return "\n".join((*lines, "", *unmeasured_lines(run)))


def summary(run: Run) -> str:
    """Format a quick run in about ten lines: our provider beside the limit, the bars, and what was not measured."""
    found = [standing for standing in standings(run.rows) if standing.found]
    others = [name for name in run.about["settings"]["subjects"] if name not in (REFERENCE, "direct")]
    rows = []
    once = {(row.case, row.subject, row.round): row for row in run.rows}.values()
    for case, here in grouped(once, lambda row: row.case):
        if ratio := over_bare(here, "calls_per_s", case, "direct"):
            verdicts = {standing.verdict for standing in found if standing.bar.case == case}
            worst = next((one for one in ("missed", "unclear", "ok") if one in verdicts), "")
            limit, direct, *calls = (_cell(here, name, "calls_per_s") for name in (REFERENCE, "direct", *others))
            more = (_cell(here, "direct", "p50_us"), _cell(here, "direct", "provider_cpu_us"), worst)
            rows.append((case, limit, direct, interval(ratio).text(), *more, *calls))
    titles = ("case", "limit/s", "direct/s", "over limit", "p50 us", "CPU us", "bars")
    bad = [one for one in found if one.verdict != "ok"]
    lines = [about_lines(run)[0], *ReportTable((*titles, *(f"{name}/s" for name in others)), rows).terminal()]
    lines.append(f"bars met: {len(found) - len(bad)} of {len(found)} measured")
    lines += [f"  {one.verdict}: {one.text}" for one in bad]
    return "\n".join((*lines, *unmeasured_lines(run)))


def tables(run: Run) -> Iterator[tuple[str, str, ReportTable]]:
    """Yield title, explanation and content of each table: failures, bars, and one for each scenario."""
    if failed := run.about.get("failed"):
        text = "each peer skipped its remaining rounds of the case in which it failed"
        rows = [(fields["case"], Failure(**fields).text) for fields in failed]
        yield "failures", text, ReportTable(("case", "error"), rows)
    if bars := [standing.cells for standing in standings(run.rows) if standing.found]:
        yield "bars", "", ReportTable(("case", "found", "limit", "verdict"), bars)
    for name, rows_of_scenario in grouped(run.rows, lambda row: row.scenario):
        if name in SCENARIOS:
            yield name, SCENARIOS[name].text, _scenario_table(rows_of_scenario)


def _scenario_table(rows: Sequence[Row]) -> ReportTable:
    """Return the table of a scenario: a row for each case and subject, with medians, and ratios if there are any."""
    figures = [figure for figure in FIGURES if any(figure in row.figures for row in rows)]
    if all(row.figures.get("keys_per_s") == row.figures.get("calls_per_s") for row in rows):
        figures = [figure for figure in figures if figure != "keys_per_s"]
    has_ratios = any(row.subject == REFERENCE for row in rows)
    lines = []
    for case, here in grouped(rows, lambda row: row.case):
        for subject, own in grouped(sorted(here, key=lambda row: row.subject != REFERENCE), lambda row: row.subject):
            ratio = over_bare(here, "calls_per_s", case, subject) if subject != REFERENCE else []
            ratios = [interval(ratio).text() if ratio else ""] * has_ratios
            lines.append((case, subject, *ratios, *(_cell(own, subject, figure) for figure in figures)))
    titles = ("case", "subject", *["calls/s over bare"] * has_ratios, *(FIGURES[figure].title for figure in figures))
    return ReportTable(titles, lines, is_grouped=True)


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


def unmeasured_lines(run: Run) -> list[str]:
    """Return the number and the scenarios of the bars that the run did not measure, as lines for a terminal."""
    absent = unmeasured(standings(run.rows))
    scenarios = ", ".join(dict.fromkeys(standing.scenario for standing in absent))
    return wrap(f"not measured: {len(absent)} bars of {scenarios}", WIDTH) if absent else []


def fill(document: str, text: str) -> str:
    """Return the document with `text` in place of everything between its two marks.

    >>> fill(f"a\\n{BEGIN}\\nold\\n{END}\\nb\\n", "new\\n")
    'a\\n<!-- run: begin -->\\nnew\\n<!-- run: end -->\\nb\\n'

    :raises ValueError: a mark is missing, repeated or out of order
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before or END in after:
        raise ValueError(f"the document has no place for the run: expected {BEGIN} and later {END}, each once")
    return f"{before}{BEGIN}\n{text}{END}{after}"


def _cell(rows: Sequence[Row], subject: str, name: str) -> str:
    values = values_of(rows, subject, name)
    return FIGURES[name].text(interval(values).median) if values else ""
