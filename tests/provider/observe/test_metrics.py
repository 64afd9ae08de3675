"""Metrics in one process: real tallies, store, server and links, on a connection that was never opened."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

import prometheus_client.exposition
import pytest
from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.host.links import LinkDefinition, Links
from keyvalue_provider.observe.log import LimitedHandler
from keyvalue_provider.observe.metrics import DURATION_BOUNDS_S, Durations, Metrics
from keyvalue_provider.observe.other_instances import Other, OtherInstances
from keyvalue_provider.watching.queue import WatchLimits
from keyvalue_provider.watching.watchers import Watchers
from keyvalue_transport.keyvalue.atomics import atomics_tallies
from keyvalue_transport.keyvalue.batch import batch_tallies
from keyvalue_transport.keyvalue.outcomes import FAILED, NONE, OK, OTHER, OUTCOMES, Tally
from keyvalue_transport.keyvalue.store import store_tallies
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.server import Server

FUNCTIONS = ("get", "set", "delete", "exists", "list-keys", "increment", "get-many", "set-many", "delete-many")
PREFIX = "wrpc_keyvalue"
DURATION = f"{PREFIX}_operation_duration_seconds"


def debian_program(name: str, package: str = "prometheus") -> str:
    """Return the path of a program of one of Debian's packages. If it is missing, skip the test; in CI, fail it."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


@pytest.fixture(scope="session")
def promtool() -> str:
    return debian_program("promtool")


class Pieces(NamedTuple):
    """The objects that metrics are collected from."""

    tallies: dict[str, Tally]
    durations: Durations
    store: Store
    server: Server
    connection: Connection
    links: Links
    watchers: Watchers
    others: OtherInstances

    @classmethod
    def of(cls, store: Store, path: str = "plain") -> Pieces:
        tallies = store_tallies() | atomics_tallies() | batch_tallies()
        connection = Connection(ConnectionOptions(("nats://127.0.0.1:4222",), path=path))
        server = Server(connection, "default.kv")
        links = Links("kv")
        watchers = Watchers(connection, "default", store, links, WatchLimits(1, 1, 1.0))
        others = OtherInstances(connection, "default.kv", "here")
        return cls(tallies, Durations(tallies), store, server, connection, links, watchers, others)

    def families(self) -> dict[str, Metric]:
        """Return the families of a scrape, by name."""
        return {family.name: family for family in Metrics(*self).collect()}

    def value(self, sample: str, **labels: str) -> float:
        """Return the value of the one sample of this name and labels."""
        samples = [one for family in self.families().values() for one in family.samples]
        (value,) = (one.value for one in samples if one.name == sample and one.labels == labels)
        return float(value)

    def registry(self) -> CollectorRegistry:
        """Return the registry that the endpoint exposes."""
        registry = CollectorRegistry()
        registry.register(Metrics(*self))
        ProcessCollector(registry=registry)
        return registry


@pytest.fixture
def pieces() -> Pieces:
    return Pieces.of(Store())


# Durations


def counts(durations: Durations, function: str) -> dict[int, int]:
    """Return the buckets of the histogram that are not empty, by index."""
    return {index: count for index, count in enumerate(durations.counts[function]) if count}


def test_each_duration_belongs_to_one_bucket() -> None:
    """The upper bound of a bucket belongs to it. The first and the last bucket take the rest."""
    assert list(DURATION_BOUNDS_S) == sorted(set(DURATION_BOUNDS_S))
    assert (DURATION_BOUNDS_S[0], DURATION_BOUNDS_S[-1]) == (1e-6, 1.0)
    cases = [(0.0, 0), (3600.0, len(DURATION_BOUNDS_S))]
    for index, bound_s in enumerate(DURATION_BOUNDS_S):
        cases += [(bound_s * 0.999, index), (bound_s, index), (bound_s * 1.001, index + 1)]
    for duration_s, index in cases:
        tallies = store_tallies()
        durations = Durations(tallies)
        tallies["get"][OK] += 1
        durations.observe(duration_s)
        assert counts(durations, "get") == {index: 1}, duration_s
        assert durations.sums_s["get"] == duration_s


def test_a_batch_of_several_functions_and_outcomes() -> None:
    tallies = store_tallies()
    durations = Durations(tallies)
    tallies["get"][OK] += 3
    tallies["get"][NONE] += 2
    tallies["set"][OTHER] += 1
    durations.observe(2e-6)
    tallies["get"][FAILED] += 1
    tallies["list-keys"][OK] += 4
    durations.observe(0.3)
    durations.observe(0.4)  # a read without a call
    assert counts(durations, "get") == {1: 5, 17: 1}
    assert counts(durations, "set") == {1: 1}
    assert counts(durations, "list-keys") == {17: 4}
    assert counts(durations, "delete") == counts(durations, "exists") == {}
    assert durations.sums_s == pytest.approx(
        {"get": 5 * 2e-6 + 0.3, "set": 2e-6, "delete": 0.0, "exists": 0.0, "list-keys": 4 * 0.3}
    )


