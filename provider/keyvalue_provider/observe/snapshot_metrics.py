"""The metrics of snapshots, for `Metrics`."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

__all__ = ["snapshot_metrics"]

PREFIX = "wrpc_keyvalue_snapshot"


class Saves(Protocol):
    """The figures of the saves. `SnapshotCounts` describes them."""

    failures: int
    duration_s: float
    size_bytes: int
    current_s: float


def snapshot_metrics(counts: Saves, interval_s: float) -> Iterable[Metric]:
    """Yield the metric families of snapshots."""
    age_s = monotonic() - counts.current_s
    yield GaugeMetricFamily(f"{PREFIX}_age_seconds", "Changes in this last time may be missing in the file.", age_s)
    yield GaugeMetricFamily(f"{PREFIX}_interval_seconds", "Time from one save to the next.", interval_s)
    yield GaugeMetricFamily(f"{PREFIX}_duration_seconds", "Time that the last save took.", counts.duration_s)
    yield GaugeMetricFamily(f"{PREFIX}_bytes", "Size of the file.", counts.size_bytes)
    yield CounterMetricFamily(f"{PREFIX}_failures", "Saves that failed.", counts.failures)
