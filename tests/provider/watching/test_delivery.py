"""Delivery to one component from its queue: order, bounds, counts, and components that fail, are stuck or absent."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_provider.watching.delivery import (
    ABSENT_PAUSE_MAX_S,
    ABSENT_PAUSE_MIN_S,
    CALLS_MAX,
    DISCONNECTED_PAUSE_S,
    ChangeDelivery,
)
from keyvalue_provider.watching.queue import LOOKS_MAX, WatchCounts, WatchLimits
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.keyvalue.watcher import WATCHER, decode_nothing, decode_on_delete, decode_on_set
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import InvocationTimeoutError, NoProviderError
from tests.conftest import DEADLINE_S

PREFIX = "default.component"
ON_SET = invocation_subject(PREFIX, WATCHER, "on-set")
ON_DELETE = invocation_subject(PREFIX, WATCHER, "on-delete")
TIMEOUT_S = 1.5
LIMITS = ParameterLimits()
ABSENT = NoProviderError("nobody serves this function")


class Call:
    """A call of the component, until it is answered."""

    def __init__(self, subject: str, params: bytes) -> None:
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began_s = asyncio.get_running_loop().time()
        self.value: bytes | None = None
        if subject == ON_SET:
            (self.bucket, self.key, self.value), end = decode_on_set(params, 0, len(params), LIMITS)
        else:
            assert subject == ON_DELETE
            (self.bucket, self.key), end = decode_on_delete(params, 0, len(params), LIMITS)
        assert end == len(params)


class Component:
    """A component that answers when a test tells it to.

    :ivar answers: while this is set, answer each call at once: with this error, or with None
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: list[Exception | None] = []
        self.is_connected = True
        self._began = asyncio.Event()

    async def invoke(
        self,
        subject: str,
        params: bytes,
        decode: Callable[[bytes, int, int], tuple[None, int]],
        timeout_s: float,
        traceparent: str | None = None,
    ) -> None:
        assert decode is decode_nothing
        assert timeout_s == TIMEOUT_S
        call = Call(subject, params)
        self.calls.append(call)
        self._began.set()
        if self.answers:
            answer(call, self.answers[-1])
        await call.answer

    async def called(self, times: int) -> list[Call]:
        """Wait until there are this many calls, and return them all."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.calls) < times:
                self._began.clear()
                await self._began.wait()
        return self.calls

    @property
    def unanswered(self) -> list[Call]:
        return [call for call in self.calls if not call.answer.done()]


def answer(call: Call, error: Exception | None = None) -> None:
    if error is None:
        call.answer.set_result(None)
    else:
        call.answer.set_exception(error)


class Watched:
    """A delivery with its component. Values are numbers, in the order of the writes."""

    def __init__(self, queue_events: int = 10 * LOOKS_MAX, queue_bytes: int = 1_000_000) -> None:
        self.component = Component()
        self.counts = WatchCounts()
        self.ends = 0
        self.pushed = 0
        limits = WatchLimits(queue_events, queue_bytes, TIMEOUT_S)
        name, component = "component (default)", self.component
        self.delivery = ChangeDelivery(
            name, PREFIX, component, lambda: component.is_connected, limits, self.counts, self._end
        )

    def push(self, key: bytes, value: bytes | None = b"v") -> None:
        """Write to a key of bucket b."""
        self.pushed += 1
        self.delivery.queue.push((b"b", key, value))

    def push_all(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.push(key)

    def check(self) -> None:
        """Assert that every event is in exactly one place."""
        counts = self.counts
        assert counts.delivered + counts.failed + counts.dropped + self.delivery.queue_length == self.pushed
        self.delivery.check()

    def _end(self) -> None:
        self.ends += 1

    async def close(self) -> None:
        """End all calls."""
        self.delivery.close()
        for call in self.delivery.calls:
            call.cancel()
        await turn()
        assert self.delivery.queue_length == 0

    @property
    def counted(self) -> tuple[int, int, int, int]:
        """Return the numbers of events that are delivered, failed, dropped and queued."""
        self.check()
        return self.counts.delivered, self.counts.failed, self.counts.dropped, self.delivery.queue_length


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    made = Watched()
    yield made
    await made.close()


async def turn() -> None:
    """Let the event loop do all that is due.

    From a push to a call, or from an answer to the next call, takes fewer steps.
    """
    for _ in range(10):
        await asyncio.sleep(0)


def keys(count: int) -> list[bytes]:
    return [b"key %d" % number for number in range(count)]


async def test_the_bucket_argument(watched: Watched) -> None:
    for argument in (b"0", None, b"7"):
        watched.delivery.open(argument)
        watched.push(b"k" + (argument or b""))
        await turn()
    assert [call.bucket for call in watched.component.calls] == [b"0", b"b", b"7"]


async def test_a_key_that_no_call_can_name_is_dropped(watched: Watched) -> None:
    """Redis clients may store keys that are not UTF-8."""
    for key in (b"\xff", b"k", b"\xff", "\xe4".encode()):
        watched.push(key)
        await turn()
    assert [call.key for call in watched.component.calls] == [b"k", "\xe4".encode()]
    assert watched.delivery._counts.dropped == 2


async def test_a_long_backlog_of_one_key_is_skipped_in_steps(watched: Watched) -> None:
    for number in range(5 * LOOKS_MAX):
        watched.push(b"slow", b"%d" % number)
    watched.push(b"other")
    first, other = await watched.component.called(2)
    assert (first.value, other.key) == (b"0", b"other")
    watched.check()
    watched.component.answers = [None]
    answer(first)
    calls = await watched.component.called(5 * LOOKS_MAX + 1)
    assert [call.value for call in calls if call.key == b"slow"] == [b"%d" % n for n in range(5 * LOOKS_MAX)]


# Threads


async def test_a_push_by_another_thread_wakes_the_loop(watched: Watched) -> None:
    writer = Thread(target=watched.push_all, args=(keys(3),))
    writer.start()
    calls = await watched.component.called(3)
    writer.join()
    assert [call.key for call in calls] == keys(3)


def test_a_closed_loop() -> None:
    async def make() -> Watched:
        return Watched()

    watched = asyncio.run(make())
    watched.push(b"k")  # raises nothing
    assert watched.counted == (0, 0, 0, 1)


# Any sequence of events.

steps = st.one_of(
    st.tuples(st.just("push"), st.integers(0, 3)),
    st.tuples(st.just("push each"), st.integers(1, 20)),
    st.tuples(st.sampled_from(["answer", "fail"]), st.integers(0, 15)),
    st.tuples(st.sampled_from(["turn", "close", "open"]), st.just(0)),
)


class Model:
    """A slow model of the delivery: a list of the waiting events, and one of the keys in flight.

    Some events are deletions.
    """

    def __init__(self, events_max: int) -> None:
        self.watched = Watched(events_max)
        self.waiting: list[tuple[bytes, bytes | None]] = []
        self.in_flight: list[bytes] = []
        self.calls_seen = 0
        self.counts: Counter[str] = Counter()
        self.is_closed = False
        self.ends = 0  # times that it was closed with nothing in flight, or that its last call ended then

    def push(self, number: int) -> None:
        pushed = self.watched.pushed
        event = b"key %d" % number, None if pushed % 4 == 3 else b"%d" % pushed
        self.watched.push(*event)
        if self.is_closed:
            self.watched.pushed -= 1
        else:
            self.waiting.append(event)
            self.drop(self.watched.counts.dropped - self.counts["dropped"])

    def drop(self, count: int) -> None:
        self.counts["dropped"] += count
        del self.waiting[:count]

    def close(self) -> None:
        self.is_closed = True
        self.drop(len(self.waiting))
        self.watched.delivery.close()
        self.ends += not self.in_flight

    def open(self) -> None:
        self.is_closed = False
        self.watched.delivery.open(None)

    async def turn(self) -> None:
        """Let calls begin, and check those that did."""
        await turn()
        for call in self.watched.component.calls[self.calls_seen :]:
            assert call.bucket == b"b"
            assert call.key not in self.in_flight, "one call of a key at a time, and none is repeated"
            event = next(event for event in self.waiting if event[0] == call.key)
            assert event[1] == call.value, "the oldest of its key"
            self.waiting.remove(event)
            self.in_flight.append(call.key)
        self.calls_seen = len(self.watched.component.calls)
        assert len(self.in_flight) <= CALLS_MAX
        if len(self.in_flight) < CALLS_MAX:
            assert all(key in self.in_flight for key, _ in self.waiting), "every key that can be called is"
        queued = len(self.waiting) + len(self.in_flight)
        assert self.watched.counted == (*(self.counts[name] for name in ("delivered", "failed", "dropped")), queued)
        assert self.watched.ends == self.ends

    async def end(self, number: int, error: Exception | None) -> None:
        await self.turn()
        unanswered = self.watched.component.unanswered
        if unanswered:
            call = unanswered[number % len(unanswered)]
            answer(call, error)
            self.in_flight.remove(call.key)
            self.counts["delivered" if error is None else "failed"] += 1
            self.ends += self.is_closed and not self.in_flight
            await self.turn()

    async def run(self, run: list[tuple[str, int]]) -> None:
        for name, number in run:
            match name:
                case "push":
                    self.push(number)
                case "push each":
                    for each in range(number):
                        self.push(each)
                case "turn":
                    await self.turn()
                case "answer":
                    await self.end(number, None)
                case "fail":
                    await self.end(number, InvocationTimeoutError("no result"))
                case "close":
                    await self.turn()
                    self.close()
                case _:
                    self.open()
                    await self.turn()
        await self.turn()
        while self.in_flight:
            await self.end(0, None)
        assert not self.waiting
        await self.watched.close()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 100), st.lists(steps, max_size=40))
def test_any_sequence_agrees_with_the_model(events_max: int, run: list[tuple[str, int]]) -> None:
    async def main() -> None:
        await Model(events_max).run(run)

    logging.disable(logging.WARNING)  # thousands of failures
    try:
        asyncio.run(main())
    finally:
        logging.disable(logging.NOTSET)


# An absent component, or no NATS


async def test_while_nobody_listens_one_call_is_tried_after_each_pause(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Record the pauses. They end when the test says so."""
    pauses_s: list[float] = []

    def pause_for(delivery: ChangeDelivery, seconds: float) -> None:
        pauses_s.append(seconds)
        delivery._pause = asyncio.get_running_loop().call_later(3600, delivery._resume)

    async def end_pause() -> None:
        watched.delivery._stop_pausing()
        watched.delivery._resume()
        await turn()

    monkeypatch.setattr(ChangeDelivery, "_pause_for", pause_for)
    watched.component.answers = [ABSENT]
    watched.push_all(keys(60))
    await turn()
    for tries in range(6):
        assert watched.counted == (0, CALLS_MAX + tries, 0, 60 - CALLS_MAX - tries)
        await end_pause()
    assert [call.key for call in watched.component.calls] == keys(CALLS_MAX + 6)
    assert pauses_s == [0.05, 0.1, 0.2, 0.4, 0.8, ABSENT_PAUSE_MAX_S, ABSENT_PAUSE_MAX_S]
    watched.push(b"meanwhile")
    await turn()
    assert len(watched.component.calls) == CALLS_MAX + 6, "a push does not end the pause"
    watched.component.answers = [None]
    await end_pause()
    assert watched.counted == (61 - CALLS_MAX - 6, CALLS_MAX + 6, 0, 0)
    watched.component.answers = [ABSENT]
    watched.push(b"again")
    await turn()
    assert pauses_s[7:] == [ABSENT_PAUSE_MIN_S], "pauses start again"


