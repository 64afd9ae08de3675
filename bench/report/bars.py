"""The bars: the project's performance goals, each a limit for one figure.

This module takes the rows of a run and finds the figure for each bar in `BARS`. `standings` yields each bar with its
figure, and `bench.report.markdown` turns the result into a table. `missed` lists the bars that a run missed, for
`scripts/bench endtoend --strict`. `unmeasured` lists the bars without a figure, because `scripts/bench report` does not
publish a run with gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.report.figures import FIGURES, Spread, case_ratios, ratios, spread
from bench.run.rows import REFERENCE, Row

__all__ = ["BARS", "Bar", "Standing", "missed", "standings", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit for one figure of one subject in one case.

    :ivar what: description of the figure, for reports
    :ivar figure: name of the figure in `Row.figures`
    :ivar is_ratio: True to divide the figure by the same figure of the subject `reference`
    :ivar is_least: True if the limit is a minimum; otherwise it is a maximum
    :ivar is_worst: True to compare the limit with the worst round; otherwise with the median of all rounds
    :ivar reference_case: another case, whose figure for the same subject becomes the divisor of the ratio
    """

    what: str
    scenario: str
    case: str
    figure: str
    limit: float
    subject: str = "direct"
    is_ratio: bool = False
    is_least: bool = False
    is_worst: bool = False
    reference: str = REFERENCE
    reference_case: str = ""


class Standing(NamedTuple):
    """A bar, and the spread of its figure in a run. The spread is None if the run did not measure the figure."""

    bar: Bar
    found: Spread | None

    @property
    def is_kept(self) -> bool | None:
        """True if the figure is within the limit; None if the run did not measure the figure."""
        if self.found is None:
            return None
        if self.bar.is_least:
            return (self.found.min if self.bar.is_worst else self.found.median) >= self.bar.limit
        return (self.found.max if self.bar.is_worst else self.found.median) <= self.bar.limit

    @property
    def texts(self) -> tuple[str, str]:
        """The figure and the limit as text, both in the figure's unit."""
        bar = self.bar
        figure = FIGURES[bar.figure]
        scale, digits = (1.0, 2) if bar.is_ratio else (figure.scale, figure.digits)
        unit = "x" if bar.is_ratio else ""
        limit = f"{'at least' if bar.is_least else 'at most'} {bar.limit * scale:,.{digits}f}{unit}"
        return "not measured" if self.found is None else self.found.text(digits, scale) + unit, limit


def standings(rows: Sequence[Row]) -> Iterator[Standing]:
    """Yield each bar with the spread of its figure in the rows of a run."""
    for bar in BARS:
        here = [row for row in rows if row.scenario == bar.scenario and row.case in (bar.case, bar.reference_case)]
        if bar.reference_case:
            values = case_ratios(here, bar.subject, bar.figure, bar.case, bar.reference_case)
        elif bar.is_ratio:
            values = ratios(here, bar.subject, bar.figure, bar.reference)
        else:
            values = [
                row.figures[bar.figure] for row in here if row.subject == bar.subject and bar.figure in row.figures
            ]
        yield Standing(bar, spread(values) if values else None)


def _throughput() -> Iterator[Bar]:
    for in_flight, cpu_us in ((64, 4.5), (512, 3.5)):
        for headers, suffix in (("a host's headers", ""), ("traced headers", ", traced")):
            case = f"get 64 B, {in_flight} in flight{suffix}"
            what = f"get of 64 B, {headers}, {in_flight} in flight"
            yield Bar(f"{what}: calls/s", "headers", case, "calls_per_s", 0.75, is_ratio=True, is_least=True)
            yield Bar(f"{what}: CPU us per call", "headers", case, "provider_cpu_us", cpu_us)


def _large_values() -> Iterator[Bar]:
    for function in ("get", "set"):
        for size in ("1 MiB", "4 MiB"):
            what = f"{function} of {size}, 8 in flight: calls/s"
            case = f"{function} {size}, 8 in flight"
            yield Bar(what, "values", case, "calls_per_s", 0.7, is_ratio=True, is_least=True)


def _waits() -> Iterator[Bar]:
    what = "first walk of 1,000,000 keys: longest"
    walk, gets = "first walk, 1,000,000 keys", "gets beside the first walk, 1,000,000 keys"
    yield Bar(f"{what} page by the provider's CPU clock, us", "pages", walk, "page_cpu_us", 5_000, is_worst=True)
    yield Bar(f"{what} wait for a page, us", "pages", walk, "max_us", 5_000)
    wait = f"{what} wait for a get, less the bare responder's at the same moment, us"
    yield Bar(wait, "pages", gets, "excess_us", 5_000)


