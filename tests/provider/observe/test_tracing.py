"""The queue of traced calls and its thread, with a collector that the test controls."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest

from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.observe import tracing as module
from keyvalue_provider.observe.trace_settings import GRPC, HTTP, TraceSettings
from keyvalue_provider.observe.tracing import NoTracing, SpanExport, Tracing, tracing_of
from keyvalue_transport.nats.tracing import FinishedCall, Function
from tests.conftest import DEADLINE_S

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NEVER_S = 3600.0


def call(number: int) -> FinishedCall:
    return FinishedCall(TRACE, Function("interface", "function"), None, number, number, b"\x00")


class Collector:
    """It records batches. Each export waits until `is_open` is set, and then has the next of `outcomes`, or succeeds."""

    def __init__(self, *outcomes: bool | Exception) -> None:
        self.batches: list[list[int]] = []
        self.is_open, self.entered, self.is_closed = Event(), Event(), Event()
        self._outcomes = iter(outcomes)

    def __call__(self, calls: Sequence[FinishedCall], /) -> bool:
        self.batches.append([call.began_ns for call in calls])
        self.entered.set()
        assert self.is_open.wait(DEADLINE_S)
        outcome = next(self._outcomes, True)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        self.is_closed.set()


@pytest.fixture(autouse=True)
def switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


def tracing_to(collector: SpanExport, queue_max: int, batch_max: int, delay_s: float = NEVER_S) -> Tracing:
    return Tracing(TraceSettings(HTTP, None, queue_max, batch_max, delay_s), lambda: collector)


def test_a_slow_collector_bounds_the_queue_and_what_is_dropped_is_counted() -> None:
    collector = Collector()
    tracing = tracing_to(collector, queue_max=10, batch_max=4)
    tracing.start()
    for number in range(4):
        tracing.note(call(number))
    assert collector.entered.wait(DEADLINE_S)  # a full batch is exported before the delay ends
    for number in range(4, 100):
        tracing.note(call(number))
    assert (tracing.exported, tracing.dropped) == (0, 86)
    collector.is_open.set()
    tracing.stop()
    asyncio.run(tracing.wait_stopped(DEADLINE_S))
    assert collector.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]
    assert (tracing.exported, tracing.dropped) == (14, 86)
    assert collector.is_closed.is_set()
    samples = {sample.name: sample.value for family in tracing.metrics() for sample in family.samples}
    assert samples == {"wrpc_keyvalue_spans_exported_total": 14, "wrpc_keyvalue_spans_dropped_total": 86}


def test_the_metrics_are_documented() -> None:
    text = (Path(__file__).parents[3] / "docs" / "operating.md").read_text()
    for family in tracing_to(Collector(), 1, 1).metrics():
        assert f"| {family.name}_total | counter | {family.documentation.removesuffix('.')} |" in text


def test_a_part_of_a_batch_is_exported_after_the_delay() -> None:
    collector = Collector()
    collector.is_open.set()
    tracing = tracing_to(collector, queue_max=10, batch_max=4, delay_s=0.01)
    tracing.note(call(1))
    tracing.start()
    assert collector.entered.wait(DEADLINE_S)
    tracing.stop()
    asyncio.run(tracing.wait_stopped(DEADLINE_S))
    assert (collector.batches, tracing.exported) == ([[1]], 1)


@pytest.mark.parametrize("failure", [False, RuntimeError("broken")])
def test_a_failed_export_is_counted_and_the_next_one_is_made(
    failure: bool | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Collector(failure)
    collector.is_open.set()
    tracing = tracing_to(collector, queue_max=10, batch_max=2)
    for number in range(3):
        tracing.note(call(number))
    tracing.start()
    tracing.stop()
    asyncio.run(tracing.wait_stopped(DEADLINE_S))
    assert (tracing.exported, tracing.dropped) == (1, 2)
    assert ("spans were not exported" in caplog.text) is isinstance(failure, Exception)


def test_a_stop_does_not_wait_for_a_collector_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    tracing = tracing_to(collector, queue_max=10, batch_max=2)
    tracing.start()
    for number in range(5):
        tracing.note(call(number))
    assert collector.entered.wait(DEADLINE_S)
    tracing.stop()
    asyncio.run(tracing.wait_stopped(0.01))
    assert "3 spans were not exported before the stop" in caplog.text
    collector.is_open.set()
    assert collector.is_closed.wait(DEADLINE_S)


def test_calls_are_dropped_if_the_exporter_cannot_be_opened(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> SpanExport:
        raise OSError("no certificate")

    tracing = Tracing(TraceSettings(HTTP, None, 2, 2, NEVER_S), fail)
    tracing.start()
    tracing.stop()
    asyncio.run(tracing.wait_stopped(DEADLINE_S))
    assert "spans cannot be exported" in caplog.text
    for number in range(3):
        tracing.note(call(number))
    assert tracing.dropped == 1


def test_without_the_extra_one_line_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for protocol in (HTTP, GRPC):
        assert isinstance(tracing_of(HostData(otel_config={"enable_traces": True, "protocol": protocol}), {}), Tracing)
    caplog.clear()

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    for find_spec in (missing, lambda name: None):
        monkeypatch.setattr(module, "find_spec", find_spec)
        assert isinstance(tracing_of(HostData(otel_config={"enable_traces": True}), {}), NoTracing)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "pip install 'keyvalue-inmemory[otel]'" in caplog.text
        caplog.clear()
        assert isinstance(tracing_of(None, {}), NoTracing)
        assert caplog.text == ""


def test_wrong_settings_are_logged_and_calls_are_not_traced(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(tracing_of(HostData(otel_config={"enable_traces": 1}), {}), NoTracing)
    assert "otel_config.enable_traces: found a number, expected a boolean; calls are not traced" in caplog.text
