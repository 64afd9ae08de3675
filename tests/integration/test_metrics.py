"""Metrics of a launched provider, scraped after real calls."""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from nats.aio.client import Client
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from keyvalue_engine import Store, StoreOptions
from keyvalue_transport.keyvalue.errors import NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import encode_unit_result
from keyvalue_transport.keyvalue.outcomes import OUTCOMES
from keyvalue_transport.keyvalue.store import encode_set
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import (
    DEADLINE_S,
    HOST_CAPTURE,
    PATHS,
    Launch,
    NatsServer,
    Process,
    Provider,
    RawInvocation,
    in_thread,
    launching,
)
from tests.provider.observe.test_metrics import FUNCTIONS, PREFIX, Pieces

ON = {"metrics_address": "127.0.0.1:0"}
DAMAGED = b"\x02\xc3\x28\x01k"  # a bucket's name that is not UTF-8
OPENMETRICS = "application/openmetrics-text"


class Reply(NamedTuple):
    """An HTTP response."""

    status: int
    content_type: str
    text: str


class Endpoint(NamedTuple):
    """The HTTP endpoint of a launched provider."""

    host: str
    port: int

    @classmethod
    def of(cls, provider: Process) -> Endpoint:
        """Return the endpoint that the log names."""
        line = provider.wait_for("metrics at ")
        found = re.search(r"metrics at http://(.+):(\d+)/metrics\s*$", line)
        assert found is not None, line
        return cls(found[1], int(found[2]))

    def get(self, path: str, accept: str = "*/*") -> Reply:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", path, headers={"Accept": accept})
            response = connection.getresponse()
            return Reply(response.status, response.headers["Content-Type"], response.read().decode())
        finally:
            connection.close()

    def scrape(self) -> Scrape:
        """Return all samples. The event loop answers /livez first, so all earlier calls are counted."""
        assert self.get("/livez").status == 200
        samples = {}
        for family in parse_text(self.get("/metrics").text):
            samples.update({(one.name, frozenset(one.labels.items())): one.value for one in family.samples})
        return Scrape(samples)


