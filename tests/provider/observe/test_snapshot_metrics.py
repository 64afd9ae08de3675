"""The metrics of snapshots, from the counts."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from prometheus_client.metrics_core import Metric

from keyvalue_provider.keyvalue.snapshots import SnapshotCounts
from keyvalue_provider.observe.snapshot_metrics import snapshot_metrics


def metrics_of_new_snapshots() -> Iterable[Metric]:
    return snapshot_metrics(SnapshotCounts(current_s=monotonic()), 60.0)


def test_each_figure_is_a_metric() -> None:
    counts = SnapshotCounts(failures=2, duration_s=0.5, size_bytes=123, current_s=monotonic() - 100)
    found = {sample.name: sample.value for family in snapshot_metrics(counts, 60.0) for sample in family.samples}
    age_s = found.pop("wrpc_keyvalue_snapshot_age_seconds")
    assert 100 <= age_s < 200
    assert found == {
        "wrpc_keyvalue_snapshot_interval_seconds": 60.0,
        "wrpc_keyvalue_snapshot_duration_seconds": 0.5,
        "wrpc_keyvalue_snapshot_bytes": 123,
        "wrpc_keyvalue_snapshot_failures_total": 2,
    }
