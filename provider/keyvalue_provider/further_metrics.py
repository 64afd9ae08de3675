"""The metrics that exist only if a part of the provider does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from keyvalue_provider.keyvalue.snapshots import Snapshots
    from keyvalue_provider.observe.tracing import NoTracing, Tracing
    from keyvalue_provider.replicated import Replicated

__all__ = ["further_metrics"]


def further_metrics(
    replicated: Replicated | None, snapshots: Snapshots | None, tracing: Tracing | NoTracing
) -> list[Callable[[], Iterable[Metric]]]:
    """Return functions that return the metrics of the parts that exist."""
    more = [tracing.metrics]
    if replicated is not None:
        more.append(replicated.metrics())
    elif snapshots is not None:
        from keyvalue_provider.observe.snapshot_metrics import snapshot_metrics

        more.append(partial(snapshot_metrics, snapshots.counts, snapshots.interval_s))
    return more
