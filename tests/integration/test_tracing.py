"""Spans and the log of a launched provider, received by a collector that the test runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import pytest
import trustme
from nats.aio.client import Client

from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import STORE, encode_set
from keyvalue_transport.nats.subjects import invocation_subject
from tests.conftest import (
    DEADLINE_S,
    HOST_ID,
    PATHS,
    Launch,
    NatsServer,
    Provider,
    RawInvocation,
    free_port,
    in_thread,
    launching,
    until,
)
from tests.integration.test_metrics import DAMAGED, ON, scraped
from tests.integration.test_replicated import jetstream
from tests.integration.test_watch import watch_link
from tests.otlp_receiver import Received, Receiver, receiving

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SECRET_BUCKET, SECRET_KEY, SECRET_VALUE = b"secret-bucket", b"secret-key", b"secret-value"
SERVER, CLIENT = 2, 3  # the kinds of a span
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "20", "OTEL_BLRP_SCHEDULE_DELAY": "20"}
GET = encode_bucket_key(SECRET_BUCKET, SECRET_KEY)


def trace(number: int, flags: str = "01") -> str:
    """Return the traceparent of a call. The number is the id of the caller's span."""
    return f"00-{TRACE_ID}-{number:016x}-{flags}"


def launch_traced(
    launch: Launch,
    receiver: Receiver,
    protocol: str = "Http",
    config: dict[str, str] | None = None,
    environment: dict[str, str] | None = None,
    otel: dict[str, object] | None = None,
    **fields: Any,
) -> Provider:
    """Launch a provider as a host does that traces calls.

    :param otel: further fields of otel_config
    """
    where = {"observability_endpoint": receiver.url, "protocol": protocol}
    otel_config = {"enable_traces": True, **where, **(otel or {})}
    return launch(
        ON | (config or {}),
        environment=QUICK | (environment or {}),
        otel_config=otel_config,
        instance_id="instance",
        **fields,
    )


async def call(
    raw: Client, subject: str, params: bytes, traceparent: str | None, source_id: str | None = None
) -> bytes:
    headers = {"traceparent": traceparent, "source-id": source_id, "link-name": source_id and "default"}
    sent = {name: value for name, value in headers.items() if value is not None}
    invocation = await RawInvocation.begin(raw, subject, params, sent or None)
    return await invocation.result()


def by_parent(spans: list[Received]) -> dict[int, Received]:
    found = {int(span.parent_id, 16): span for span in spans}
    assert len(found) == len(spans)
    return found