async def test_a_component_that_listens_without_answering_is_not_absent(watched: Watched) -> None:
    watched.component.answers = [ABSENT]
    watched.push_all(keys(60))
    await watched.component.called(CALLS_MAX)
    watched.component.answers.clear()
    calls = await watched.component.called(CALLS_MAX + 1)
    await turn()
    assert watched.component.unanswered == calls[CALLS_MAX:] == calls[-1:]
    answer(calls[-1], InvocationTimeoutError("no result"))
    await turn()
    assert len(watched.component.unanswered) == CALLS_MAX


async def test_events_wait_while_nats_is_away(watched: Watched) -> None:
    watched.component.is_connected = False
    began_s = asyncio.get_running_loop().time()
    watched.push_all(keys(3))
    await turn()
    assert watched.component.calls == []
    watched.component.is_connected = True
    calls = await watched.component.called(3)
    assert calls[0].began_s - began_s >= DISCONNECTED_PAUSE_S * 0.9
    assert watched.counted == (0, 0, 0, 3)


# The end, and a new beginning


@pytest.mark.parametrize("error", [None, ABSENT])
@pytest.mark.parametrize("is_connected", [True, False])
async def test_the_last_calls_of_a_closed_watcher_start_no_others(
    watched: Watched, error: Exception | None, is_connected: bool
) -> None:
    watched.push_all(keys(20))
    await turn()
    watched.delivery.close()
    watched.component.is_connected = is_connected
    answer(watched.component.calls[0], error)
    await turn()
    watched.check()
    assert len(watched.component.calls) == CALLS_MAX


