"""Metrics of a launched provider: what was called is what is scraped."""

from __future__ import annotations

import http.client
import json
import re
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nats
import pytest
from nats.aio.client import Client
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.observe.endpoint import CONNECTION_TIMEOUT_S, CONNECTIONS_MAX
from keyvalue_transport.keyvalue.errors import NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import encode_bucket_key, encode_unit_result
from keyvalue_transport.keyvalue.outcomes import OUTCOMES
from keyvalue_transport.keyvalue.store import encode_get_result, encode_set
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, HOST_CAPTURE, Launch, NatsServer, Provider, RawInvocation, in_thread
from tests.provider.observe.test_metrics import FUNCTIONS, PREFIX, Pieces

ON = {"metrics_address": "127.0.0.1:0"}
DAMAGED = b"\x02\xc3\x28\x01k"  # a bucket's name that is not UTF-8
OPENMETRICS = "application/openmetrics-text"
SCRAPE_S_MAX = 0.005
PASSWORD = "Xq9-never-to-be-seen"


class Reply(NamedTuple):
    """What an HTTP server answered."""

    status: int
    content_type: str
    text: str


class Endpoint(NamedTuple):
    """The HTTP endpoint of a launched provider."""

    host: str
    port: int

    @classmethod
    def of(cls, provider: Provider) -> Endpoint:
        """As the log says where it is."""
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
        """All samples. /livez is answered by the event loop: what was answered before is counted by then."""
        assert self.get("/livez").status == 200
        samples = {}
        for family in parse_text(self.get("/metrics").text):
            samples.update({(one.name, frozenset(one.labels.items())): one.value for one in family.samples})
        return Scrape(samples)


