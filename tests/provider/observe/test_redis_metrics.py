"""The metrics of the Redis listener."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from prometheus_client.metrics_core import Metric

from keyvalue_provider.observe.redis_metrics import redis_metrics
from keyvalue_transport.redis.listener import ListenerCounts, RedisListener


class Numbers:
    """The numbers of a listener."""

    held_bytes, unsent_bytes = 2, 3

    def __init__(self) -> None:
        self.counts = ListenerCounts()
        for number, name in enumerate(vars(self.counts), 4):
            setattr(self.counts, name, number)

    def __len__(self) -> int:
        return 1


def metrics_of_a_listener() -> Iterable[Metric]:
    return redis_metrics(cast(RedisListener, Numbers()))


def test_each_number_has_a_metric() -> None:
    assert sorted(family.samples[0].value for family in metrics_of_a_listener()) == list(range(1, 11))
