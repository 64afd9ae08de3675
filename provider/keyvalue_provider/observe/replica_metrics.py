"""The metrics of the replicated store. They exist only with `store = jetstream`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

__all__ = ["CONFIRMATION_BOUNDS_S", "Confirmations", "Replica", "replica_metrics"]

PREFIX = "wrpc_keyvalue_replica"
#: Upper bounds of the buckets in the histogram, from 100 us to 5 s.
CONFIRMATION_BOUNDS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1, 2.5e-1, 5e-1, 1.0, 2.5, 5.0)


class Confirmations:
    """The times until JetStream has confirmed changes and barriers."""

    def __init__(self) -> None:
        self.counts = {kind: [0] * (len(CONFIRMATION_BOUNDS_S) + 1) for kind in ("change", "barrier")}
        self.sums_s = dict.fromkeys(self.counts, 0.0)

    def observe(self, seconds: float, is_barrier: bool, number: int) -> None:
        """Count the confirmations of changes or of barriers, which took the same time."""
        kind = "barrier" if is_barrier else "change"
        self.counts[kind][bisect_left(CONFIRMATION_BOUNDS_S, seconds)] += number
        self.sums_s[kind] += seconds * number


class Counts(Protocol):
    """The numbers of a replica since the start."""

    unconfirmed: int
    refused: int
    lost_races: int
    resynchronisations: int
    foreign: int

    @property
    def torn(self) -> int: ...


class Replica(Protocol):
    """The part of a replica that the metrics need."""

    @property
    def is_serving(self) -> bool: ...

    @property
    def applied(self) -> int: ...

    @property
    def behind(self) -> int: ...

    @property
    def torn_s(self) -> float: ...

    @property
    def counts(self) -> Counts: ...

    @property
    def excess(self) -> Mapping[str, int]: ...

    @property
    def open_buckets(self) -> int: ...


def replica_metrics(replica: Replica, confirmations: Confirmations) -> Iterable[Metric]:
    """Yield all metric families of a replica."""
    counts = replica.counts
    yield GaugeMetricFamily(f"{PREFIX}_serving", "1 while the instance follows the stream.", replica.is_serving)
    yield GaugeMetricFamily(
        f"{PREFIX}_applied_sequence", "Sequence of the last message of the stream that was applied.", replica.applied
    )
    yield GaugeMetricFamily(f"{PREFIX}_behind", "Messages that have not been delivered yet.", replica.behind)
    yield GaugeMetricFamily(
        f"{PREFIX}_open_buckets", "KV buckets with plain names that are open.", replica.open_buckets
    )
    for name, what, value in (
        ("torn_seconds", "Time in which an older change may have been missing.", replica.torn_s),
        ("torn", "Times that an older change may have been missing.", counts.torn),
        (
            "unconfirmed",
            "Changes that may or may not have been stored, or were not seen here in time.",
            counts.unconfirmed,
        ),
        ("refused", "Changes that the NATS server refused, and barriers that failed.", counts.refused),
        ("lost_races", "Increments that another instance overtook.", counts.lost_races),
        ("resynchronisations", "Times that the whole bucket was read.", counts.resynchronisations),
        ("foreign_messages", "Messages of the stream that are no keys of this store.", counts.foreign),
    ):
        yield CounterMetricFamily(f"{PREFIX}_{name}", what, value)
    excess = GaugeMetricFamily(
        f"{PREFIX}_excess", "Keys, bytes or buckets past a limit, because others have stored them.", labels=("limit",)
    )
    for limit, amount in replica.excess.items():
        excess.add_metric((limit,), amount)
    yield excess
    durations = HistogramMetricFamily(
        f"{PREFIX}_confirmation_seconds", "Time until JetStream has confirmed a message.", labels=("kind",)
    )
    for kind, numbers in confirmations.counts.items():
        buckets, total = [], 0
        for bound_s, number in zip((*CONFIRMATION_BOUNDS_S, "+Inf"), numbers, strict=True):
            total += number
            buckets.append((str(bound_s), total))
        durations.add_metric((kind,), buckets, confirmations.sums_s[kind])
    yield durations