# Families


def test_every_family_has_its_type_and_labels_and_appears_once(pieces: Pieces) -> None:
    families = list(Metrics(*pieces).collect())
    found = {}
    for family in families:
        assert family.name.startswith(f"{PREFIX}_")
        assert family.documentation.endswith(".")
        labels = {label for sample in family.samples for label in sample.labels}
        found[family.name.removeprefix(f"{PREFIX}_")] = family.type, labels
    assert len(found) == len(families)
    counters = {name.removesuffix("_total") for name in NUMBERS if name.endswith("_total")}
    assert found == {
        **dict.fromkeys(counters, ("counter", set())),
        **{name: ("gauge", set()) for name in (*NUMBERS, "memory_bytes") if not name.endswith("_total")},
        "operations": ("counter", {"operation", "protocol", "result"}),
        "operation_duration_seconds": ("histogram", {"operation", "protocol", "le"}),
        "watch_events": ("counter", {"result"}),
        "evicted_keys": ("counter", {"limit"}),
        "build": ("info", {"version", "python", "transport"}),
    }


def test_label_values_are_closed_sets(pieces: Pieces) -> None:
    """No label names a bucket or a link, and the number of samples is constant."""
    before = [(one.name, one.labels) for family in pieces.families().values() for one in family.samples]
    for number in range(100):
        pieces.store.bucket(b"bucket-%d" % number).set(b"key", b"value")
        pieces.links.put(LinkDefinition(f"component-{number}", "kv", "default"))
    after = [(one.name, one.labels) for family in pieces.families().values() for one in family.samples]
    assert after == before
    allowed = {
        "operation": set(FUNCTIONS),
        "protocol": {"wrpc"},
        "result": set(OUTCOMES),
        "transport": {"plain", "direct"},
    }
    for name, values in allowed.items():
        assert {labels[name] for _, labels in after if name in labels} <= values


def test_every_function_and_outcome_exists_from_the_start(pieces: Pieces) -> None:
    samples = pieces.families()[f"{PREFIX}_operations"].samples
    assert [(one.labels["operation"], one.labels["result"], one.value) for one in samples] == [
        (function, outcome, 0) for function in FUNCTIONS for outcome in OUTCOMES
    ]


# Values


def set_all_numbers(pieces: Pieces, now_ns: list[int]) -> None:
    """Set each number of NUMBERS to a value of its own, except for the gauges of a server without calls."""
    for bucket, key, ttl_ms in ((b"a", b"1", None), (b"a", b"2", None), (b"b", b"1", None), (b"b", b"expired", 1)):
        pieces.store.bucket(bucket).set(key, b"value", ttl_ms=ttl_ms)
    now_ns[0] = 1_000_000
    pieces.store.sweep()
    pieces.tallies["get"][:] = [1, 2, 3, 4, 5, 6]
    pieces.tallies["exists"][:] = [10, 20, 0, 0, 0, 0]
    pieces.tallies["list-keys"][:] = [100, 0, 0, 0, 7, 0]
    counts = pieces.server.counts
    counts.received_bytes, counts.sent_bytes, counts.damaged, counts.expired = 31, 32, 33, 34
    counts.refused, counts.failed, counts.without_reply, counts.stray_pieces = 35, 36, 37, 38
    pieces.server.unsent, pieces.connection.reconnects, pieces.connection.dropped = 39, 40, 41
    connection = pieces.connection
    connection.denials.count, connection.reading.ignored, connection.reading.ended, connection.replies.refused = (
        45,
        46,
        47,
        48,
    )
    watch_counts = pieces.watchers.counts
    watch_counts.delivered, watch_counts.failed, watch_counts.dropped = 42, 43, 44
    for number in range(5):
        pieces.links.put(LinkDefinition("component", "kv", str(number)))
    for number in range(7):
        pieces.links.put_unreadable(("component", "kv", f"unusable {number}"), "it is no object")
    for number in range(6):
        pieces.others._others[str(number)] = Other("memory", "there")
    handler = LimitedHandler()
    handler.writer.refused, handler.writer.failed = 40, 9
    logging.getLogger().addHandler(handler)


