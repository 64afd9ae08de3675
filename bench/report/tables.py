"""A run as text: tables for the terminal and for documents, and the short summary of a quick run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from textwrap import wrap

from bench.report.bars import slowness, standings, unmeasured
from bench.report.figures import FIGURES, MINOR, grouped, interval, over_bare, values_of
from bench.report.report_table import WIDTH, ReportTable
from bench.run.results import REFERENCE, Failure, Row, Run
from bench.run.scenarios import SCENARIOS

__all__ = ["BEGIN", "END", "fill", "markdown", "summary", "terminal"]

BEGIN, END = "<!-- run: begin -->", "<!-- run: end -->"


def markdown(run: Run) -> str:
    """Format a run as Markdown: the bars, and for each scenario the cases that no table above it has."""
    parts = ["\n".join(f"- {line}" for line in about_lines(run))]
    parts += [f"**{text}.**" for text in reservations(run)]
    for title, text, table in (*bar_tables(run), *scenario_tables(run, is_brief=True)):
        parts += [f"### {title}", *filter(None, [text]), table.markdown()]
    if absent := unmeasured(standings(run.rows)):
        parts += [f"Bars that this run did not measure: {len(absent)}."]
        parts += ["\n".join(f"- {standing.scenario}: {standing.what}" for standing in absent)]
    return "\n\n".join(parts) + "\n"


def terminal(run: Run) -> str:
    """Format a run for a terminal. Figures are ordered by importance, because columns that do not fit are left out."""
    lines = [line for about in about_lines(run) for line in wrap(about, WIDTH)]
    for title, text, table in (*scenario_tables(run), *bar_tables(run)):
        lines += ["", *wrap(f"{title}: {text}" if text else title, WIDTH), *table.terminal()]
    return "\n".join((*lines, "", *conclusion(run)))


def summary(run: Run) -> str:
    """Format a quick run in about ten lines: our provider beside the limit, the bars, and what was not measured."""
    others = [name for name in run.about["settings"]["subjects"] if name not in (REFERENCE, "direct")]
    rows = []
    once = {(row.case, row.subject, row.round): row for row in run.rows}.values()
    for case, here in grouped(once, lambda row: row.case):
        if ratio := over_bare(here, "calls_per_s", case, "direct"):
            limit, direct, *calls = (_cell(here, name, "calls_per_s") for name in (REFERENCE, "direct", *others))
            costs = (_cell(here, "direct", name) for name in ("provider_cpu_us", "p50_us"))
            rows.append((case, limit, direct, interval(ratio).text(), *calls, *costs))
    titles = ("case", "limit/s", "direct/s", "over limit", *(f"{name}/s" for name in others), "CPU us", "p50 us")
    return "\n".join((about_lines(run)[0], *ReportTable(titles, rows).terminal(), *conclusion(run)))


def conclusion(run: Run) -> list[str]:
    """Return the last lines for a terminal: the bars that are not met, what was not measured, and reservations."""
    every = standings(run.rows)
    counts = Counter(one.verdict for one in every if one.verdict).most_common()
    texts = [f"bars: {', '.join(f'{count} {verdict}' for verdict, count in counts) or 'none measured'}"]
    texts += [f"  {one.verdict}: {one.text}" for one in every if one.verdict in ("missed", "unclear")]
    if absent := unmeasured(every):
        whole = {row.scenario for row in run.rows} - {one.scenario for one in absent}
        names = [name for name, scenario in SCENARIOS.items() if name not in whole and not scenario.is_optional]
        texts += [f"not measured: {len(absent)} bars; all or parts of {', '.join(names)}"]
    return [line for text in (*texts, *reservations(run)) for line in wrap(text, WIDTH, subsequent_indent="  ")]


def reservations(run: Run) -> list[str]:
    """Return the reasons not to use some or all figures of a run."""
    if run.void:
        return [f"This run is void: {fault}" for fault in run.void]
    slow = slowness(run.rows)
    return [f"Bars without a ratio are not judged: {slow}"] if slow else []


def bar_tables(run: Run) -> Iterator[tuple[str, str, ReportTable]]:
    """Yield title, explanation and content of the tables of failures and of bars."""
    if failed := run.about.get("failed"):
        text = "each peer skipped its remaining rounds of the case in which it failed"
        rows = [(fields["case"], Failure(**fields).text) for fields in failed]
        yield "failures", text, ReportTable(("case", "error"), rows)
    if bars := [standing.cells for standing in standings(run.rows) if standing.found]:
        yield "bars", "", ReportTable(("case", "found", "limit", "verdict"), bars)


def scenario_tables(run: Run, is_brief: bool = False) -> Iterator[tuple[str, str, ReportTable]]:
    """Yield title, explanation and content of the table of each scenario.

    :param is_brief: True to leave out minor figures, the bare responder, and cases that an earlier table has
    """
    told: set[tuple[object, ...]] = set()
    for name, rows in grouped(run.rows, lambda row: row.scenario):
        keys = [(row.case, row.subject, *row.figures.items()) for row in rows]
        new = [row for row, key in zip(rows, keys, strict=True) if not (is_brief and key in told)]
        told.update(keys)
        if name in SCENARIOS and new:
            yield name, SCENARIOS[name].text, _scenario_table(new, is_brief)


def _scenario_table(rows: Sequence[Row], is_brief: bool) -> ReportTable:
    """Return the table of a scenario: a row for each case and subject, with medians, and ratios if there are any."""
    names = [figure for figure in FIGURES if not (is_brief and figure in MINOR)]
    figures = [figure for figure in names if any(figure in row.figures for row in rows)]
    if all(row.figures.get("keys_per_s") == row.figures.get("calls_per_s") for row in rows):
        figures = [figure for figure in figures if figure != "keys_per_s"]
    has_ratios = any(row.subject == REFERENCE for row in rows)
    lines = []
    for case, here in grouped(rows, lambda row: row.case):
        for subject, own in grouped(sorted(here, key=lambda row: row.subject != REFERENCE), lambda row: row.subject):
            if is_brief and subject == REFERENCE:
                continue
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
