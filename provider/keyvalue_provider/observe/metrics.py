"""The metrics for Prometheus. Calls are counted in plain lists of integers. Each scrape builds metric families from
the counts.

Label values come from fixed sets: functions, outcomes, versions. No label holds a key, a bucket name, or any other
name that a caller chose.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from typing import Protocol

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from keyvalue_engine import StoreOptions
from keyvalue_provider.health import Health
from keyvalue_provider.host.links import Links
from keyvalue_provider.observe.log import dropped_lines
from keyvalue_provider.observe.other_instances import OtherInstances
from keyvalue_provider.watching.queue import WatchCounts
from keyvalue_transport.keyvalue.outcomes import NONE, OK, OUTCOMES, Tally
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.server import Server
from keyvalue_transport.redis.durations import CommandDurations

__all__ = ["DURATION_BOUNDS_S", "Durations", "Metrics"]

PREFIX = "wrpc_keyvalue"

#: Upper bounds of the buckets in the histogram, from 1 us to 1 s.
DURATION_BOUNDS_S = (
    *(1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4),
    *(1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1, 2.5e-1, 5e-1, 1.0),
)


class Durations:
    """Call durations by function, measured from reading the frame to writing the answer.

    Frames are handled in batches, and each call is counted with the duration of its whole batch. `observe` runs after
    each batch. It derives the number of calls in the batch from the increase of the tallies since the previous batch.
    """

    def __init__(self, tallies: Mapping[str, Tally]) -> None:
        self.counts = {name: [0] * (len(DURATION_BOUNDS_S) + 1) for name in tallies}
        # By function, in the order of `tallies`:
        self._tallies = list(tallies.values())
        self._seen = [tally.copy() for tally in self._tallies]
        self._counts = list(self.counts.values())
        self._sums_s = [0.0] * len(tallies)
        self._place = 0  # of the function that was called last, which is often called next

    @property
    def sums_s(self) -> dict[str, float]:
        """Return the sum of the durations of each function's calls."""
        return dict(zip(self.counts, self._sums_s, strict=True))

    def observe(self, duration_s: float) -> None:
        """Count the calls in a batch that took `duration_s`."""
        tallies, seen, place = self._tallies, self._seen, self._place
        while True:
            tally = tallies[place]
            if tally != seen[place]:
                calls = sum(tally) - sum(seen[place])
                seen[place] = tally.copy()
                self._counts[place][bisect_left(DURATION_BOUNDS_S, duration_s)] += calls
                self._sums_s[place] += calls * duration_s
            if tallies == seen:  # one comparison of all is faster than a loop
                return
            self._place = place = (place + 1) % len(tallies)


class Watching(Protocol):
    """The part of the watchers that the metrics need."""

    counts: WatchCounts

    @property
    def queue_length(self) -> int: ...


class CountedStore(Protocol):
    """The part of the store that the metrics need."""

    options: StoreOptions

    @property
    def bucket_count(self) -> int: ...

    @property
    def memory_bytes(self) -> int: ...

    @property
    def expired_keys(self) -> int: ...

    @property
    def evicted_keys(self) -> dict[str, int]: ...

    def __len__(self) -> int: ...


