"""The metrics of the replicated store: the histogram adds up, and each count arrives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import Metric

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.observe.replica_metrics import Confirmations, replica_metrics
from keyvalue_replica.position import Position
from keyvalue_replica.publications import ReplicaCounts
from keyvalue_replica.reservations import Reservations


@dataclass
class Figures:
    """The figures of a replica, by default of one that has just started."""

    is_serving: bool = False
    applied: int = 0
    behind: int = 0
    torn_s: float = 0.0
    counts: ReplicaCounts = field(default_factory=lambda: ReplicaCounts(Position()))
    excess: dict[str, int] = field(default_factory=Reservations(Store()).excess)
    open_buckets: int = 0


def metrics_of_a_new_replica() -> Iterable[Metric]:
    """Return all families that a provider with the replicated store exposes in addition."""
    return replica_metrics(Figures(), Confirmations())


def test_each_figure_arrives() -> None:
    confirmations = Confirmations()
    for seconds, is_barrier, number in ((0.0002, False, 1), (0.0002, True, 1), (0.3, True, 1), (9.0, True, 1)):
        confirmations.observe(seconds, is_barrier, number)
    counts = ReplicaCounts(Position())
    counts.unconfirmed, counts.lost_races = 3, 4
    store = Store(StoreOptions(keys_max=2, buckets_max=2), is_limited=False)
    for number in range(5):
        store.bucket(b"b").set(b"%d" % number, b"by others")
    replica = Figures(False, 7, 2, 1.5, counts, Reservations(store).excess(), 6)
    found = {
        (sample.name.removeprefix("wrpc_keyvalue_replica_"), *sample.labels.values()): sample.value
        for family in replica_metrics(replica, confirmations)
        for sample in family.samples
    }
    assert (found["serving",], found["applied_sequence",], found["behind",]) == (0, 7, 2)
    assert found["open_buckets",] == 6
    assert (found["torn_seconds_total",], found["unconfirmed_total",], found["lost_races_total",]) == (1.5, 3, 4)
    assert [found["excess", limit] for limit in ("keys_max", "buckets_max", "memory_bytes_max")] == [3, 0, 0]
    buckets = [found["confirmation_seconds_bucket", "barrier", bound] for bound in ("0.0001", "0.00025", "0.5", "+Inf")]
    assert buckets == [0, 1, 2, 3]
    assert found["confirmation_seconds_count", "change"] == 1
    assert found["confirmation_seconds_sum", "barrier"] == 0.0002 + 0.3 + 9.0
