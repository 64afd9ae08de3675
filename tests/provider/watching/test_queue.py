"""A watcher's queue: order, places, dropped events, and waking the taker; with one thread and with several."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Barrier, Thread
from threading import Event as Flag

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_engine import SET, Store
from keyvalue_provider.config.options import WatchingLinkOptions
from keyvalue_provider.watching.patterns import Watch
from keyvalue_provider.watching.queue import EVENT_BYTES, LOOKS_MAX, Event, WatchCounts, WatchLimits, WatchQueue
from keyvalue_provider.watching.routes import WatchRoutes, queue_observer
from tests.conftest import DEADLINE_S


class Queue:
    """A queue, with the events that were taken from it."""

    def __init__(self, queue_events: int = 20, queue_bytes: int = 1_000_000) -> None:
        self.counts = WatchCounts()
        self.wakes = 0
        self.queue = WatchQueue(WatchLimits(queue_events, queue_bytes, 1), self.counts, self._wake)
        self.taken: list[Event] = []

    def _wake(self) -> None:
        self.wakes += 1

    def push(self, *keys: bytes, value: bytes | None = b"v") -> None:
        for key in keys:
            self.queue.push((b"b", key, value))
            self.check()

    def push_numbered(self, key: bytes, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.push(key, value=b"%d" % number)

    def take(self) -> Event | None:
        event = self.queue.take()
        if event is not None:
            self.taken.append(event)
        self.check()
        return event

    def take_all(self) -> list[Event]:
        """Take all that can be taken while no event ends."""
        return [event for event in iter(self.take, None) if event is not None]

    def end(self, event: Event) -> None:
        self.taken.remove(event)
        self.queue.end(self.queue.in_flight(event))
        self.check()

    def drain(self) -> list[Event]:
        """Take the rest, and end each event before the next is taken."""
        events = []
        for event in self.taken.copy():
            self.end(event)
        while (event_next := self.take()) is not None:
            events.append(event_next)
            self.end(event_next)
        return events

    def check(self) -> None:
        self.queue.check([*map(self.queue.in_flight, self.taken)])


def keys(begin: int, end: int) -> list[bytes]:
    return [b"k%04d" % number for number in range(begin, end)]


def keys_of(events: Iterable[Event]) -> list[bytes]:
    return [key for _, key, _ in events]


def test_a_long_backlog_of_one_key_is_searched_in_steps() -> None:
    queue = Queue(queue_events=10 * LOOKS_MAX)
    queue.push_numbered(b"k", range(3 * LOOKS_MAX + 1))
    queue.push(b"other")
    assert queue.take() == (b"b", b"k", b"0")
    wakes = queue.wakes
    for _ in range(3):
        assert queue.take() is None
    assert queue.wakes == wakes + 3, "there is more to look at"
    assert queue.take() == (b"b", b"other", b"v")
    assert queue.wakes == wakes + 3
    assert [value for _, _, value in queue.drain()] == [b"%d" % number for number in range(1, 3 * LOOKS_MAX + 1)]


# The taker is woken


def test_a_taker_that_found_nothing_is_woken_once() -> None:
    queue = Queue(queue_events=4)
    queue.push(b"k", b"k")
    assert queue.wakes == 1
    queue.take()
    queue.push(b"k")
    assert queue.wakes == 1, "it may find more"
    assert queue.take_all() == []
    queue.push(b"other")
    assert queue.wakes == 2
    assert keys_of(queue.take_all()) == [b"other"]
    queue.push(b"k", b"last")
    assert (queue.counts.dropped, queue.wakes) == (2, 3), "parked events make room"
    assert keys_of(queue.take_all()) == [b"last"]
    queue.push(b"fourth")
    assert queue.wakes == 4
    queue.take_all()
    queue.push(b"dropped")
    assert (queue.counts.dropped, queue.wakes) == (4, 4), "nothing waits"


class Meanwhile:
    """A lock: when it is released, another thread appends an event, having read `full_at` before."""

    def __init__(self, queue: WatchQueue, event: Event) -> None:
        self.queue = queue
        self.events = [event]

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self.events:
            self.queue.waiting.append(self.events.pop())


def test_an_event_that_arrives_as_the_taker_falls_asleep_is_seen() -> None:
    queue = Queue()
    queue.push(b"k")
    queue.take()
    queue.queue._lock = Meanwhile(queue.queue, (b"b", b"meanwhile", b"v"))  # type: ignore[assignment]
    assert queue.take() == (b"b", b"meanwhile", b"v")
    wakes = queue.wakes
    queue.push(b"next")
    assert queue.wakes == wakes, "it does not sleep"


# Bounds


def test_a_ready_key_whose_events_were_all_dropped_is_skipped() -> None:
    """The model seldom reaches this: a key becomes ready, and its parked events are dropped before it is taken."""
    queue = Queue(queue_events=3)
    queue.push_numbered(b"k", range(2))
    (first,) = queue.take_all()
    queue.end(first)
    queue.push(*keys(0, 3))
    assert queue.counts.dropped == 1
    assert keys_of(queue.take_all()) == keys(0, 3)


def test_a_large_queue_drops_some_at_a_time() -> None:
    queue = Queue(queue_events=640)
    queue.push(*keys(0, 640))
    assert queue.counts.dropped == 0
    queue.push(b"one more")
    assert queue.counts.dropped == 11
    queue.push(*keys(1000, 1010))
    assert queue.counts.dropped == 11
    assert keys_of(queue.take_all()) == [*keys(11, 640), b"one more", *keys(1000, 1010)]


def test_keys_and_values_are_not_shown() -> None:
    queue = Queue()
    queue.push(b"hush", value=b"hush")
    assert "hush" not in repr(queue.queue)


# Any sequence of events

keys_few = st.integers(0, 3).map(lambda number: b"%d" % number)
steps = st.one_of(
    st.tuples(st.just("push"), keys_few, st.integers(0, 4000)),
    st.tuples(st.just("push many"), keys_few, st.integers(1, 100)),
    st.tuples(st.sampled_from(["take", "end", "close", "open"]), keys_few, st.integers(0, 20)),
)


class Model:
    """A slow model of the queue: a list of the queued events, in the order of the writes."""

    def __init__(self, events_max: int, bytes_max: int) -> None:
        self.queue = Queue(events_max, bytes_max)
        self.events_max = min(events_max, bytes_max)
        self.place_bytes = bytes_max // self.events_max
        self.slack = self.events_max // 64
        self.queued: list[Event] = []
        self.pushed = 0
        self.is_closed = False

    def places(self, *events: Event) -> int:
        return sum(
            -(-(EVENT_BYTES + len(bucket) + len(key) + len(value or b"")) // self.place_bytes)
            for bucket, key, value in events
        )

    def push(self, key: bytes, size: int) -> None:
        self.pushed += 1
        number = b"%d" % self.pushed
        event = (b"b", key, None if size == 7 else number + bytes(size))
        before = self.queue.counts.dropped
        self.queue.queue.push(event)
        dropped = self.queue.counts.dropped - before
        if self.is_closed:
            assert dropped == 0
        elif self.places(event) > self.events_max:
            assert dropped == 1
        else:
            self.queued.append(event)
            gone, self.queued = self.queued[:dropped], self.queued[dropped:]
            held = self.places(*self.queued, *self.queue.taken)
            assert held <= self.events_max
            if gone:
                assert held + self.places(gone[-1]) > self.events_max - self.slack, "no more than is needed"
        assert len(self.queue.queue) == len(self.queued)

    def take(self) -> None:
        event = self.queue.take()
        taken = keys_of(self.queue.taken)
        if event is None:
            assert all(key in taken for _, key, _ in self.queued)
        else:
            assert taken.count(event[1]) == 1
            assert event is next(each for each in self.queued if each[1] == event[1]), "the oldest of its key"
            self.queued.remove(event)

    def close(self) -> None:
        before = self.queue.counts.dropped
        self.queue.queue.close()
        assert self.queue.counts.dropped - before == len(self.queued)
        self.queued.clear()
        self.is_closed = True

    def run(self, run: list[tuple[str, bytes, int]]) -> None:
        for name, key, number in run:
            match name:
                case "push":
                    self.push(key, number)
                case "push many":
                    for _ in range(number):
                        self.push(key, number % 10)
                case "take":
                    self.take()
                case "end":
                    if self.queue.taken:
                        self.queue.end(self.queue.taken[number % len(self.queue.taken)])
                case "close":
                    self.close()
                case _:
                    self.queue.queue.open()
                    self.is_closed = False
            self.queue.check()
        queued = self.queued.copy()
        left = self.queue.drain()
        for key in set(keys_of(queued)):
            assert [event for event in left if event[1] == key] == [event for event in queued if event[1] == key]
        assert len(left) == len(queued)


#: Limits of events and bytes. The last allows fewer bytes than events.
limits = st.builds(lambda events, place: (events, events * place), st.integers(1, 200), st.integers(1, 1000)) | st.just((1000, 606))  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(limits, st.lists(steps, max_size=40))
def test_any_sequence_agrees_with_the_model(limits: tuple[int, int], run: list[tuple[str, bytes, int]]) -> None:
    Model(*limits).run(run)


# Threads


@pytest.mark.parametrize("queue_events", [1, 64, 100_000])
@pytest.mark.parametrize("value_bytes", [1, 2000])
def test_events_of_many_threads(queue_events: int, value_bytes: int) -> None:
    threads, writes = 4, 3000
    counts, woken, written = WatchCounts(), Flag(), Flag()
    queue = WatchQueue(WatchLimits(queue_events, queue_events * 1000 * 3, 1), counts, woken.set)
    watch = Watch.of(WatchingLinkOptions(watch="SET@*"))
    assert watch is not None
    routes = WatchRoutes(Store(), queue_observer)
    routes.put(queue, watch.patterns)
    observe = routes._observer_of(b"b")
    assert observe is not None
    told: list[tuple[bytes, int]] = []
    lengths = []
    barrier = Barrier(threads + 1)

    def write(key: bytes) -> None:
        barrier.wait()
        for number in range(writes):
            observe(SET, b"b", key, b"%d" % number + bytes(value_bytes * (number % 3)))

    def read() -> None:
        barrier.wait()
        while True:
            is_last = written.is_set()
            while (event := queue.take()) is not None:
                _, key, value = event
                assert value is not None
                told.append((key, int(value.rstrip(b"\0"))))
                lengths.append(len(queue))
                queue.end(queue.in_flight(event))
            if is_last and not len(queue):
                return
            assert is_last or woken.wait(DEADLINE_S), "nobody woke it"
            woken.clear()

    writers = [Thread(target=write, args=(key,)) for key in keys(0, threads)]
    reader = Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join(DEADLINE_S)
    written.set()
    woken.set()
    reader.join(DEADLINE_S)
    assert not reader.is_alive()
    queue.check([])
    assert len(told) + counts.dropped == threads * writes
    assert max(lengths) <= queue_events + threads, "each thread may have one event that is not settled yet"
    if queue_events > threads * writes:
        assert counts.dropped == 0
    for key in keys(0, threads):
        numbers = [number for known, number in told if known == key]
        assert numbers == sorted(set(numbers))
