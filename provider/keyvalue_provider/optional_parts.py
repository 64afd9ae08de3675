"""The parts that only some options need. Their modules are imported when they are needed, because that takes time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

from keyvalue_engine import Store
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.config.values import split_address
from keyvalue_provider.health import Health
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.observe.loop_probe import LoopProbe
from keyvalue_provider.watching.queue import WatchLimits
from keyvalue_provider.watching.watchers import Watchers

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from keyvalue_provider.config.redis_plan import RedisPlan
    from keyvalue_provider.host.links import Links
    from keyvalue_provider.keyvalue.snapshots import Snapshots
    from keyvalue_provider.observe.endpoint import Endpoint
    from keyvalue_provider.observe.exports import Exports
    from keyvalue_provider.observe.metrics import Metrics
    from keyvalue_provider.redis_service import RedisService
    from keyvalue_provider.replicated import Replicated
    from keyvalue_provider.watching.replicated_watchers import ReplicatedWatchers
    from keyvalue_replica.kv_stores import StoreSum
    from keyvalue_transport.nats.connection import Connection
    from keyvalue_transport.nats.tracing import Tracer
    from keyvalue_transport.wrpc.in_flight import BytesInFlight

__all__ = ["more_metrics", "redis_of", "serve_redis", "start_endpoint", "watchers_of"]

log = logging.getLogger("keyvalue_provider")


class Observed(Protocol):
    """The part of the running provider that its endpoint shows."""

    @property
    def is_serving(self) -> bool: ...

    def health(self) -> Health: ...


def redis_of(
    plan: RedisPlan | None,
    service: Service,
    policy: Policy,
    store: Store | StoreSum,
    replicated: Replicated | None,
    in_flight: BytesInFlight,
) -> RedisService | None:
    """Return the Redis listener, or None if it is off."""
    if plan is None:
        return None
    from keyvalue_provider.redis_service import RedisService

    is_ready = None if replicated is None else lambda: replicated.is_serving
    return RedisService(plan, service, policy, store, is_ready, in_flight)


def more_metrics(
    replicated: Replicated | None,
    snapshots: Snapshots | None,
    redis: RedisService | None,
    exports: Exports,
) -> list[Callable[[], Iterable[Metric]]]:
    """Return functions that return the metrics of the parts that exist."""
    sources: list[Callable[[], Iterable[Metric]]] = [exports.metrics]
    if replicated is not None:
        sources.append(replicated.metrics())
    if snapshots is not None:
        from keyvalue_provider.observe.snapshot_metrics import snapshot_metrics

        sources.append(partial(snapshot_metrics, snapshots.counts, snapshots.interval_s))
    if redis is not None:
        from keyvalue_provider.observe.redis_metrics import redis_metrics

        sources.append(partial(redis_metrics, redis.listener))
    return sources


async def serve_redis(redis: RedisService | None, stack: AsyncExitStack) -> None:
    """Listen for Redis clients until the stack is closed."""
    if redis is not None:
        stack.push_async_callback(redis.stop, 0.0)  # also if it can't listen on all addresses
        await redis.start()


def watchers_of(
    connection: Connection,
    lattice: str,
    store: Store | None,
    replicated: Replicated | None,
    links: Links,
    options: ProviderOptions,
    tracer: Tracer | None,
) -> Watchers | ReplicatedWatchers:
    """Return the watchers of a store in memory, or of the replicated store."""
    limits = WatchLimits(options.watch_queue_events, options.watch_queue_bytes, options.watch_timeout_ms / 1000)
    if store is not None:
        return Watchers(connection, lattice, store, links, limits, tracer)
    assert replicated is not None
    from keyvalue_provider.watching.replicated_watchers import ReplicatedWatchers

    return ReplicatedWatchers(connection, lattice, replicated, links, limits)


def start_endpoint(options: ProviderOptions, metrics: Metrics, provider: Observed) -> Endpoint:
    """Start the HTTP endpoint. If the address is not available, log an error and continue without the endpoint."""
    from keyvalue_provider.observe.endpoint import Endpoint

    assert options.metrics_address is not None
    address, port = split_address(options.metrics_address)

    def health() -> Health:
        health = provider.health()
        return health if provider.is_serving else health._replace(ailments=["not serving: starting or stopping"])

    endpoint = Endpoint(metrics, health, LoopProbe(asyncio.get_running_loop()).alive)
    try:
        endpoint.start(address, port)
    except OSError as error:
        log.error("metrics_address %s: %s; metrics are off", options.metrics_address, error.strerror or error)
    else:
        shown = f"[{address}]" if ":" in address else address
        log.info("metrics at http://%s:%d/metrics", shown, endpoint.port)
    return endpoint
