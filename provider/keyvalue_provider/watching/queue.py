"""The bounded queue of one watcher. Any thread may add events. The event loop takes each key's events in order.

    push ──> waiting ──> taken                        if the key has no taken event
                └──────> parked ── ready ──> taken    if the key has a taken event: parked until that event ends

A taken event is in flight until `end` is called. All parked events are older than all waiting events. A full queue
drops its oldest events. A large queue drops several events at a time, so that a writer rarely has to drop events.

The queue has a fixed number of places. A small event occupies one place. A large event occupies one place for each
queue_bytes / queue_events bytes, rounded up. So the number of places limits both the number of events and their bytes,
and the sizes of small events need not be added up.

Writers append to `waiting` without a lock. A deque's append is atomic, with the GIL and on free-threaded builds. If
the length of `waiting` reaches `full_at`, a writer must call `settle`. All other work is done while
holding the lock of WatchCounts. A thread may acquire this lock while it holds a stripe lock. While a thread holds the
lock of WatchCounts, it acquires no other lock, logs nothing and awaits nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple, TypeAlias

__all__ = ["EVENT_BYTES", "LOOKS_MAX", "Event", "InFlight", "WatchCounts", "WatchLimits", "WatchQueue"]

#: Bucket, key and value (None for a deletion). It is a plain tuple, because every watched write creates an event.
Event: TypeAlias = tuple[bytes, bytes, bytes | None]
BucketKey: TypeAlias = tuple[bytes, bytes]

#: Memory of an event without bucket name, key and value: the tuple, its slot in the queue, and the headers of bytes
#: objects. The name counts for each event, because the store may have freed the bucket.
EVENT_BYTES = 200
#: A full queue drops events until 1/SLACK_SHARE of its places are free, but it frees at most SLACK_MAX places.
SLACK_SHARE = 64
SLACK_MAX = 256
#: Maximum number of events that `take` inspects before it returns to the event loop.
LOOKS_MAX = 256


class InFlight(NamedTuple):
    """A taken event, without the value, which need not be kept while the component is called.

    :param key: bucket and key
    :param places: the places that the event occupies
    """

    key: BucketKey
    places: int


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """The limits of each watcher. The limits on its queue include events in flight."""

    queue_events: int
    queue_bytes: int
    timeout_s: float


class WatchCounts:
    """The numbers of delivered, failed and dropped events, for all watchers since the start.

    :ivar lock: protects `dropped` and the queues of all watchers
    :ivar failed: number of calls that failed or timed out
    """

    __slots__ = ("delivered", "dropped", "failed", "lock")

    def __init__(self) -> None:
        self.lock = Lock()
        self.delivered = 0
        self.failed = 0
        self.dropped = 0


class WatchQueue:
    """The event queue of one watcher. Any thread may call `push` and `settle`. Only one thread may call other methods.

    :param wake: called when `take` has returned None and should be called again; any thread may call `wake`
    :ivar waiting: the newest events; append events only as `push` does
    :ivar small_bytes: maximum bytes of bucket name, key and value, together, in an event that occupies one place
    :ivar full_at: the length of `waiting` at which `settle` is due
    """

    __slots__ = (
        *("_chains", "_closed", "_counts", "_large", "_lock", "_parked", "_parkings", "_place_bytes", "_places", "_ready"),
        *("_room", "_slack", "_sleeping", "_wake", "full_at", "small_bytes", "waiting"),
    )  # fmt: skip

    def __init__(self, limits: WatchLimits, counts: WatchCounts, wake: Callable[[], None]) -> None:
        self._counts = counts
        self._lock = counts.lock
        self._wake = wake
        self._places = min(limits.queue_events, limits.queue_bytes)
        self._place_bytes = limits.queue_bytes // self._places
        self._slack = min(self._places // SLACK_SHARE, SLACK_MAX)
        self.small_bytes = self._place_bytes - EVENT_BYTES
        self.waiting: deque[Event] = deque()
        self.full_at = 1
        #: The number of places that are left for waiting events. It excludes the places of parked and taken events,
        #: and all but the first place of each waiting event.
        self._room = self._places
        self._large = 0  # number of events that occupy more than one place: waiting, parked or taken
        self._parked: OrderedDict[int, Event] = OrderedDict()
        self._parkings = 0
        #: The numbers of a key's parked events. A key has an entry if it has a taken event or is ready.
        self._chains: dict[BucketKey, deque[int]] = {}
        self._ready: deque[BucketKey] = deque()
        self._sleeping = True  # the next event must call `wake`
        self._closed = False

    def __len__(self) -> int:
        """Return the number of queued events. Events in flight are not included."""
        return len(self.waiting) + len(self._parked)

    def push(self, event: Event) -> None:
        """Add an event. O(1 + dropped events)."""
        bucket, key, value = event
        if len(bucket) + len(key) + (0 if value is None else len(value)) > self.small_bytes:
            self._push_large(event)
        else:
            self.waiting.append(event)
        if len(self.waiting) >= self.full_at:
            self.settle()

    def settle(self) -> None:
        """Drop the oldest events if the queue is too full. Call `wake` if the reader is waiting for an event."""
        with self._lock:
            if self._closed:
                self.waiting.clear()
                return
            self._make_room()
            is_woken = self._sleeping and bool(self.waiting)
            if is_woken:
                self._sleeping = False
            self._set_full_at()
        if is_woken:
            self._wake()

    def _push_large(self, event: Event) -> None:
        places = self._places_of(event)
        with self._lock:
            if self._closed:
                return
            if places > self._places:  # too large even for an empty queue
                self._counts.dropped += 1
                return
            self.waiting.append(event)
            self._count(places, -1)
            self._room += 1  # the length of `waiting` counts the first place
            self._set_full_at()

    def open(self) -> None:
        """Accept events."""
        with self._lock:
            self._closed = False
            self._set_full_at()

    def close(self) -> None:
        """Accept no more events, and drop the queued events."""
        with self._lock:
            self._closed = True
            while self.waiting or self._parked:
                self._drop_oldest()
            self._set_full_at()

    def take(self) -> Event | None:
        """Take the oldest event whose key has no event in flight. Return the event.

        Return None if there is no such event, or if none is found in LOOKS_MAX tries. `wake` is called when `take`
        should be called again.
        """
        for _ in range(LOOKS_MAX):
            with self._lock:
                if self._ready:
                    key = self._ready.popleft()
                    chain = self._chains[key]
                    if chain:
                        return self._parked.pop(chain.popleft())
                    del self._chains[key]  # the key's parked events were dropped meanwhile
                elif self.waiting:
                    event = self.waiting.popleft()
                    self._room -= 1
                    self._sleeping = False
                    self._set_full_at()
                    known = self._chains.get(event[:2])
                    if known is None:
                        self._chains[event[:2]] = deque()
                        return event
                    self._parkings += 1
                    known.append(self._parkings)
                    self._parked[self._parkings] = event
                else:
                    self._sleeping = True
                    self._set_full_at()
            # A writer appends an event, then reads `full_at`. We set `full_at`, then read `waiting`. So either the
            # writer sees the new `full_at`, or we see the event.
            if self._sleeping and not self.waiting:
                return None
        self._wake()
        return None

    def in_flight(self, event: Event) -> InFlight:
        """Return what `end` needs of a taken event."""
        return InFlight(event[:2], self._places_of(event))

    def end(self, event: InFlight) -> None:
        """Mark a taken event as finished, so that the next event of its key can be taken."""
        with self._lock:
            key, places = event
            self._count(places, 1)
            self._set_full_at()
            if self._chains[key]:
                self._ready.append(key)
            else:
                del self._chains[key]

    def check(self, taken: Collection[InFlight]) -> None:
        """Assert all invariants. Tests may call this method while no other thread pushes. O(n)."""
        places = [self._places_of(event) for event in (*self._parked.values(), *self.waiting)]
        places += [event.places for event in taken]
        assert sum(places) <= self._places
        assert self._room == self._places - sum(places) + len(self.waiting)
        assert self._large == sum(each > 1 for each in places)
        assert self._chains.keys() == {event.key for event in taken} | set(self._ready)
        assert len(self._chains) == len(taken) + len(self._ready), "a key has one taken event, or is ready"
        assert sorted(parking for chain in self._chains.values() for parking in chain) == list(self._parked)
        for key, chain in self._chains.items():
            assert list(chain) == sorted(chain)
            assert all(self._parked[parking][:2] == key for parking in chain)
        assert not self._sleeping or not self.waiting, "no wake-up is due for the waiting events"
        assert not self._closed or not len(self)
        assert self.full_at == (1 if self._sleeping or self._closed else self._room + 1)

    # Call the methods below only while holding the lock.

    def _places_of(self, event: Event) -> int:
        bucket, key, value = event
        size = EVENT_BYTES + len(bucket) + len(key) + (0 if value is None else len(value))
        return -(-size // self._place_bytes)

    def _count(self, places: int, sign: int) -> None:
        """Update the counts for an event that leaves the queue (sign 1) or enters it (sign -1)."""
        self._room += sign * places
        if places > 1:
            self._large -= sign

    def _set_full_at(self) -> None:
        self.full_at = 1 if self._sleeping or self._closed else self._room + 1

    def _make_room(self) -> None:
        waiting = self.waiting
        if len(waiting) <= self._room:
            return
        slack = self._slack if self._room > 2 * self._slack else 0
        if not self._parked and not self._large:
            many = len(waiting) - self._room + slack
            for _ in range(many):
                waiting.popleft()
            self._counts.dropped += many
            return
        while len(waiting) > self._room - slack:  # the loop ends, because taken events alone always fit
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        if self._parked:
            _, oldest = self._parked.popitem(last=False)
            self._chains[oldest[:2]].popleft()
        else:
            oldest = self.waiting.popleft()
            self._room -= 1
        self._count(self._places_of(oldest), 1)
        self._counts.dropped += 1
