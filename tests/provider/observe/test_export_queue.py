"""The queue of entries to export and its thread, with a collector that the test controls. The entries are numbers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from threading import Event

import pytest

from keyvalue_provider.observe.export_queue import Export, ExportQueue
from keyvalue_provider.observe.export_settings import HTTP, LOGS, TRACES, ExportSettings, Signal
from tests.conftest import DEADLINE_S

NEVER_S = 3600.0


class Collector:
    """It records batches. Each export waits until `is_open` is set, and then has the next of `outcomes`, or succeeds."""

    def __init__(self, *outcomes: bool | Exception) -> None:
        self.batches: list[list[int]] = []
        self.is_open, self.entered, self.is_closed = Event(), Event(), Event()
        self._outcomes = iter(outcomes)

    def __call__(self, batch: Sequence[int], /) -> bool:
        self.batches.append(list(batch))
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


def queue_to(
    collector: Export[int], queue_max: int, batch_max: int, delay_s: float = NEVER_S, signal: Signal = TRACES
) -> ExportQueue[int]:
    return ExportQueue(signal, ExportSettings(HTTP, None, queue_max, batch_max, delay_s), lambda: collector)


def test_a_slow_collector_bounds_the_queue_and_what_is_dropped_is_counted() -> None:
    collector = Collector()
    queue = queue_to(collector, queue_max=10, batch_max=4)
    queue.start()
    for number in range(4):
        queue.add(number)
    assert collector.entered.wait(DEADLINE_S)  # a full batch is exported before the delay ends
    for number in range(4, 100):
        queue.add(number)
    assert (queue.exported, queue.dropped) == (0, 86)
    collector.is_open.set()
    queue.stop()
    asyncio.run(queue.wait_stopped(DEADLINE_S))
    assert collector.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]
    assert (queue.exported, queue.dropped) == (14, 86)
    assert collector.is_closed.is_set()
    samples = {sample.name: sample.value for family in queue.metrics() for sample in family.samples}
    assert samples == {"wrpc_keyvalue_spans_exported_total": 14, "wrpc_keyvalue_spans_dropped_total": 86}


def test_a_part_of_a_batch_is_exported_after_the_delay() -> None:
    collector = Collector()
    collector.is_open.set()
    queue = queue_to(collector, queue_max=10, batch_max=4, delay_s=0.01)
    queue.add(1)
    queue.start()
    assert collector.entered.wait(DEADLINE_S)
    queue.stop()
    asyncio.run(queue.wait_stopped(DEADLINE_S))
    assert (collector.batches, queue.exported) == ([[1]], 1)


@pytest.mark.parametrize("failure", [False, RuntimeError("broken")])
def test_a_failed_export_is_counted_and_the_next_one_is_made(
    failure: bool | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Collector(failure)
    collector.is_open.set()
    queue = queue_to(collector, queue_max=10, batch_max=2)
    for number in range(3):
        queue.add(number)
    queue.start()
    queue.stop()
    asyncio.run(queue.wait_stopped(DEADLINE_S))
    assert (queue.exported, queue.dropped) == (1, 2)
    assert ("spans were not exported" in caplog.text) is isinstance(failure, Exception)


def test_a_stop_does_not_wait_for_a_collector_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    queue = queue_to(collector, queue_max=10, batch_max=2)
    queue.start()
    for number in range(5):
        queue.add(number)
    assert collector.entered.wait(DEADLINE_S)
    queue.stop()
    asyncio.run(queue.wait_stopped(0.01))
    assert "5 spans were not exported before the stop" in caplog.text
    collector.is_open.set()
    assert collector.is_closed.wait(DEADLINE_S)


def test_calls_are_dropped_if_the_exporter_cannot_be_opened(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Export[int]:
        raise OSError("no certificate")

    queue = ExportQueue(LOGS, ExportSettings(HTTP, None, 2, 2, NEVER_S), fail)
    queue.start()
    queue.stop()
    asyncio.run(queue.wait_stopped(DEADLINE_S))
    assert "log records cannot be exported" in caplog.text
    for number in range(3):
        queue.add(number)
    assert queue.dropped == 1


def test_a_queue_that_was_not_started_is_exported_at_the_stop() -> None:
    collector = Collector()
    collector.is_open.set()
    queue = queue_to(collector, queue_max=10, batch_max=2)
    queue.add(1)
    queue.stop()
    queue.wait(DEADLINE_S)
    assert (collector.batches, collector.is_closed.is_set()) == ([[1]], True)