class Scrape(NamedTuple):
    """Samples by name and labels."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        """Of one of our metrics, its name without the prefix."""
        return self.samples[f"{PREFIX}_{name}", frozenset(labels.items())]

    def operations(self) -> dict[tuple[str, str], float]:
        """Calls by function and outcome, where there were any."""
        pairs = [(function, outcome) for function in FUNCTIONS for outcome in OUTCOMES]
        values = {pair: self.value("operations_total", operation=pair[0], result=pair[1]) for pair in pairs}
        return {pair: value for pair, value in values.items() if value}


async def scraped(provider: Provider) -> Scrape:
    scrape: Scrape = await in_thread(Endpoint.of(provider).scrape)
    return scrape


async def end_damaged(provider: Provider, raw: Client, function: str) -> None:
    """An invocation whose parameters are no values; it is ended."""
    damaged = await RawInvocation.begin(raw, provider.subject(function), DAMAGED)
    assert await damaged.result() == b""


# Counts


async def test_counts_are_those_of_the_calls(launch: Launch, nats_server: NatsServer, raw: Client) -> None:
    provider = launch(ON | {"strict_buckets": "true", "page_keys": "2", "value_bytes_max": "9"})
    twin = Store(StoreOptions(strict_buckets=True, page_keys_max=2, value_bytes_max=9))
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        for key in ("1", "2", "3", "4"):
            await client.set("b", key, b"value")
            twin.bucket(b"b").set(key.encode(), b"value")
        with pytest.raises(OtherError, match=r"value is 10 bytes; the limit is 9 \(value_bytes_max\)"):
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
        with pytest.raises(OtherError, match="found 'value', allowed a decimal number"):
            await client.increment("b", "1", 5)
        twin.bucket(b"b").increment(b"n", 5)
        await client.set_many("b", {"6": b"x", "7": b"y"})
        twin.bucket(b"b").set_many({b"6": b"x", b"7": b"y"})
        assert await client.get_many("b", ["7", "absent"]) == [b"y", None]
        await client.delete_many("b", ["6", "absent"])
        twin.bucket(b"b").delete_many([b"6"])
        await end_damaged(provider, raw, "get")
        await end_damaged(provider, raw, "exists")
    scrape = await scraped(provider)
    expected = {
        ("set", "ok"): 4,
        ("set", "other"): 1,
        ("get", "ok"): 1,
        ("get", "none"): 2,
        ("get", "no_such_store"): 1,
        ("get", "failed"): 1,
        ("exists", "ok"): 1,
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
        assert scrape.value("operation_duration_seconds_count", operation=function) == calls
        assert scrape.value("operation_duration_seconds_bucket", operation=function, le="+Inf") == calls
        assert 0 < scrape.value("operation_duration_seconds_sum", operation=function) < DEADLINE_S
    assert scrape.value("keyspace_hits_total") == 2
    assert scrape.value("keyspace_misses_total") == 3
    assert scrape.value("pages_total") == 2
    assert scrape.value("decode_errors_total") == 2
    assert scrape.value("failed_invocations_total") == 0
    assert scrape.value("buckets") == 1
    assert scrape.value("keys") == 5
    assert scrape.value("memory_bytes") == twin.memory_bytes
    assert scrape.value("memory_limit_bytes") == float("inf")
    assert scrape.value("nats_connected") == 1
    assert scrape.value("nats_reconnects_total") == 0
    assert scrape.value("invocations_in_flight") == scrape.value("half_open_invocations") == 0


async def test_bytes_are_those_of_the_values(launch: Launch, nats_server: NatsServer) -> None:
    provider = launch(ON)
    size, calls, around = 100_000, 3, 1_000  # subjects, framing and what nats-py says are less than `around` a call
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


async def test_half_open_invocations_are_seen_until_they_are_whole(launch: Launch, raw: Client) -> None:
    provider = launch(ON)
    params = encode_set(b"b", b"k", b"value")
    half = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    server_inbox = await half.handshake()
    scrape = await scraped(provider)
    assert scrape.value("half_open_invocations") == scrape.value("invocations_in_flight") == 1
    assert scrape.operations() == {}
    await half.send(server_inbox, params[-1:], b"")
    assert await half.result() == encode_unit_result(None)
    scrape = await scraped(provider)
    assert scrape.value("half_open_invocations") == scrape.value("invocations_in_flight") == 0
    assert scrape.operations() == {("set", "ok"): 1}


async def test_a_call_in_pieces_takes_its_time(launch: Launch, raw: Client) -> None:
    """Also where the last piece is the last that comes: no later batch would count it."""
    provider = launch(ON)
    params = encode_set(b"b", b"k", b"value")
    half = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    await half.send(await half.handshake(), params[-1:], b"")
    assert await half.result() == encode_unit_result(None)
    scrape = await scraped(provider)
    assert scrape.value("operation_duration_seconds_count", operation="set") == 1


async def test_what_is_ended_without_a_result_is_counted_by_its_cause(launch: Launch, raw: Client) -> None:
    provider = launch(ON | {"half_open_max": "1", "half_open_timeout_ms": "100"})
    params = encode_set(b"b", b"k", b"value")
    expires = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    await expires.handshake()
    refused = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    assert await refused.result() == b""
    assert await expires.result() == b""
    await raw.publish(provider.subject("set"), params)
    answered = await RawInvocation.begin(raw, provider.subject("get"), encode_bucket_key(b"b", b"k"))
    assert await answered.result() == encode_get_result(None)
    scrape = await scraped(provider)
    assert scrape.value("expired_invocations_total") == 1
    assert scrape.value("refused_invocations_total") == 1
    assert scrape.value("invocations_without_reply_total") == 1
    assert scrape.value("decode_errors_total") == 0
    assert scrape.operations() == {("get", "none"): 1}


async def test_links_are_counted_as_they_come_and_go(launch: Launch, raw: Client) -> None:
    provider = launch(ON)
    link = HOST_CAPTURE["host_data"]["link_definitions"][0] | {"target": provider.key}
    assert (await scraped(provider)).value("links") == 0
    await raw.publish(provider.host_subject("linkdefs.put"), json.dumps(link).encode())
    await in_thread(provider.wait_for, "link put")
    assert (await scraped(provider)).value("links") == 1
    await raw.publish(provider.host_subject("linkdefs.del"), json.dumps(link).encode())
    await in_thread(provider.wait_for, "link deleted")
    assert (await scraped(provider)).value("links") == 0


async def test_the_build_names_the_path(launch: Launch, path: str) -> None:
    scrape = await scraped(launch(ON))
    (labels,) = (dict(labels) for name, labels in scrape.samples if name == f"{PREFIX}_build_info")
    assert labels["transport"] == path


# Formats


async def test_the_format_is_negotiated(launch: Launch, nats_server: NatsServer) -> None:
    provider = launch(ON)
    endpoint = Endpoint.of(provider)
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "k", b"value")
    text = await in_thread(endpoint.get, "/metrics")
    strict = await in_thread(endpoint.get, "/metrics", f"{OPENMETRICS};version=1.0.0;q=0.5,text/plain;q=0.1")
    assert text.content_type.startswith("text/plain;")
    assert strict.content_type.startswith(f"{OPENMETRICS};")
    assert strict.text.endswith("# EOF\n")
    assert "# EOF" not in text.text

    def samples(families: Any) -> dict[str, float]:
        return {
            f"{one.name}{sorted(one.labels.items())}": one.value
            for family in families
            for one in family.samples
            if one.name.startswith(PREFIX) and "bytes_total" not in one.name  # of bytes some come at any time: PING
        }

    families = parse_openmetrics(strict.text)  # type: ignore[no-untyped-call]
    assert samples(families) == samples(parse_text(text.text))
    assert samples(parse_text(text.text))[f"{PREFIX}_keys[]"] == 1


async def test_process_metrics_are_those_of_the_provider(launch: Launch) -> None:
    provider = launch(ON)
    text = (await in_thread(Endpoint.of(provider).get, "/metrics")).text
    samples = {one.name: one.value for family in parse_text(text) for one in family.samples}
    started_s = time.time() - samples["process_start_time_seconds"]
    assert -1 < started_s < 2 * DEADLINE_S
    assert samples["process_resident_memory_bytes"] > 10_000_000
    assert samples["process_cpu_seconds_total"] > 0


async def test_nothing_that_a_caller_or_the_host_named_is_told(
    launch: Launch, new_nats_server: Callable[[str], NatsServer]
) -> None:
    server = new_nats_server(f"authorization {{ user: u, password: {PASSWORD} }}")
    url = server.url.replace("//", f"//u:{PASSWORD}@")
    link = HOST_CAPTURE["host_data"]["link_definitions"][0] | {
        "target": "kv-of-secrets",
        "source_id": "secret-component",
        "target_config": {"password": PASSWORD},
    }
    provider = launch(
        ON, lattice_rpc_url=url, provider_key="kv-of-secrets", link_definitions=[link], env_values={"P": PASSWORD}
    )
    headers: dict[str, Any] = {"source_id": "secret-component", "link_name": "secret-link"}
    async with KeyValueClient(url, provider.prefix, timeout_s=DEADLINE_S, **headers) as client:
        await client.set("secret-bucket", "secret-key", b"secret-value")
        assert await client.get("secret-bucket", "secret-key") == b"secret-value"
        assert await client.list_keys("secret-bucket") == ([b"secret-key"], None)
    raw = await nats.connect(url)
    damaged = await RawInvocation.begin(raw, provider.subject("get"), b"\x0dsecret-bucket\x02\xc3\x28")
    assert await damaged.result() == b""
    await raw.close()
    endpoint = Endpoint.of(provider)
    assert (await scraped(provider)).value("links") == 1
    for path in ("/metrics", "/livez", "/readyz", "/secret-path"):
        for accept in ("*/*", OPENMETRICS):
            text = (await in_thread(endpoint.get, path, accept)).text
            assert text
            assert "secret" not in text
            assert PASSWORD not in text
            assert provider.key not in text


# State


async def test_nats_goes_and_comes_back(launch: Launch, new_nats_server: Callable[[], NatsServer]) -> None:
    server = new_nats_server()
    provider = launch(ON, lattice_rpc_url=server.url)
    endpoint = Endpoint.of(provider)
    serving = '{"ok": true, "message": "serving"}\n'
    assert await in_thread(endpoint.get, "/readyz") == Reply(200, "application/json", serving)
    await in_thread(server.kill)
    await in_thread(provider.wait_for, "the connection is lost")
    away = '{"ok": false, "message": "NATS is not connected"}\n'
    assert await in_thread(endpoint.get, "/readyz") == Reply(503, "application/json", away)
    assert await in_thread(endpoint.get, "/livez") == Reply(200, "application/json", serving)
    scrape = await scraped(provider)
    assert (scrape.value("nats_connected"), scrape.value("nats_reconnects_total")) == (0, 0)
    await in_thread(server.start)
    await in_thread(provider.wait_for, "connected again")
    scrape = await scraped(provider)
    assert (scrape.value("nats_connected"), scrape.value("nats_reconnects_total")) == (1, 1)
    assert (await in_thread(endpoint.get, "/readyz")).status == 200


async def test_another_path_is_not_found(launch: Launch) -> None:
    endpoint = Endpoint.of(launch(ON))
    for path in ("/", "/metricsz", "/metrics/more", "/livez/"):
        reply = await in_thread(endpoint.get, path)
        assert (reply.status, reply.text) == (404, "no such path; the paths are /metrics, /livez and /readyz\n")


async def test_a_port_that_is_taken_is_said_once(launch: Launch, nats_server: NatsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        provider = launch({"metrics_address": address}, wait=False)
        await in_thread(provider.wait_for, "ready: serving")  # "already" is in the log too
        async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
            await client.set("b", "k", b"v")
            assert await client.get("b", "k") == b"v"
        assert await in_thread(provider.stop) == 0
    message = f"metrics_address {address}: Address already in use; no metrics are served"
    assert provider.output.count(message) == 1
    assert provider.output.count("ERROR") == 1
    assert "metrics at" not in provider.output


def listening(pid: int) -> list[str]:
    """Addresses at which a process listens for TCP connections, as the kernel writes them."""
    links = [Path(f"/proc/{pid}/fd/{entry.name}") for entry in Path(f"/proc/{pid}/fd").iterdir()]
    sockets = {str(link.readlink()) for link in links}
    rows = [
        row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/{pid}/net/{table}").read_text().split("\n")
    ]
    return [row[1] for row in rows if len(row) > 9 and row[3] == "0A" and f"socket:[{row[9]}]" in sockets]


def test_nothing_listens_unless_asked(launch: Launch) -> None:
    silent = launch()
    assert listening(silent.process.pid) == []
    assert "metrics" not in silent.output
    asked = launch(ON)
    assert listening(asked.process.pid) == [f"0100007F:{Endpoint.of(asked).port:04X}"]


def test_a_port_alone_is_of_the_loopback_address(launch: Launch) -> None:
    provider = launch({"metrics_address": "0"})
    assert Endpoint.of(provider).host == "127.0.0.1"
    (address,) = listening(provider.process.pid)
    assert address.startswith("0100007F:")


def test_it_is_turned_on_by_the_environment_too(launch: Launch) -> None:
    provider = launch(environment={"KEYVALUE_METRICS_ADDRESS": "127.0.0.1:0"})
    assert Endpoint.of(provider).get("/readyz").status == 200


# Clients that say nothing


async def test_idle_connections_do_not_stop_a_scrape(launch: Launch, nats_server: NatsServer) -> None:
    provider = launch(ON)
    endpoint = Endpoint.of(provider)
    idle = [await in_thread(socket.create_connection, endpoint, DEADLINE_S) for _ in range(3 * CONNECTIONS_MAX)]
    began_s = time.monotonic()
    assert (await in_thread(endpoint.get, "/metrics")).status == 200
    assert time.monotonic() - began_s < CONNECTION_TIMEOUT_S
    for connection in idle:  # the first since others came, the last when their time is over
        assert await in_thread(connection.recv, 1) == b""
        connection.close()
    assert time.monotonic() - began_s < 2 * CONNECTION_TIMEOUT_S
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        assert await client.get("b", "k") is None
    assert (await scraped(provider)).operations() == {("get", "none"): 1}


# Cost


@pytest.fixture
def untraced() -> Iterator[None]:
    """Without what measures coverage, which costs several times of what is measured."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


@pytest.mark.usefixtures("untraced")
def test_a_scrape_does_not_depend_on_the_keys(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    bucket = store.bucket(b"b")
    for number in range(1_000_000):
        bucket.set(b"key-%08d" % number, b"value")
    registry = Pieces.of(store).registry()
    times_s = []
    for _ in range(51):
        began_s = time.perf_counter()
        text = generate_latest(registry)
        times_s.append(time.perf_counter() - began_s)
    assert b"\nwrpc_keyvalue_keys 1e+06\n" in text
    median_s = statistics.median(times_s)
    with capsys.disabled():
        print(f"\na scrape of 1,000,000 keys: median {median_s * 1000:.2f} ms, {len(text)} bytes")  # noqa: T201
    assert median_s <= SCRAPE_S_MAX
