"""A run as Markdown, and the place of a document that holds one. Pure functions."""

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


def _scenario_lines(rows: Sequence[Row]) -> Iterator[str]:
    """One line for each case and subject: medians over the rounds, and ratios with their spread."""
    names = [name for name in FIGURES if has_figure(rows, name)]
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
