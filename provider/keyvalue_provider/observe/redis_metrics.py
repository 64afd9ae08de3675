"""The metrics of the Redis listener. They exist only with `redis_address`."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from keyvalue_transport.redis.listener import RedisListener

__all__ = ["redis_metrics"]

PREFIX = "wrpc_keyvalue_redis"


def redis_metrics(listener: RedisListener) -> Iterable[Metric]:
    """Yield the metric families of a listener."""
    counts = listener.counts
    gauges = (
        ("connections", "Redis connections that are open.", len(listener)),
        ("held_bytes", "Bytes of requests that are incomplete or wait.", listener.held_bytes),
        ("unsent_bytes", "Bytes of answers that clients do not read.", listener.unsent_bytes),
    )
    for name, what, value in gauges:
        yield GaugeMetricFamily(f"{PREFIX}_{name}", what, value)
    counters = (
        ("accepted_connections", "Redis connections that were opened.", counts.accepted),
        ("rejected_connections", "Redis connections that were refused, because there were too many.", counts.rejected),
        (
            "malformed_connections",
            "Redis connections that were closed because of malformed requests.",
            counts.malformed,
        ),
        (
            "foreign_connections",
            "Redis connections that were closed because they sent an HTTP request.",
            counts.foreign,
        ),
        ("slow_connections", "Redis connections that were closed because they did not read answers.", counts.slow),
        ("received_bytes", "Bytes received from Redis clients.", counts.received_bytes),
        ("sent_bytes", "Bytes sent to Redis clients.", counts.sent_bytes),
    )
    for name, what, count in counters:
        yield CounterMetricFamily(f"{PREFIX}_{name}", what, count)
