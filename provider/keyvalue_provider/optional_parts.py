"""The parts that only some options need. Their modules are imported when they are needed, because that takes time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from keyvalue_engine import Store
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from keyvalue_provider.config.redis_plan import RedisPlan
    from keyvalue_provider.host.links import Links
    from keyvalue_provider.keyvalue.snapshots import Snapshots
    from keyvalue_provider.observe.tracing import NoTracing, Tracing
    from keyvalue_provider.redis_service import RedisService
    from keyvalue_provider.replicated import Replicated
    from keyvalue_provider.watching.no_watchers import NoWatchers
    from keyvalue_provider.watching.queue import WatchLimits
    from keyvalue_provider.watching.replicated_watchers import ReplicatedWatchers
    from keyvalue_replica.kv_stores import StoreSum
    from keyvalue_transport.nats.connection import Connection

__all__ = ["more_metrics", "redis_of", "replicated_watchers", "serve_redis"]


def redis_of(
    plan: RedisPlan | None, service: Service, policy: Policy, store: Store | StoreSum, replicated: Replicated | None
) -> RedisService | None:
    """Return the Redis listener, or None if it is off."""
    if plan is None:
        return None
    from keyvalue_provider.redis_service import RedisService

    return RedisService(plan, service, policy, store, None if replicated is None else lambda: replicated.is_serving)


def more_metrics(
    replicated: Replicated | None,
    snapshots: Snapshots | None,
    redis: RedisService | None,
    tracing: Tracing | NoTracing,
) -> list[Callable[[], Iterable[Metric]]]:
    """Return functions that return the metrics of the parts that exist."""
    sources: list[Callable[[], Iterable[Metric]]] = [tracing.metrics]
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
        await stack.enter_async_context(redis)


def replicated_watchers(
    connection: Connection, lattice: str, replicated: Replicated, links: Links, limits: WatchLimits
) -> ReplicatedWatchers | NoWatchers:
    """Return the watchers of the replicated store."""
    if replicated.follower is None:
        from keyvalue_provider.watching.no_watchers import NoWatchers

        return NoWatchers(links, lattice)
    from keyvalue_provider.watching.replicated_watchers import ReplicatedWatchers

    return ReplicatedWatchers(connection, lattice, replicated.follower, links, limits)
