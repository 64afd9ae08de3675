"""Spans of a launched provider, received by a collector that the test runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import nats
import pytest
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
    host_environment,
    in_thread,
    launching,
    until,
)
from tests.integration.test_metrics import DAMAGED, ON, scraped
from tests.integration.test_replicated import jetstream
from tests.otlp_receiver import Received, Receiver, receiving

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SECRET_BUCKET, SECRET_KEY, SECRET_VALUE = b"secret-bucket", b"secret-key", b"secret-value"
SERVER = 2  # the kind of a span
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "20"}
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
) -> Provider:
    """Launch a provider as a host does whose observability is on."""
    otel_config = {"enable_observability": True, "observability_endpoint": receiver.url, "protocol": protocol}
    return launch(
        ON | (config or {}),
        environment=host_environment() | QUICK | (environment or {}),
        otel_config=otel_config,
        instance_id="instance",
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
        provider = launch({}, environment=host_environment() | QUICK | environment, otel_config={})
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
