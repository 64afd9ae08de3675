"""The bars: what the project has promised itself, and how a run stands against them."""

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

    :ivar is_ratio: the figure over that of `reference` or, where there is a `reference_case`, over the subject's own in that case
    :ivar is_least: the figure must reach the limit; else it must not pass it
    :ivar is_worst: the worst round counts; else the median
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
    """A bar, and what was found; None where the run did not measure it."""

    bar: Bar
    found: Spread | None

    @property
    def is_kept(self) -> bool | None:
        """Whether the figure keeps to the limit."""
        if self.found is None:
            return None
        if self.bar.is_least:
            return (self.found.min if self.bar.is_worst else self.found.median) >= self.bar.limit
        return (self.found.max if self.bar.is_worst else self.found.median) <= self.bar.limit

    @property
    def texts(self) -> tuple[str, str]:
        """What was found, and the limit, in the figure's unit."""
        bar = self.bar
        figure = FIGURES[bar.figure]
        scale, digits = (1.0, 2) if bar.is_ratio else (figure.scale, figure.digits)
        unit = "x" if bar.is_ratio else ""
        limit = f"{'at least' if bar.is_least else 'at most'} {bar.limit * scale:,.{digits}f}{unit}"
        return "not measured" if self.found is None else self.found.text(digits, scale) + unit, limit


def standings(rows: Sequence[Row]) -> Iterator[Standing]:
    """How each bar stands in a run."""
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
            yield Bar(f"{what}: CPU us a call", "headers", case, "provider_cpu_us", cpu_us)


def _large_values() -> Iterator[Bar]:
    for function in ("get", "set"):
        for size in ("1 MiB", "4 MiB"):
            what = f"{function} of {size}, 8 in flight: calls/s"
            case = f"{function} {size}, 8 in flight"
            yield Bar(what, "values", case, "calls_per_s", 0.7, is_ratio=True, is_least=True)


def _waits() -> Iterator[Bar]:
    what = "1,000,000 keys that nobody listed: longest"
    walk, gets = "first walk, 1,000,000 keys", "gets beside the first walk, 1,000,000 keys"
    yield Bar(f"{what} page by the provider's CPU clock, us", "pages", walk, "page_cpu_us", 5_000, is_worst=True)
    yield Bar(f"{what} wait of a page, us", "pages", walk, "max_us", 5_000)
    wait = f"{what} wait of a get beyond the bare responder's at the same moment, us"
    yield Bar(wait, "pages", gets, "excess_us", 5_000)


def _growth() -> Iterator[Bar]:
    """The logarithm doubles from a thousand keys to a million."""
    for call in ("get 64 B, 64 in flight", "set 64 B, 64 in flight", "list-keys of 1,000, 4 in flight"):
        function, _, _ = call.partition(" ")
        yield Bar(
            f"{function} of 1,000,000 keys: CPU a call over that of 1,000",
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
        what = f"get of 64 B, {in_flight} in flight: CPU a call with metrics over that without"
        yield Bar(what, "metrics", case, "provider_cpu_us", 1.05, is_ratio=True, reference="direct-unmetered")
    yield Bar("1,000,000 keys: a scrape, us", "growth", "memory, 1,000,000 keys", "scrape_us", 5_000)


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
        what = f"1,000,000 keys with deadlines: CPU a call of {function} over that without"
        case = f"{function} 64 B, 64 in flight, 1,000,000 keys"
        yield Bar(what, "expiry", case, "provider_cpu_us", 1.3, "direct-expiring", is_ratio=True, reference="direct")


def _starts() -> Iterator[Bar]:
    for subject, start_s in (("serve", 0.6), ("executable", 1.5)):
        yield Bar(f"{subject}: from its start to a first answer, ms", "start", "start", "start_s", start_s, subject)
    yield Bar("idle memory, MiB", "start", "start", "idle_bytes", 45 * 2**20)
    yield Bar(
        "executable, get of 64 B: calls/s over those of the installed command",
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
        "plain path, get of 64 B: CPU us a call", "functions", "get 64 B, 64 in flight", "provider_cpu_us", 20, "plain"
    ),
    Bar("one in flight: median latency", "idle", "get 64 B, 1 in flight", "p50_us", 1.15, is_ratio=True),
    *_large_values(),
    Bar(
        "list-keys of 1,000: keys/s", "functions", "list-keys of 1,000, 64 in flight", "keys_per_s", 1e6, is_least=True
    ),
    *_waits(),
    *_metrics(),
    *_batches(),
    Bar(
        "increment: CPU a call over that of set",
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
        "set with a watcher that never answers: calls/s over those without",
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
    Bar("1,000,000 keys: bytes a key", "growth", "memory, 1,000,000 keys", "bytes_a_key", 330),
)


def unmeasured(found: Iterable[Standing]) -> list[str]:
    """The bars that a run says nothing about."""
    return [standing.bar.what for standing in found if standing.found is None]


def missed(rows: Sequence[Row]) -> list[str]:
    """The bars that a run does not keep, with what was found and what is allowed."""
    missing = (standing for standing in standings(rows) if standing.is_kept is False)
    return [f"{standing.bar.what}: found {', allowed '.join(standing.texts)}" for standing in missing]
