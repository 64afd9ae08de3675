"""The metrics of the replicated store: the histogram adds up, and each count arrives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from keyvalue_provider.observe.replica_metrics import Confirmations, replica_metrics
from keyvalue_replica.publications import ReplicaCounts


def test_each_figure_arrives() -> None:
    confirmations = Confirmations()
    for seconds, is_barrier in ((0.0002, False), (0.0002, True), (0.3, True), (9.0, True)):
        confirmations.observe(seconds, is_barrier)
    counts = ReplicaCounts()
    counts.unconfirmed, counts.lost_races = 3, 4
    replica: Any = SimpleNamespace(is_serving=False, applied=7, behind=2, torn_s=1.5, counts=counts)
    found = {
        (sample.name.removeprefix("wrpc_keyvalue_replica_"), *sample.labels.values()): sample.value
        for family in replica_metrics(replica, confirmations)
        for sample in family.samples
    }
    assert (found["serving",], found["applied_sequence",], found["behind",]) == (0, 7, 2)
    assert (found["torn_seconds_total",], found["unconfirmed_total",], found["lost_races_total",]) == (1.5, 3, 4)
    buckets = [found["confirmation_seconds_bucket", "barrier", bound] for bound in ("0.0001", "0.00025", "0.5", "+Inf")]
    assert buckets == [0, 1, 2, 3]
    assert found["confirmation_seconds_count", "change"] == 1
    assert found["confirmation_seconds_sum", "barrier"] == 0.0002 + 0.3 + 9.0