#: The samples without labels, as `set_all_numbers` sets them.
NUMBERS: dict[str, float] = {
    "invocations_in_flight": 0,
    "half_open_invocations": 0,
    "half_open_queued": 0,
    "half_open_bytes": 0,
    "half_open_expected_bytes": 0,
    "in_flight_bytes": 0,
    "received_bytes_total": 31,
    "sent_bytes_total": 32,
    "decode_errors_total": 33,
    "expired_invocations_total": 34,
    "refused_invocations_total": 35,
    "failed_invocations_total": 36,
    "invocations_without_reply_total": 37,
    "stray_pieces_total": 38,
    "unsent_messages_total": 39,
    "nats_reconnects_total": 40,
    "nats_dropped_messages_total": 41,
    "nats_denied_messages_total": 45,
    "nats_ignored_messages_total": 46,
    "nats_readings_ended_total": 47,
    "refused_replies_total": 48,
    "log_dropped_lines_total": 49,
    "nats_connected": 0,
    "watch_dropped_total": 44,
    "watch_queue_length": 0,
    "buckets": 2,
    "keys": 3,
    "expired_keys_total": 1,
    "evicts": 0,
    "memory_limit_bytes": 10_000,
    "keyspace_hits_total": 11,
    "keyspace_misses_total": 22,
    "pages_total": 100,
    "left_out_keys_total": 0,
    "links": 5,
    "unusable_links": 7,
    "healthy": 1,
    "other_instances": 6,
}


@pytest.mark.usefixtures("root")
def test_every_number_is_exposed() -> None:
    now_ns = [0]
    pieces = Pieces.of(Store(StoreOptions(memory_bytes_max=10_000), clock=lambda: now_ns[0]))
    set_all_numbers(pieces, now_ns)
    samples = [sample for family in pieces.families().values() for sample in family.samples]
    assert {one.name.removeprefix(f"{PREFIX}_"): one.value for one in samples if not one.labels} == {
        **NUMBERS,
        "memory_bytes": pieces.store.memory_bytes,
    }
    assert pieces.store.memory_bytes > 0
    for count, outcome in enumerate(OUTCOMES, 1):
        assert pieces.value(f"{PREFIX}_operations_total", operation="get", protocol="wrpc", result=outcome) == count
    assert pieces.value(f"{PREFIX}_watch_events_total", result="ok") == 42
    assert pieces.value(f"{PREFIX}_watch_events_total", result="failed") == 43


def test_a_missing_limit_is_infinite(pieces: Pieces) -> None:
    assert pieces.value(f"{PREFIX}_memory_limit_bytes") == float("inf")


def test_buckets_of_the_histogram_are_cumulative(pieces: Pieces) -> None:
    for duration_s in (1e-6, 2e-6, 0.9, 2.0):
        pieces.tallies["delete"][OK] += 2
        pieces.durations.observe(duration_s)
    buckets = {
        one.labels["le"]: one.value
        for one in pieces.families()[DURATION].samples
        if one.name == f"{DURATION}_bucket" and one.labels["operation"] == "delete"
    }
    assert list(buckets) == [*map(str, DURATION_BOUNDS_S), "+Inf"]
    assert [buckets[bound] for bound in ("1e-06", "2.5e-06", "0.5", "1.0", "+Inf")] == [2, 4, 4, 6, 8]
    assert pieces.value(f"{DURATION}_count", operation="delete", protocol="wrpc") == 8
    assert pieces.value(f"{DURATION}_sum", operation="delete", protocol="wrpc") == pytest.approx(
        2 * (1e-6 + 2e-6 + 0.9 + 2.0)
    )


@pytest.mark.parametrize("path", ["plain", "direct"])
def test_the_build_names_the_path_in_use(path: str) -> None:
    (build,) = Pieces.of(Store(), path).families()[f"{PREFIX}_build"].samples
    assert build.name == f"{PREFIX}_build_info"
    assert build.value == 1
    assert build.labels["transport"] == path
    assert build.labels["version"].count(".") == 2


# The exposed text


def test_promtool_finds_no_fault(pieces: Pieces, promtool: str) -> None:
    text = prometheus_client.exposition.generate_latest(pieces.registry())
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_promtool_finds_faults(promtool: str) -> None:
    text = b"# HELP calls_count Calls.\n# TYPE calls_count counter\ncalls_count 1\n"
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert done.returncode != 0
    assert b"calls_count" in done.stderr


def test_both_formats_have_the_same_content(pieces: Pieces) -> None:
    pieces.tallies["get"][OK] += 1
    pieces.durations.observe(1e-5)
    registry = CollectorRegistry()
    registry.register(Metrics(*pieces))  # without the process metrics, which change in between
    text = prometheus_client.exposition.generate_latest(registry).decode()
    strict = openmetrics.generate_latest(registry).decode()  # type: ignore[no-untyped-call]
    assert strict.endswith("# EOF\n")

    def samples(families: Iterable[Metric]) -> set[tuple[str, frozenset[tuple[str, str]], float]]:
        return {(one.name, frozenset(one.labels.items()), one.value) for family in families for one in family.samples}

    expected = samples(pieces.families().values())
    assert samples(parse_openmetrics(strict)) == expected  # type: ignore[no-untyped-call]
    assert samples(text_string_to_metric_families(text)) == expected