@pytest.mark.parametrize("protocol", ["Http", "Grpc"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_sampled_call_is_a_child_of_the_callers_span(
    launch: Launch, raw: Client, path: str, protocol: str
) -> None:
    """It names the function and the outcome, but no key, value or bucket. Calls that are not sampled give no span."""
    with receiving(protocol.lower()) as receiver:
        provider = launch_traced(launch, receiver, protocol, {"transport": path, "value_bytes_max": "100"})
        set_params = encode_set(SECRET_BUCKET, SECRET_KEY, SECRET_VALUE)
        assert await call(raw, provider.subject("set"), set_params, trace(1), "component") == b"\x00"
        assert SECRET_VALUE in await call(raw, provider.subject("get"), GET, trace(2, "03"))
        for traceparent in (None, trace(9, "00"), trace(9, "02"), "00-1-2-01", trace(0), "malformed"):
            assert SECRET_VALUE in await call(raw, provider.subject("get"), GET, traceparent, "component")
        too_large = encode_set(SECRET_BUCKET, SECRET_KEY, SECRET_VALUE * 100)
        assert (await call(raw, provider.subject("set"), too_large, trace(3)))[:2] == b"\x01\x02"
        assert await call(raw, provider.subject("get"), DAMAGED, trace(4)) == b""
        halves = await RawInvocation.begin(raw, provider.subject("get"), GET[:5], {"traceparent": trace(5)})
        await halves.send(await halves.handshake(), GET[5:])
        assert SECRET_VALUE in await halves.result()
        spans = by_parent(await in_thread(receiver.wait_for, 5))
        assert provider.stop() == 0
        assert by_parent(receiver.wait_for(0)).keys() == {1, 2, 3, 4, 5} == spans.keys()
    assert receiver.paths == {"/v1/traces" if protocol == "Http" else "grpc"}
    assert {span.trace_id for span in spans.values()} == {TRACE_ID}
    assert len({span.span_id for span in spans.values()} | {f"{number:016x}" for number in spans}) == 10
    assert {(span.kind, span.duration_ns > 0) for span in spans.values()} == {(SERVER, True)}
    functions = {1: "set", 2: "get", 3: "set", 4: "get", 5: "get"}
    errors = {3: "other", 4: "DecodeError"}
    for number, function in functions.items():
        span = spans[number]
        assert span.name == f"{STORE}/{function}"
        assert span.is_error == (number in errors)
        assert span.attributes == {
            "rpc.system": "wrpc",
            "rpc.service": STORE,
            "rpc.method": function,
            "db.system.name": "keyvalue-inmemory",
            "db.operation.name": function,
            **({"peer.service": "component"} if number == 1 else {}),
            **({"error.type": errors[number]} if number in errors else {}),
        }
        assert b"secret" not in span.raw
        assert span.resource["service.name"] == "keyvalue-inmemory"
        assert span.resource["service.instance.id"] == "instance"


async def test_traced_and_untraced_runs_keep_apart(launch: Launch, raw: Client) -> None:
    """Sampled calls between many similar ones: each gives its span, and no other does."""
    with receiving("http") as receiver:
        provider = launch_traced(launch, receiver)
        sampled = {number for number in range(1, 300) if number % 7 == 0 or 100 < number < 120}
        results = await asyncio.gather(
            *(
                call(raw, provider.subject("get"), GET, trace(number, "01" if number in sampled else "00"), "component")
                for number in range(1, 300)
            )
        )
        assert set(results) == {b"\x00\x00"}
        await in_thread(receiver.wait_for, len(sampled))
        assert provider.stop() == 0
        assert by_parent(receiver.wait_for(0)).keys() == sampled


@pytest.mark.parametrize("protocol", ["Http", "Grpc"])
async def test_the_log_is_exported_with_the_last_line_and_without_secrets(
    launch: Launch, raw: Client, protocol: str
) -> None:
    """The collector has TLS, and only the authority that the host names has signed its certificate."""
    authority = trustme.CA()
    with receiving(protocol.lower(), authority) as receiver, authority.cert_pem.tempfile() as file:
        provider = launch_traced(
            launch,
            receiver,
            protocol,
            otel={"enable_logs": True, "additional_ca_paths": [file]},
            secrets={"redis_password": {"kind": "String", "value": "secret-password"}},
        )
        set_params = encode_set(SECRET_BUCKET, SECRET_KEY, SECRET_VALUE)
        assert await call(raw, provider.subject("set"), set_params, trace(1), "component") == b"\x00"
        assert await call(raw, provider.subject("get"), DAMAGED, trace(2)) == b""
        await in_thread(receiver.wait_for_line, "malformed parameters")
        await in_thread(receiver.wait_for, 2)
        scrape = await scraped(provider)
        assert scrape.value("log_records_exported_total") > 0
        assert (scrape.value("log_records_dropped_total"), scrape.value("spans_dropped_total")) == (0, 0)
        assert provider.stop() == 0
        is_late = "were not exported before the stop" in provider.output  # a loaded machine may need more than a second
        lines = receiver.wait_for_line("malformed parameters" if is_late else "stopped: 1 invocations answered")
        assert not any(b"secret" in raw for raw in receiver.raw)
    (warned,) = [line for line in lines if "malformed parameters" in line.message]
    assert (warned.level, warned.target, warned.trace_id) == ("WARN", "keyvalue_transport.nats.server", TRACE_ID)
    assert warned.resource["service.instance.id"] == "instance"
    written = {line.partition(": ")[2] for line in provider.output.splitlines()}
    assert {line.message for line in lines if not line.trace_id} <= written
    if protocol == "Http":
        assert receiver.paths == {"/v1/traces", "/v1/logs"}


async def test_the_log_of_a_failed_start_is_exported(launch: Launch) -> None:
    with receiving("http") as receiver:
        provider = launch_traced(
            launch,
            receiver,
            config={"connect_timeout_ms": "100"},
            otel={"enable_logs": True},
            lattice_rpc_url=unused_url().removeprefix("http://"),
            wait=False,
        )
        lines = await in_thread(receiver.wait_for_line, "NATS")
        assert await in_thread(provider.wait) == 1
    assert lines[-1].level == "ERROR"


async def test_a_collector_that_hangs_bounds_the_log_and_what_is_dropped_is_counted(
    launch: Launch, raw: Client
) -> None:
    limits = {"OTEL_BLRP_MAX_QUEUE_SIZE": "2", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "1"}
    with receiving("http") as receiver:
        receiver.is_open.clear()
        provider = launch_traced(launch, receiver, environment=limits, otel={"enable_logs": True})
        for number in range(5):
            assert await call(raw, provider.subject("get"), DAMAGED, trace(number + 1, "00")) == b""

        async def is_counted() -> bool:
            return (await scraped(provider)).value("log_records_dropped_total") > 0

        await until(is_counted, "lines are counted as dropped")
        assert await call(raw, provider.subject("get"), GET, None) == b"\x00\x00"
        receiver.is_open.set()


async def test_what_a_sampled_call_tells_a_watcher_is_a_part_of_its_trace(
    launch: Launch, raw: Client, nats_server: NatsServer, path: str
) -> None:
    """The component gets the trace. A call that fails has a span too, and a limit ends a call with a span."""
    key, told = f"traced-{path}", "default.component.wrpc.0.0.1.wrpc:keyvalue/watcher@0.2.0-draft.on-set"
    links = [
        watch_link(key, "component", {"watch": "SET@*"}),
        watch_link(key, "missing", {"watch": "SET@*"}, name="other"),
    ]
    heard = await raw.subscribe(told)
    with receiving("http") as receiver:
        limits = {"transport": path, "half_open_timeout_ms": "100", "watch_timeout_ms": "1000"}
        provider = launch_traced(launch, receiver, config=limits, provider_key=key, link_definitions=links)
        set_params = encode_set(SECRET_BUCKET, SECRET_KEY, SECRET_VALUE)
        assert await call(raw, provider.subject("set"), set_params, trace(1), "writer") == b"\x00"
        message = await heard.next_msg(timeout=DEADLINE_S)
        await raw.publish(f"{message.reply}.results", b"")
        half = await RawInvocation.begin(raw, provider.subject("get"), GET[:5], {"traceparent": trace(2)})
        assert await half.result() == b""
        spans = await in_thread(receiver.wait_for, 4)
        assert provider.stop() == 0
    by_peer = {span.attributes.get("peer.service"): span for span in spans}
    cause = by_peer["writer"]
    for component, error in (("component", None), ("missing", "NoProviderError")):
        span = by_peer[component]
        assert (span.kind, span.trace_id, span.parent_id) == (CLIENT, TRACE_ID, cause.span_id)
        assert (span.attributes["rpc.method"], span.attributes.get("error.type")) == ("on-set", error)
        assert "db.system.name" not in span.attributes
    assert message.headers is not None
    assert message.headers["traceparent"] == f"00-{TRACE_ID}-{by_peer['component'].span_id}-01"
    assert by_peer[None].attributes["error.type"] == "expired"
    assert not any(b"secret" in span.raw for span in spans)


def unused_url() -> str:
    return f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("protocol", ["Http", "Grpc"])
async def test_spans_are_dropped_and_counted_while_the_collector_is_away(
    launch: Launch, raw: Client, protocol: str
) -> None:
    receiver = Receiver()
    receiver.url = unused_url()
    provider = launch_traced(launch, receiver, protocol, environment={"OTEL_EXPORTER_OTLP_TIMEOUT": "1"})
    assert await call(raw, provider.subject("get"), GET, trace(1)) == b"\x00\x00"

    async def is_counted() -> bool:
        return (await scraped(provider)).value("spans_dropped_total") == 1

    await until(is_counted, "the span is counted as dropped")
    assert (await scraped(provider)).value("spans_exported_total") == 0
    assert await call(raw, provider.subject("get"), GET, trace(2)) == b"\x00\x00"


async def test_a_slow_collector_delays_neither_calls_nor_the_stop(launch: Launch, raw: Client) -> None:
    limits = {"OTEL_BSP_MAX_QUEUE_SIZE": "10", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "5"}
    with receiving("http") as receiver:
        receiver.is_open.clear()
        provider = launch_traced(launch, receiver, environment=limits)
        for number in range(1, 51):
            assert await call(raw, provider.subject("get"), GET, trace(number)) == b"\x00\x00"
        scrape = await scraped(provider)
        assert scrape.value("spans_exported_total") == 0
        assert scrape.value("spans_dropped_total") >= 50 - 15
        stop = json.dumps({"host_id": HOST_ID}).encode()
        assert (await raw.request(provider.host_subject("default.shutdown"), stop, timeout=DEADLINE_S)).data
        assert provider.wait() == 0
        assert "spans were not exported before the stop" in provider.output


async def test_variables_configure_what_the_host_does_not(launch: Launch, raw: Client) -> None:
    """A host without a choice leaves it to OTEL_* variables, which OpenTelemetry reads."""
    with receiving("http") as receiver:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
            "OTEL_SERVICE_NAME": "cache",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        provider = launch({}, environment=QUICK | environment, otel_config={})
        subject = invocation_subject(provider.prefix, STORE, "get")
        assert await call(raw, subject, GET, trace(1)) == b"\x00\x00"
        (span,) = await in_thread(receiver.wait_for, 1)
    assert span.resource["service.name"] == "cache"
    assert span.resource["deployment.environment.name"] == "test"


async def test_a_traced_call_that_fails_is_logged_with_its_trace(launch: Launch, raw: Client) -> None:
    with receiving("http") as receiver:
        provider = launch_traced(launch, receiver)
        assert await call(raw, provider.subject("get"), DAMAGED, trace(1)) == b""
        await in_thread(provider.wait_for, f"(traceparent {trace(1)})")


async def test_calls_that_wait_for_the_replicated_store_give_spans(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    """A write waits for its confirmation, and a get is made again after a barrier. Each gives one span."""
    server = new_nats_server(jetstream(tmp_path))
    client = await nats.connect(server.url)
    with receiving("http") as receiver, launching(server.url, tmp_path) as launch:
        provider = launch_traced(launch, receiver, config={"store": "jetstream", "jetstream_bucket": "traced"})
        set_params = encode_set(b"b", b"k", b"v")
        assert await call(client, provider.subject("set"), set_params, trace(1)) == b"\x00"
        assert await call(client, provider.subject("get"), encode_bucket_key(b"b", b"k"), trace(2)) == b"\x00\x01\x01v"
        spans = by_parent(await in_thread(receiver.wait_for, 2))
        assert provider.stop() == 0
        assert len(receiver.wait_for(0)) == 2
    await client.close()
    assert [(spans[number].attributes["rpc.method"], spans[number].is_error) for number in (1, 2)] == [
        ("set", False),
        ("get", False),
    ]
