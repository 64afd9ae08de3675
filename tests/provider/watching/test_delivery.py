"""Delivery to one component, from its queue: order, bounds, counts, and components that fail, are stuck or not there."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from threading import Barrier, Thread
from typing import Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_provider.watching.delivery import ABSENT_PAUSE_MIN_S, CALLS_MAX, DISCONNECTED_PAUSE_S, ChangeDelivery
from keyvalue_provider.watching.queue import LOOKS_MAX, WatchCounts, WatchLimits
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.keyvalue.watcher import WATCHER, decode_nothing, decode_on_delete, decode_on_set
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import DisconnectedError, InvocationTimeoutError, NoProviderError
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
    """A component that answers when a test says so.

    :ivar answers: answer each call at once, so long as this is set: with this error, or with None
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: list[Exception | None] = []
        self.is_connected = True
        self._began = asyncio.Event()

    async def invoke(
        self, subject: str, params: bytes, decode: Callable[[bytes, int, int], tuple[None, int]], timeout_s: float
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
        """All calls, once there were so many."""
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

    def __init__(self, queue_events: int = 1000, queue_bytes: int = 1_000_000) -> None:
        self.component = Component()
        self.counts = WatchCounts()
        self.ends = 0
        self.pushed = 0
        limits = WatchLimits(queue_events, queue_bytes, TIMEOUT_S)
        self.delivery = ChangeDelivery(
            "component (default)",
            PREFIX,
            self.component,
            lambda: self.component.is_connected,
            limits,
            self.counts,
            self._end,
        )

    def push(self, key: bytes, value: bytes | None = b"v") -> None:
        """A write to a key of bucket b."""
        self.pushed += 1
        self.delivery.queue.push((b"b", key, value))

    def push_all(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self.push(key)

    def check(self) -> None:
        """Every event is somewhere, once."""
        counts = self.counts
        assert counts.delivered + counts.failed + counts.dropped + self.delivery.queue_length == self.pushed
        self.delivery.check()

    def _end(self) -> None:
        self.ends += 1

    async def close(self) -> None:
        """Leave no call behind."""
        self.delivery.close()
        for call in self.delivery.calls:
            call.cancel()
        await turn()
        assert self.delivery.queue_length == 0

    @property
    def counted(self) -> tuple[int, int, int, int]:
        """Delivered, failed, dropped, queued."""
        self.check()
        return self.counts.delivered, self.counts.failed, self.counts.dropped, self.delivery.queue_length


class Watch(Protocol):
    """Makes deliveries, and closes them."""

    def __call__(self, queue_events: int = 1000, queue_bytes: int = 1_000_000) -> Watched: ...


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    made = []

    def make(queue_events: int = 1000, queue_bytes: int = 1_000_000) -> Watched:
        watched = Watched(queue_events, queue_bytes)
        made.append(watched)
        return watched

    yield make
    for watched in made:
        await watched.close()


async def turn() -> None:
    """Let the event loop do all that is due: from a push to a call, or from an answer to the next call, are fewer steps."""
    for _ in range(10):
        await asyncio.sleep(0)


def keys(count: int) -> list[bytes]:
    return [b"key %d" % number for number in range(count)]


async def test_a_write_and_a_deletion(watch: Watch) -> None:
    watched = watch()
    watched.push(b"k", b"value")
    watched.push(b"d", None)
    written, deleted = await watched.component.called(2)
    assert (written.bucket, written.key, written.value) == (b"b", b"k", b"value")
    assert (deleted.bucket, deleted.key, deleted.value) == (b"b", b"d", None)
    answer(written)
    await turn()
    assert watched.counted == (1, 0, 0, 1)
    answer(deleted)
    await turn()
    assert watched.counted == (2, 0, 0, 0)


async def test_the_bucket_argument(watch: Watch) -> None:
    watched = watch()
    for argument in (b"0", None, b"7"):
        watched.delivery.open(argument)
        watched.push(b"k" + (argument or b""))
        await turn()
    assert [call.bucket for call in watched.component.calls] == [b"0", b"b", b"7"]


async def test_calls_in_flight_are_limited(watch: Watch) -> None:
    watched = watch()
    watched.push_all(keys(40))
    await turn()
    assert [call.key for call in watched.component.calls] == keys(CALLS_MAX)
    for _ in range(3):
        answer(watched.component.unanswered[5])
        await turn()
        assert len(watched.component.unanswered) == CALLS_MAX
    assert [call.key for call in watched.component.calls] == keys(CALLS_MAX + 3)
    assert watched.counted == (3, 0, 0, 37)


async def test_a_slow_key_holds_up_no_other(watch: Watch) -> None:
    watched = watch()
    for number in range(3):
        watched.push(b"slow", b"%d" % number)
    watched.push(b"other")
    await turn()
    slow, other = watched.component.calls
    assert (slow.value, other.key) == (b"0", b"other")
    answer(slow)
    await turn()
    assert watched.component.calls[-1].value == b"1"
    assert len(watched.component.unanswered) == 2


async def test_keys_of_different_buckets_do_not_wait_for_each_other(watch: Watch) -> None:
    watched = watch()
    watched.delivery.open(None)
    for bucket in (b"b", b"c"):
        watched.delivery.queue.push((bucket, b"k", b"v"))
    await turn()
    assert [call.bucket for call in watched.component.calls] == [b"b", b"c"]


async def test_a_long_backlog_of_one_key_is_passed_in_steps(watch: Watch) -> None:
    watched = watch(queue_events=10 * LOOKS_MAX)
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


@pytest.mark.parametrize("error", [InvocationTimeoutError("no result"), DisconnectedError("not sent"), ABSENT])
async def test_a_call_that_failed_is_not_repeated(watch: Watch, error: Exception) -> None:
    watched = watch()
    watched.push(b"k", b"1")
    watched.push(b"k", b"2")
    await turn()
    answer(watched.component.calls[0], error)
    _, second = await watched.component.called(2)
    assert second.value == b"2"
    answer(second)
    await turn()
    assert watched.counted == (1, 1, 0, 0)
    assert len(watched.component.calls) == 2


# Bounds


async def test_overflow_drops_the_oldest(watch: Watch) -> None:
    watched = watch(queue_events=20)
    watched.push_all(keys(20))
    await turn()
    assert watched.counted == (0, 0, 0, 20)
    for number in range(100, 106):  # 16 in flight, 4 wait
        watched.push(b"key %d" % number)
    assert watched.counted == (0, 0, 6, 20)
    watched.component.answers = [None]
    for call in watched.component.unanswered:
        answer(call)
    await turn()
    told = [call.key for call in watched.component.calls]
    assert told == [*keys(16), *(b"key %d" % number for number in range(102, 106))]
    assert watched.counted == (20, 0, 6, 0)


async def test_a_queue_full_of_calls_in_flight_drops_what_is_new(watch: Watch) -> None:
    watched = watch(queue_events=2)
    watched.push_all(keys(2))
    await turn()
    watched.push(b"new")
    await turn()
    assert watched.counted == (0, 0, 1, 2)
    answer(watched.component.calls[0])
    await turn()
    watched.push(b"newer")
    await turn()
    assert watched.component.calls[-1].key == b"newer"


@pytest.mark.parametrize("queue_events", [50, 100_000])
async def test_events_of_many_threads(watch: Watch, queue_events: int) -> None:
    watched = watch(queue_events, queue_bytes=10**9)
    watched.component.answers = [None]
    threads, writes = 8, 500
    barrier = Barrier(threads)

    def write(key: bytes) -> None:
        barrier.wait()
        for number in range(writes):
            watched.delivery.queue.push((b"b", key, b"%d" % number))

    writers = [Thread(target=write, args=(key,)) for key in keys(threads)]
    watched.pushed = threads * writes
    for writer in writers:
        writer.start()
    for writer in writers:
        await asyncio.to_thread(writer.join, DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S):
        while watched.delivery.queue_length:
            await turn()
    delivered, failed, dropped, queued = watched.counted
    assert (failed, queued) == (0, 0)
    assert delivered == len(watched.component.calls)
    if queue_events > threads * writes:
        assert dropped == 0
    for key in keys(threads):
        numbers = [int(call.value or b"") for call in watched.component.calls if call.key == key]
        assert numbers == sorted(set(numbers))


def test_a_loop_that_is_closed() -> None:
    async def make() -> Watched:
        return Watched()

    watched = asyncio.run(make())
    watched.push(b"k")  # raises nothing
    assert watched.counted == (0, 0, 0, 1)


# Any run of things that can happen.

steps = st.one_of(
    st.tuples(st.just("push"), st.integers(0, 3)),
    st.tuples(st.just("push each"), st.integers(1, 20)),
    st.tuples(st.sampled_from(["answer", "fail"]), st.integers(0, 15)),
    st.tuples(st.sampled_from(["turn", "close", "open"]), st.just(0)),
)


class Model:
    """What a watcher does, told slowly: a list of what waits, and one of what is in flight. Keys, and values that are all different."""

    def __init__(self, events_max: int) -> None:
        self.watched = Watched(events_max)
        self.waiting: list[tuple[bytes, bytes]] = []
        self.in_flight: list[bytes] = []
        self.calls_seen = 0
        self.counts: Counter[str] = Counter()
        self.is_closed = False

    def push(self, number: int) -> None:
        event = b"key %d" % number, b"%d" % self.watched.pushed
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

    def open(self) -> None:
        self.is_closed = False
        self.watched.delivery.open(b"0")

    async def turn(self) -> None:
        """Let calls begin, and look at those that did."""
        await turn()
        for call in self.watched.component.calls[self.calls_seen :]:
            assert call.key not in self.in_flight
            event = next(event for event in self.waiting if event[0] == call.key)
            assert event[1] == call.value, "the oldest of its key"
            self.waiting.remove(event)
            self.in_flight.append(call.key)
        self.calls_seen = len(self.watched.component.calls)
        assert len(self.in_flight) <= CALLS_MAX
        if len(self.in_flight) < CALLS_MAX:
            assert all(key in self.in_flight for key, _ in self.waiting), "who could be called is"
        queued = len(self.waiting) + len(self.in_flight)
        assert self.watched.counted == (*(self.counts[name] for name in ("delivered", "failed", "dropped")), queued)

    async def end(self, number: int, error: Exception | None) -> None:
        await self.turn()
        unanswered = self.watched.component.unanswered
        if unanswered:
            call = unanswered[number % len(unanswered)]
            answer(call, error)
            self.in_flight.remove(call.key)
            self.counts["delivered" if error is None else "failed"] += 1
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
def test_whatever_happens(events_max: int, run: list[tuple[str, int]]) -> None:
    async def main() -> None:
        await Model(events_max).run(run)

    logging.disable(logging.WARNING)  # thousands of failures
    try:
        asyncio.run(main())
    finally:
        logging.disable(logging.NOTSET)


# Components that are not there, or NATS


async def test_while_nobody_listens_one_call_is_tried_after_each_pause(watch: Watch) -> None:
    watched = watch()
    watched.component.answers = [ABSENT]
    watched.push_all(keys(60))
    calls = await watched.component.called(CALLS_MAX + 3)
    assert [call.key for call in calls] == keys(CALLS_MAX + 3)
    began_s = [call.began_s for call in calls]
    gaps_s = [later - earlier for earlier, later in zip(began_s[CALLS_MAX - 1 :], began_s[CALLS_MAX:], strict=False)]
    for times, gap_s in enumerate(gaps_s):
        assert gap_s > ABSENT_PAUSE_MIN_S * 2**times * 0.9
    await turn()
    assert watched.counted == (0, CALLS_MAX + 3, 0, 60 - CALLS_MAX - 3)
    watched.push(b"meanwhile")
    await turn()
    assert len(calls) == CALLS_MAX + 3, "a push does not end the pause"
    watched.component.answers = [None]
    await watched.component.called(61)
    await turn()
    assert watched.counted == (61 - CALLS_MAX - 3, CALLS_MAX + 3, 0, 0)
    watched.component.answers = [ABSENT]
    watched.push_all([b"again"] * 2)
    again = await watched.component.called(63)
    assert again[-1].began_s - again[-2].began_s < ABSENT_PAUSE_MIN_S * 4, "pauses begin anew"


async def test_a_component_that_listens_and_does_not_answer_is_not_absent(watch: Watch) -> None:
    watched = watch()
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


async def test_events_wait_while_nats_is_away(watch: Watch) -> None:
    watched = watch()
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


async def test_a_closed_watcher_drops_what_waits_and_ends_with_its_last_call(watch: Watch) -> None:
    watched = watch()
    watched.push_all(keys(20))
    await turn()
    watched.delivery.close()
    assert watched.counted == (0, 0, 4, 16)
    watched.push(b"too late")
    watched.pushed -= 1
    for call in watched.component.calls:
        assert watched.ends == 0
        answer(call)
        await turn()
    assert watched.ends == 1
    assert watched.counted == (16, 0, 4, 0)
    assert len(watched.component.calls) == 16


async def test_an_idle_watcher_ends_at_once(watch: Watch) -> None:
    watched = watch()
    watched.delivery.close()
    assert watched.ends == 1


async def test_a_closed_watcher_that_is_opened_keeps_the_order_of_a_key(watch: Watch) -> None:
    watched = watch()
    watched.push(b"k", b"before")
    await turn()
    watched.delivery.close()
    watched.delivery.open(b"0")
    watched.push(b"k", b"after")
    await turn()
    assert len(watched.component.calls) == 1
    answer(watched.component.calls[0])
    await turn()
    assert [call.value for call in watched.component.calls] == [b"before", b"after"]
    assert watched.ends == 0


@pytest.mark.parametrize("error", [None, ABSENT])
@pytest.mark.parametrize("is_connected", [True, False])
async def test_the_last_calls_of_a_closed_watcher_begin_nothing(
    watch: Watch, error: Exception | None, is_connected: bool
) -> None:
    watched = watch()
    watched.push_all(keys(20))
    await turn()
    watched.delivery.close()
    watched.component.is_connected = is_connected
    answer(watched.component.calls[0], error)
    await turn()
    watched.check()
    assert len(watched.component.calls) == CALLS_MAX


@pytest.mark.parametrize("why", ["nobody listens", "NATS is away"])
async def test_a_watcher_that_was_closed_in_a_pause_can_be_opened(watch: Watch, why: str) -> None:
    watched = watch()
    watched.component.answers = [ABSENT]
    watched.component.is_connected = why == "nobody listens"
    watched.push_all(keys(20))
    await turn()
    watched.delivery.close()
    watched.component.is_connected = True
    watched.component.answers = [None]
    watched.delivery.open(b"0")
    watched.push(b"after")
    await turn()
    assert watched.component.calls[-1].key == b"after"
    assert watched.counts.delivered == 1
    watched.check()


async def test_a_closed_watcher_leaves_nothing_to_do(watch: Watch) -> None:
    watched = watch()
    watched.component.is_connected = False
    watched.push(b"k")
    await turn()
    watched.delivery.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    watched.check()


# The log


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "keyvalue_provider.watching.delivery"]


FAILS = "watcher component (default): a change is not delivered: no result within 2 s"
ANSWERS = "watcher component (default): it answers again"


async def test_a_failure_is_told_once_and_its_end_once(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watched = watch()
    error = InvocationTimeoutError("no result within 2 s")
    for outcome in (error, error, error, None, None, error, None):  # the last failure comes too soon to be told
        watched.push(b"hush", b"hush")
        await turn()
        answer(watched.component.calls[-1], outcome)
        await turn()
    assert lines(caplog) == [FAILS, ANSWERS]
    assert "hush" not in caplog.text


async def test_each_failure_is_told_where_they_are_far_apart(
    watch: Watch, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("keyvalue_provider.watching.delivery.FAILURE_LOG_INTERVAL_S", 0.0)
    watched = watch()
    error = InvocationTimeoutError("no result within 2 s")
    for outcome in (error, error, None, error, error):
        watched.push(b"k")
        await turn()
        answer(watched.component.calls[-1], outcome)
        await turn()
    assert lines(caplog) == [FAILS, ANSWERS, FAILS]


async def test_a_failure_of_ours_has_its_traceback(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    watched = watch()
    watched.push(b"hush", b"hush")
    await turn()
    answer(watched.component.calls[0], RuntimeError("a fault"))
    await turn()
    assert watched.counted == (0, 1, 0, 0)
    assert "RuntimeError: a fault" in caplog.text
    assert "Traceback" in caplog.text
    assert "hush" not in caplog.text


async def test_keys_and_values_do_not_show(watch: Watch) -> None:
    watched = watch()
    watched.push(b"hush", b"hush")
    await turn()
    (call,) = watched.delivery.calls
    assert "hush" not in f"{watched.delivery!r} {call!r} {watched.counts!r}"