class Scrape(NamedTuple):
    """Samples by name and labels."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        """Return one of our metrics. The name has no prefix."""
        return self.samples[f"{PREFIX}_{name}", frozenset(labels.items())]

    def operations(self) -> dict[tuple[str, str], float]:
        """Return the numbers of calls by function and outcome, where they are not 0."""
        pairs = [(function, outcome) for function in FUNCTIONS for outcome in OUTCOMES]
        values = {
            pair: self.value("operations_total", operation=pair[0], protocol="wrpc", result=pair[1]) for pair in pairs
        }
        return {pair: value for pair, value in values.items() if value}


async def scraped(provider: Provider) -> Scrape:
    scrape: Scrape = await in_thread(Endpoint.of(provider).scrape)
    return scrape


async def end_damaged(provider: Provider, raw: Client, function: str) -> None:
    """Send malformed parameters, and wait until the invocation ends."""
    damaged = await RawInvocation.begin(raw, provider.subject(function), DAMAGED)
    assert await damaged.result() == b""


@pytest.fixture(scope="module")
def provider(nats_server: NatsServer, path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """Launch one provider with metrics, for all tests that only compare numbers."""
    with launching(nats_server.url, tmp_path_factory.mktemp("provider")) as launch:
        yield launch(ON | {"transport": path})


# Counts


@pytest.mark.parametrize("path", PATHS)
async def test_counts_are_those_of_the_calls(launch: Launch, nats_server: NatsServer, raw: Client, path: str) -> None:
    """Invocations that end without a result are counted by cause."""
    limits = {"half_open_bytes_max": "4000", "half_open_timeout_ms": "100"}
    provider = launch(
        ON | limits | {"transport": path, "strict_buckets": "true", "page_keys": "2", "value_bytes_max": "9"}
    )
    twin = Store(StoreOptions(strict_buckets=True, page_keys_max=2, value_bytes_max=9))
    link = HOST_CAPTURE["host_data"]["link_definitions"][0] | {"target": provider.key, "source_id": "another"}
    await raw.publish(provider.host_subject("linkdefs.put"), json.dumps(link).encode())
    await in_thread(provider.wait_for, "link put")
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        for key in ("1", "2", "3", "4"):
            await client.set("b", key, b"value")
            twin.bucket(b"b").set(key.encode(), b"value")
        with pytest.raises(OtherError, match=r"^value is 10 bytes; the limit is 9 \(value_bytes_max\)$"):
            await client.set("b", "5", bytes(10))
        assert await client.get("b", "1") == b"value"
        assert await client.get("b", "absent") is None
        assert await client.get("b", "absent") is None
        with pytest.raises(NoSuchStoreError):
            await client.get("never written", "1")
        assert await client.exists("b", "2") is True
        assert await client.exists("b", "absent") is False
        await client.delete("b", "4")
        twin.bucket(b"b").delete(b"4")
        first, cursor = await client.list_keys("b")
        second, end = await client.list_keys("b", cursor)
        assert (len(first), len(second), end) == (2, 1, None)
        twin.bucket(b"b").page(twin.bucket(b"b").page().cursor)
        assert await client.increment("b", "n", 5) == 5
        with pytest.raises(OtherError, match="the value 'value' is not a decimal number"):
            await client.increment("b", "1", 5)
        twin.bucket(b"b").increment(b"n", 5)
        await client.set_many("b", {"6": b"x", "7": b"y"})
        twin.bucket(b"b").set_many({b"6": b"x", b"7": b"y"})
        assert await client.get_many("b", ["7", "absent"]) == [b"y", None]
        await client.delete_many("b", ["6", "absent"])
        twin.bucket(b"b").delete_many([b"6"])
        await end_damaged(provider, raw, "get")
        await end_damaged(provider, raw, "exists")
        for piece in (b"\x01b\x01k", b"\x01b\x90\x4e" + bytes(2000)):  # one expires, and one is too large to be held
            ended = await RawInvocation.begin(raw, provider.subject("set"), piece)
            assert await ended.result() == b""
        await raw.publish(provider.subject("set"), encode_set(b"b", b"k", b"value"))
        await raw.flush()
        assert await client.exists("b", "2") is True
    scrape = await scraped(provider)
    expected = {
        ("set", "ok"): 4,
        ("set", "other"): 1,
        ("get", "ok"): 1,
        ("get", "none"): 2,
        ("get", "no_such_store"): 1,
        ("get", "failed"): 1,
        ("exists", "ok"): 2,
        ("exists", "none"): 1,
        ("exists", "failed"): 1,
        ("delete", "ok"): 1,
        ("list-keys", "ok"): 2,
        ("increment", "ok"): 1,
        ("increment", "other"): 1,
        ("get-many", "ok"): 1,
        ("set-many", "ok"): 1,
        ("delete-many", "ok"): 1,
    }
    assert scrape.operations() == expected
    for function in FUNCTIONS:
        calls = sum(count for (name, _), count in expected.items() if name == function)
        assert scrape.value("operation_duration_seconds_count", operation=function, protocol="wrpc") == calls
        assert (
            scrape.value("operation_duration_seconds_bucket", operation=function, protocol="wrpc", le="+Inf") == calls
        )
        assert 0 < scrape.value("operation_duration_seconds_sum", operation=function, protocol="wrpc") < DEADLINE_S
    assert scrape.value("keyspace_hits_total") == 3
    assert scrape.value("keyspace_misses_total") == 3
    assert scrape.value("pages_total") == 2
    assert scrape.value("decode_errors_total") == 2
    assert scrape.value("failed_invocations_total") == 0
    assert scrape.value("expired_invocations_total") == 1
    assert scrape.value("refused_invocations_total") == 1
    assert scrape.value("invocations_without_reply_total") == 1
    assert scrape.value("links") == 1
    assert scrape.value("buckets") == 1
    assert scrape.value("keys") == 5
    assert scrape.value("memory_bytes") == twin.memory_bytes
    assert scrape.value("memory_limit_bytes") == float("inf")
    assert scrape.value("nats_connected") == 1
    assert scrape.value("nats_reconnects_total") == 0
    assert scrape.value("invocations_in_flight") == scrape.value("half_open_invocations") == 0
    (labels,) = (dict(labels) for name, labels in scrape.samples if name == f"{PREFIX}_build_info")
    assert labels["transport"] == path


async def test_bytes_are_those_of_the_values(provider: Provider, nats_server: NatsServer) -> None:
    size, calls, around = (
        100_000,
        3,
        1_000,
    )  # subjects, framing and nats-py's own messages are less than `around` a call
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        before = await scraped(provider)
        for number in range(calls):
            await client.set("b", f"{number}", bytes(size))
        written = await scraped(provider)
        for number in range(calls):
            assert await client.get("b", f"{number}") == bytes(size)
        read = await scraped(provider)

    def grown(name: str, first: Scrape, last: Scrape) -> float:
        return (last.value(name) - first.value(name)) / calls

    assert size < grown("received_bytes_total", before, written) < size + around
    assert 0 < grown("sent_bytes_total", before, written) < around
    assert 0 < grown("received_bytes_total", written, read) < around
    assert size < grown("sent_bytes_total", written, read) < size + around
    assert read.value("memory_bytes") > calls * size


async def test_half_open_invocations_are_counted_until_they_are_whole(provider: Provider, raw: Client) -> None:
    """Count the duration of a call in pieces at once, since there may be no later batch to count it."""
    before = await scraped(provider)
    params = encode_set(b"b", b"k", b"value")
    half = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    server_inbox = await half.handshake()
    scrape = await scraped(provider)
    assert scrape.value("half_open_invocations") == scrape.value("invocations_in_flight") == 1
    assert scrape.operations() == before.operations()
    await half.send(server_inbox, params[-1:], b"")
    assert await half.result() == encode_unit_result(None)
    scrape = await scraped(provider)
    assert scrape.value("half_open_invocations") == scrape.value("invocations_in_flight") == 0
    sets = [one.value("operation_duration_seconds_count", operation="set", protocol="wrpc") for one in (before, scrape)]
    assert sets[1] - sets[0] == 1


# Formats


async def test_the_format_is_negotiated(provider: Provider) -> None:
    """tests/provider/observe/test_metrics.py checks that both formats have the same content."""
    endpoint = Endpoint.of(provider)
    text = await in_thread(endpoint.get, "/metrics")
    strict = await in_thread(endpoint.get, "/metrics", f"{OPENMETRICS};version=1.0.0;q=0.5,text/plain;q=0.1")
    assert text.content_type.startswith("text/plain;")
    assert "# EOF" not in text.text
    assert strict.content_type.startswith(f"{OPENMETRICS};")
    assert strict.text.endswith("# EOF\n")


# Where it listens


async def test_a_port_in_use_is_reported_once(launch: Launch, nats_server: NatsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        provider = launch({"metrics_address": address}, wait=False)
        await in_thread(provider.wait_for, "ready: serving")  # "already" is in the log too
        async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
            await client.set("b", "k", b"v")
            assert await client.get("b", "k") == b"v"
        assert await in_thread(provider.stop) == 0
    message = f"metrics_address {address}: Address already in use; metrics are off"
    assert provider.output.count(message) == 1
    assert provider.output.count("ERROR") == 1
    assert "metrics at" not in provider.output


def listening(pid: int) -> list[str]:
    """Return the addresses at which a process listens for TCP connections, as the kernel writes them."""
    links = [Path(f"/proc/{pid}/fd/{entry.name}") for entry in Path(f"/proc/{pid}/fd").iterdir()]
    sockets = {str(link.readlink()) for link in links}
    rows = [
        row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{table}").read_text().split("\n")
    ]
    return [row[1] for row in rows if len(row) > 9 and row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


def test_nothing_listens_by_default_and_a_port_alone_means_the_loopback_address(launch: Launch) -> None:
    silent = launch()
    assert listening(silent.process.pid) == []
    assert "metrics" not in silent.output
    asked = launch({"metrics_address": "0"})
    assert listening(asked.process.pid) == [f"0100007F:{Endpoint.of(asked).port:04X}"]


# Cost


def test_the_cost_of_a_scrape_does_not_depend_on_the_keys() -> None:
    """Measure the number of function calls, which is the same on every machine."""
    store = Store()
    registry = Pieces.of(store).registry()

    def calls_of_a_scrape() -> int:
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        text = generate_latest(registry)
        sys.setprofile(None)
        assert b"\nwrpc_keyvalue_keys %.1f\n" % len(store) in text
        return calls

    for number in range(100):
        store.bucket(b"b").set(b"%d" % number, b"value")
    few = calls_of_a_scrape()
    for number in range(10_000):
        store.bucket(b"b").set(b"%d" % number, b"value")
    assert calls_of_a_scrape() < few + 1_000