def _snapshots() -> Iterator[Bar]:
    wait = "save of 1,000,000 keys: longest wait for a get, less the bare responder's at the same moment, us"
    yield Bar(wait, "snapshot", "gets beside a save, 1,000,000 keys", "excess_us", 5_000)
    what = "start with a snapshot of 1,000,000 keys: time to first answer, ms"
    yield Bar(what, "snapshot", "start, 1,000,000 keys", "start_s", 4)


def _growth() -> Iterator[Bar]:
    # The limit of 2.5 allows logarithmic growth: the logarithm of a million is twice that of a thousand.
    for call in ("get 64 B, 64 in flight", "set 64 B, 64 in flight", "list-keys of 1,000, 4 in flight"):
        function, _, _ = call.partition(" ")
        yield Bar(
            f"{function}: CPU per call with 1,000,000 keys over that with 1,000",
            "growth",
            f"{call}, 1,000,000 keys",
            "provider_cpu_us",
            2.5,
            is_ratio=True,
            reference_case=f"{call}, 1,000 keys",
        )


def _metrics() -> Iterator[Bar]:
    for in_flight in (64, 512):
        case = f"get 64 B, {in_flight} in flight"
        what = f"get of 64 B, {in_flight} in flight: CPU per call with metrics over that without"
        yield Bar(what, "metrics", case, "provider_cpu_us", 1.05, is_ratio=True, reference="direct-unmetered")
    yield Bar("1,000,000 keys: time of a scrape, us", "growth", "memory, 1,000,000 keys", "scrape_us", 5_000)


def _batches() -> Iterator[Bar]:
    for one, many, times in (("get", "get-many", 10), ("set", "set-many", 6)):
        yield Bar(
            f"{many} of 100 keys: keys/s over those of single {one}s",
            "batch",
            f"{many} of 100 x 64 B, 64 in flight",
            "keys_per_s",
            times,
            is_ratio=True,
            is_least=True,
            reference_case=f"{one} 64 B, 64 in flight",
        )


def _expiry() -> Iterator[Bar]:
    for function in ("get", "set"):
        what = f"{function}, 1,000,000 keys: CPU per call with deadlines over that without"
        case = f"{function} 64 B, 64 in flight, 1,000,000 keys"
        yield Bar(what, "expiry", case, "provider_cpu_us", 1.3, "direct-expiring", is_ratio=True, reference="direct")


def _starts() -> Iterator[Bar]:
    for subject, start_s in (("serve", 0.6), ("executable", 1.5)):
        yield Bar(f"{subject}: time from start to first answer, ms", "start", "start", "start_s", start_s, subject)
    yield Bar("idle memory, MiB", "start", "start", "idle_bytes", 45 * 2**20)
    yield Bar(
        "get of 64 B: calls/s of the executable over those of the installed command",
        "start",
        "get 64 B, 64 in flight",
        "calls_per_s",
        0.97,
        "executable",
        is_ratio=True,
        is_least=True,
        reference="direct",
    )


BARS: Sequence[Bar] = (
    *_throughput(),
    Bar(
        "plain path, get of 64 B: CPU us per call",
        "functions",
        "get 64 B, 64 in flight",
        "provider_cpu_us",
        20,
        "plain",
    ),
    Bar("one in flight: median latency", "idle", "get 64 B, 1 in flight", "p50_us", 1.15, is_ratio=True),
    *_large_values(),
    Bar(
        "list-keys of 1,000: keys/s", "functions", "list-keys of 1,000, 64 in flight", "keys_per_s", 1e6, is_least=True
    ),
    *_waits(),
    *_snapshots(),
    *_metrics(),
    *_batches(),
    Bar(
        "increment: CPU per call over that of set",
        "increment",
        "increment, 64 in flight",
        "provider_cpu_us",
        1.5,
        is_ratio=True,
        reference_case="set 64 B, 64 in flight",
    ),
    *_expiry(),
    *_starts(),
    Bar(
        "set: calls/s with a watcher that never answers over those without one",
        "watch",
        "set 64 B, 64 in flight",
        "calls_per_s",
        0.98,
        "direct-stuck",
        is_ratio=True,
        is_least=True,
        reference="direct",
    ),
    Bar(
        "2,000 gets of 1 MiB at once: memory above the store, MiB",
        "memory",
        "get 1 MiB, 2000 in flight, 64 keys",
        "above_store_bytes",
        64 * 2**20,
        is_worst=True,
    ),
    *_growth(),
    Bar("1,000,000 keys: bytes per key", "growth", "memory, 1,000,000 keys", "bytes_a_key", 330),
)


def unmeasured(found: Iterable[Standing]) -> list[str]:
    """Return the descriptions of the bars that a run did not measure."""
    return [standing.bar.what for standing in found if standing.found is None]


def missed(rows: Sequence[Row]) -> list[str]:
    """Return a line for each bar that a run missed, with the figure and the limit."""
    missing = (standing for standing in standings(rows) if standing.is_kept is False)
    return [f"{standing.bar.what}: found {', allowed '.join(standing.texts)}" for standing in missing]