@pytest.mark.parametrize("why", ["nobody listens", "NATS is away"])
async def test_a_watcher_that_was_closed_during_a_pause_can_be_reopened(watched: Watched, why: str) -> None:
    watched.component.answers = [ABSENT]
    watched.component.is_connected = why == "nobody listens"
    watched.push_all(keys(20))
    await turn()
    watched.delivery.close()
    watched.check()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    watched.component.is_connected = True
    watched.component.answers = [None]
    watched.delivery.open(b"0")
    watched.push(b"after")
    await turn()
    assert watched.component.calls[-1].key == b"after"
    assert watched.counts.delivered == 1
    watched.check()


# The log


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "keyvalue_provider.watching.delivery"]


FAILS = "watcher component (default): a change is not delivered: no result within 2 s"
ANSWERS = "watcher component (default): it answers again"


FAILURE = InvocationTimeoutError("no result within 2 s")


@pytest.mark.parametrize(
    ("interval_s", "outcomes", "told"),
    [
        (3600.0, (FAILURE, FAILURE, FAILURE, None, None, FAILURE, None), [FAILS, ANSWERS]),
        (0.0, (FAILURE, FAILURE, None, FAILURE, FAILURE), [FAILS, ANSWERS, FAILS]),
    ],
)
async def test_a_failure_is_logged_once_and_its_end_once(
    watched: Watched,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    interval_s: float,
    outcomes: tuple[Exception | None, ...],
    told: list[str],
) -> None:
    """A new failure within the interval is not logged."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("keyvalue_provider.watching.delivery.FAILURE_LOG_INTERVAL_S", interval_s)
    for outcome in outcomes:
        watched.push(b"hush", b"hush")
        await turn()
        answer(watched.component.calls[-1], outcome)
        await turn()
    assert lines(caplog) == told
    assert "hush" not in caplog.text


async def test_a_fault_of_the_provider_is_logged_with_its_traceback(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.push(b"hush", b"hush")
    await turn()
    answer(watched.component.calls[0], RuntimeError("a fault"))
    await turn()
    assert watched.counted == (0, 1, 0, 0)
    assert "RuntimeError: a fault" in caplog.text
    assert "Traceback" in caplog.text
    assert "hush" not in caplog.text


async def test_keys_and_values_are_not_shown(watched: Watched) -> None:
    watched.push(b"hush", b"hush")
    await turn()
    (call,) = watched.delivery.calls
    assert "hush" not in f"{watched.delivery!r} {call!r} {watched.counts!r}"