class Metrics(Collector):
    """The collector of all metrics. A scrape takes O(functions x outcomes) time, however many keys exist.

    :param more: functions that return further metric families
    :param redis_tallies: the calls of Redis clients, by command, and their durations
    :param left_out_keys: returns the number of keys that list-keys left out
    :ivar health: returns what is wrong with the provider
    """

    def __init__(
        self,
        tallies: Mapping[str, Tally],
        durations: Durations,
        store: CountedStore,
        server: Server,
        connection: Connection,
        links: Links,
        watchers: Watching,
        others: OtherInstances,
        more: Sequence[Callable[[], Iterable[Metric]]] = (),
        redis_tallies: Mapping[str, Tally] | None = None,
        redis_durations: CommandDurations | None = None,
        left_out_keys: Callable[[], int] = int,
    ) -> None:
        self._redis_tallies = redis_tallies or {}
        self._redis_durations = redis_durations
        self._left_out_keys = left_out_keys
        self.health: Callable[[], Health] = lambda: Health([], [], [])
        self._more = more
        self._tallies = tallies
        self._durations = durations
        self._store = store
        self._server = server
        self._connection = connection
        self._links = links
        self._watchers = watchers
        self._others = others
        # Look up the version only once, because it is read from files.
        self._build = {
            "version": version("keyvalue-inmemory"),
            "python": platform.python_version(),
            "transport": "plain" if connection.direct is None else "direct",
        }

    def collect(self) -> Iterable[Metric]:
        """Yield all metric families."""
        yield from self._operations()
        yield from self._invocations()
        yield from self._keyspace()
        connection = self._connection
        yield _counter("nats_reconnects", "Reconnects to NATS after a lost connection.", connection.reconnects)
        yield _gauge("nats_connected", "1 while connected to a NATS server, otherwise 0.", connection.connected)
        yield _counter(
            "nats_dropped_messages",
            "Messages dropped because they arrived too fast.",
            connection.dropped,
        )
        yield _counter(
            "nats_denied_messages",
            "Messages that NATS refused to publish, for want of permission or because of a caller's reply subject.",
            connection.denials.count,
        )
        yield _counter(
            "nats_ignored_messages", "Messages from NATS that could not be handled.", connection.reading.ignored
        )
        yield _counter(
            "nats_readings_ended", "Times that reading from NATS ended and was begun again.", connection.reading.ended
        )
        yield _counter(
            "refused_replies",
            "Messages that were not answered because of their reply subject.",
            connection.replies.refused,
        )
        yield from self._watched()
        yield _gauge("links", "Links that the host has put.", len(self._links))
        health = self.health()
        yield _gauge("healthy", "1 if the host is told that the provider is healthy, otherwise 0.", health.is_healthy)
        yield _gauge("unusable_links", "Links that the host has put and that are unusable.", self._links.unusable_count)
        yield _gauge(
            "other_instances", "Other instances that serve the same prefix with other keys.", self._others.count
        )
        yield _counter(
            "log_dropped_lines", "Log lines dropped because standard error did not take them.", dropped_lines()
        )
        for more in self._more:
            yield from more()
        yield InfoMetricFamily(f"{PREFIX}_build", "Version, Python and transport of this process.", self._build)

    def _operations(self) -> Iterable[Metric]:
        operations = CounterMetricFamily(
            f"{PREFIX}_operations", "Calls by function and result.", labels=("operation", "protocol", "result")
        )
        durations = HistogramMetricFamily(
            f"{PREFIX}_operation_duration_seconds",
            "Time from reading a call to writing its answer.",
            labels=("operation", "protocol"),
        )
        for name, tally in self._tallies.items():
            for outcome, count in zip(OUTCOMES, tally, strict=True):
                operations.add_metric((name, "wrpc", outcome), count)
            durations.add_metric((name, "wrpc"), _buckets(self._durations.counts[name]), self._durations.sums_s[name])
        for name, tally in self._redis_tallies.items():
            for outcome, count in zip(OUTCOMES, tally, strict=True):
                operations.add_metric((name, "redis", outcome), count)
        if self._redis_durations is not None:
            for name, counts in self._redis_durations.counts.items():
                if any(counts):  # there are many commands, and most are never called
                    durations.add_metric((name, "redis"), _buckets(counts), self._redis_durations.sums_s[name][0])
        yield operations
        yield durations

    def _invocations(self) -> Iterable[Metric]:
        server, counts, invocations = self._server, self._server.counts, self._server.invocations
        yield _gauge("invocations_in_flight", "Invocations that were accepted and have not ended.", server.in_flight)
        yield _gauge("half_open_invocations", "Invocations with incomplete parameters.", invocations.half_open)
        yield _gauge(
            "half_open_queued", "Half-open invocations that wait for their handshake.", invocations.half_open_queued
        )
        yield _gauge("half_open_bytes", "Memory of half-open invocations.", invocations.half_open_bytes)
        yield _gauge(
            "half_open_expected_bytes",
            "Bytes that half-open invocations with a handshake still expect.",
            invocations.expected_bytes,
        )
        yield _gauge(
            "in_flight_bytes",
            "Memory of calls and Redis requests that wait for the store.",
            invocations.in_flight.held_bytes,
        )
        yield _counter(
            "received_bytes",
            "Bytes received for invocations, including framing on the direct path.",
            counts.received_bytes,
        )
        yield _counter("sent_bytes", "Bytes sent for answers, including framing on the direct path.", counts.sent_bytes)
        yield _counter("decode_errors", "Invocations ended because of malformed parameters.", counts.damaged)
        yield _counter(
            "expired_invocations",
            "Invocations ended because no piece arrived, or a result could not be sent, in time.",
            counts.expired,
        )
        yield _counter("refused_invocations", "Invocations refused because too much was held already.", counts.refused)
        yield _counter("failed_invocations", "Invocations ended by an internal error.", counts.failed)
        yield _counter("invocations_without_reply", "Invocations without a reply subject.", counts.without_reply)
        yield _counter("stray_pieces", "Pieces of parameters that belong to no invocation.", counts.stray_pieces)
        yield _counter("unsent_messages", "Answer messages lost because NATS was not connected.", server.unsent)

    def _watched(self) -> Iterable[Metric]:
        watchers, counts = self._watchers, self._watchers.counts
        events = CounterMetricFamily(
            f"{PREFIX}_watch_events", "Events for which a watching component was called.", labels=("result",)
        )
        events.add_metric(("ok",), counts.delivered)
        events.add_metric(("failed",), counts.failed)
        yield events
        yield _counter(
            "watch_dropped", "Events dropped because the queue was full or the watcher was removed.", counts.dropped
        )
        yield _gauge("watch_queue_length", "Events waiting for a component or for its answer.", watchers.queue_length)

    def _keyspace(self) -> Iterable[Metric]:
        store = self._store
        limit = store.options.memory_bytes_max
        yield _gauge("buckets", "Buckets that hold a key.", store.bucket_count)
        yield _gauge("keys", "Keys in all buckets.", len(store))
        yield _gauge("memory_bytes", "Memory of keys and values, as the engine counts it.", store.memory_bytes)
        yield _gauge("memory_limit_bytes", "Limit of memory_bytes.", float("inf") if limit is None else limit)
        reads = [self._tallies[name] for name in ("get", "exists")]
        yield _counter("keyspace_hits", "Calls of get and exists that found a key.", sum(tally[OK] for tally in reads))
        yield _counter(
            "keyspace_misses", "Calls of get and exists that found no key.", sum(tally[NONE] for tally in reads)
        )
        yield _counter("expired_keys", "Expired keys that were removed.", store.expired_keys)
        evicted = CounterMetricFamily(
            f"{PREFIX}_evicted_keys",
            "Keys that were evicted because a limit was reached.",
            labels=("limit",),
        )
        for option, keys in store.evicted_keys.items():
            evicted.add_metric((option,), keys)
        yield evicted
        yield _gauge("evicts", "1 if a full store evicts keys, otherwise 0.", store.options.eviction != "none")
        yield _counter("pages", "Pages that list-keys returned.", self._tallies["list-keys"][OK])
        yield _counter(
            "left_out_keys", "Keys that list-keys left out, because they are not UTF-8.", self._left_out_keys()
        )


def _buckets(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return the upper bound of each bucket, with the number of calls up to it."""
    return list(zip(map(str, (*DURATION_BOUNDS_S, "+Inf")), accumulate(counts), strict=True))


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}_{name}", what, value)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", what, value)
