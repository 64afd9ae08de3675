"""Functions that format a run as Markdown and insert the Markdown into a document. All functions are pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.report.bars import standings, unmeasured
from bench.report.figures import FIGURES, RATIO_DIGITS, grouped, has_figure, ratios, spread
from bench.report.run_file import Run
from bench.run.rows import REFERENCE, Failure, Row
from bench.run.scenarios import SCENARIOS

__all__ = ["BEGIN", "END", "fill", "markdown"]

BEGIN, END = "<!-- run: begin -->", "<!-- run: end -->"


def markdown(run: Run) -> str:
    """Format a run: machine and versions, bars, and a table for each scenario."""
    parts = ["\n".join(_about_lines(run))]
    if failed := run.about.get("failed"):
        lines = [f"- {Failure(**fields).text}" for fields in failed]
        parts.append(
            "### Failures\n\nEach peer skipped its remaining rounds of the case in which it failed:\n\n"
            + "\n".join(lines)
        )
    if run.void:
        parts.append("\n".join(f"**This run is void: {fault}.**" for fault in run.void))
    parts.append("### Bars\n\n" + "\n".join(_bar_lines(run.rows)))
    for scenario, rows in grouped(run.rows, lambda row: row.scenario):
        if scenario in SCENARIOS:
            parts.append(f"### {scenario}\n\n{SCENARIOS[scenario]}\n\n" + "\n".join(_scenario_lines(rows)))
    return "\n\n".join(parts) + "\n"


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


def _about_lines(run: Run) -> Iterator[str]:
    about = run.about
    machine, commit, settings = about["machine"], about["commit"], about["settings"]
    changed = ", with uncommitted changes" if commit["changed"] else ""
    yield f"- {about['when']}, {about.get('minutes', '?')} minutes, commit `{commit['id'][:12]}`{changed}"
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    yield f"- {machine['processor']} ({machine['architecture']}), {machine['cores']} cores, {memory}, {machine['system']}"
    yield f"- load average {about['load_average_before']} before, {about.get('load_average_after', '?')} after"
    yield "- " + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    yield (
        f"- {settings['rounds']} rounds, {settings['seconds']:g} s per load; subjects: "
        f"{', '.join(settings['subjects'])}"
    )


def _bar_lines(rows: Sequence[Row]) -> Iterator[str]:
    found = list(standings(rows))
    measured = [standing for standing in found if standing.found]
    if measured:
        yield "| bar | found | limit | |"
        yield "|---|---|---|---|"
    for standing in measured:
        verdict = "ok" if standing.is_kept else "**missed**"
        yield f"| {standing.bar.what} | {' | '.join(standing.texts)} | {verdict} |"
    if absent := unmeasured(found):
        yield f"\nBars that this run did not measure: {len(absent)} of {len(found)}.\n"
        yield from (f"- {what}" for what in absent)


def _scenario_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a scenario's table: a row for each case and subject, with medians and ratios."""
    names = [name for name in FIGURES if has_figure(rows, name)]
    has_ratios = any(row.subject == REFERENCE for row in rows)
    titles = ["case", "subject", *(["calls/s over bare", "p50 over bare"] if has_ratios else [])]
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
