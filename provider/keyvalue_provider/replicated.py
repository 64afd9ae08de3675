"""The replicated store of a provider: the KV bucket with encoded names, and the KV buckets with plain names.

    Replicated ─┬─ Follower ───── the provider's own KV bucket, unless keys=plain and no option names it
                └─ OpenBuckets ── KV buckets with plain names, opened when they are used

The provider is in the queue group while its own KV bucket is served. A KV bucket with plain names that is not served
lets only its own calls wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Protocol

from keyvalue_engine.errors import StoreError
from keyvalue_provider.config.options import ATOMIC, ProviderOptions
from keyvalue_provider.config.start_plan import StartPlan
from keyvalue_provider.snapshot_import import import_at_start, kv_bucket_of
from keyvalue_replica.bucket import ReplicaStore
from keyvalue_replica.company import Serving
from keyvalue_replica.follower import Follower
from keyvalue_replica.kv_stores import KvStores, StoreSum
from keyvalue_replica.open_bucket import KvPlace
from keyvalue_replica.open_buckets import OpenBuckets
from keyvalue_replica.plain_layout import check_bucket_name
from keyvalue_replica.publications import CountSum
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.wrpc.handler import Again

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["Replicated"]


class LinkedBuckets(Protocol):
    """The part of the policy that this module needs."""

    def linked_buckets(self) -> Mapping[tuple[str, bytes], bool]: ...

    @property
    def js_domain(self) -> str: ...


class Replicated:
    """The replicated store.

    :param follower: follows the provider's own KV bucket, or None
    :ivar store: opens the buckets
    :ivar engine: counts keys and memory, and removes expired keys
    :ivar keys: the form of the names of callers without a link: `encoded` or `plain`
    :ivar js_domain: the JetStream domain of KV buckets whose links name none, or "" for that of the provider
    """

    def __init__(
        self, follower: Follower | None, options: ProviderOptions, connection: Connection, kv_bucket: str
    ) -> None:
        limits, is_atomic = options.store_options(), options.batch == ATOMIC
        self.follower = follower
        self.keys, self.js_domain = options.keys, options.js_domain or ""
        self.plain = OpenBuckets(
            connection,
            options.replica_options(kv_bucket),
            limits,
            Again,
            options.open_buckets_max,
            options.bucket_idle_ms / 1000,
        )
        self._timeout_s = options.connect_timeout_ms / 1000
        encoded = None
        self.engine = StoreSum(self.plain.store)
        if follower is not None:
            own = follower.core.store
            encoded = ReplicaStore(follower.core, limits, Again, is_atomic)
            self.engine = StoreSum(own, self.plain.store)
            self.plain.reservations.beside, follower.core.reservations.beside = own, self.plain.store
        self.store = KvStores(encoded, self.plain)

    @classmethod
    async def open(cls, plan: StartPlan, options: ProviderOptions, connection: Connection) -> Replicated:
        """Open the provider's own KV bucket, if it has one.

        :raises StreamError: the KV bucket can't be used
        :raises UnusableSnapshotError: the KV bucket is empty, and the snapshot can't be imported
        """
        kv_bucket, follower = kv_bucket_of(plan), None
        if options.has_encoded_keys:
            if options.snapshot_path is not None:
                await import_at_start(plan, options, connection)
            follower = Follower(connection, options.replica_options(kv_bucket))
            await follower.open(options.store_options(), options.connect_timeout_ms / 1000)
        return cls(follower, options, connection, kv_bucket)

    async def start(self, serving: Serving) -> None:
        """Begin to serve. Return when everything is read that is known to be needed, or can't be used."""
        self.plain.start()
        await self.plain.wait_opened(self._timeout_s)
        if self.follower is None:
            await serving.join()
        else:
            self.follower.start(serving)
            await self.follower.wait_caught_up()

    def links_changed(self, policy: LinkedBuckets) -> None:
        """Open the KV buckets that links name."""
        wanted, self.js_domain = {}, policy.js_domain
        for (domain, name), creates in policy.linked_buckets().items():
            try:
                wanted[KvPlace(domain, check_bucket_name(name))] = creates
            except StoreError:
                continue  # each call says so
        self.plain.want(wanted)

    def give_up_after(self, timeout_s: float) -> None:
        """Answer the calls that still wait after a time, because the instance stops."""
        self.plain.give_up_after(timeout_s)
        if self.follower is not None:
            self.follower.give_up_after(timeout_s)

    async def stop(self) -> None:
        """Stop following, and remove what this instance has in JetStream."""
        await self.plain.stop()
        if self.follower is not None:
            await self.follower.stop()

    # For operators.

    @property
    def identity(self) -> str:
        """Return a text that is the same at all instances with the same keys."""
        return self.plain.identity if self.follower is None else self.follower.identity

    @property
    def failures(self) -> list[BaseException | None]:
        """Return the exceptions that ended background tasks."""
        return [self.plain.failed, None if self.follower is None else self.follower.failed]

    def faults(self) -> list[str]:
        """Return why no calls are answered."""
        return [self.follower.fault] if self.follower is not None and self.follower.fault is not None else []

    def unusable(self) -> list[str]:
        """Return which KV buckets with plain names can't be used. All others are served."""
        return self.plain.faults()

    def remarks(self) -> list[str]:
        """Return what an operator should know although calls are answered."""
        return [*([] if self.follower is None else self.follower.remarks()), *self.plain.remarks()]

    def metrics(self) -> Callable[[], Iterable[Metric]]:
        """Return a function that returns the metrics of the replicated store."""
        from keyvalue_provider.observe.replica_metrics import Confirmations, replica_metrics

        confirmations = Confirmations()
        self.plain.observe = confirmations.observe
        if self.follower is not None:
            self.follower.core.publications.observe = confirmations.observe
        return partial(replica_metrics, self, confirmations)

    @property
    def _parts(self) -> tuple[Follower | OpenBuckets, ...]:
        return (self.plain,) if self.follower is None else (self.follower, self.plain)

    @property
    def is_serving(self) -> bool:
        """Return True if calls to all buckets are answered."""
        return all(part.is_serving for part in self._parts)

    @property
    def applied(self) -> int:
        """Return the sum of the sequences of the last messages that were applied."""
        return sum(part.applied for part in self._parts)

    @property
    def behind(self) -> int:
        """Return the number of messages that had not been delivered at the last deliveries."""
        return sum(part.behind for part in self._parts)

    @property
    def torn_s(self) -> float:
        """Return the seconds in which an older change may have been missing."""
        return sum(part.torn_s for part in self._parts)

    @property
    def counts(self) -> CountSum:
        """Return the numbers since the start."""
        total = CountSum()
        for part in self._parts:
            total.add(part.counts)
        return total

    @property
    def excess(self) -> dict[str, int]:
        """Return by how much the store exceeds each limit, by the name of its option."""
        return self.plain.excess if self.follower is None else self.follower.excess

    @property
    def open_buckets(self) -> int:
        """Return the number of KV buckets with plain names that are open."""
        return self.plain.open_count
