"""The queue of one watcher: bounded. Events go in from any thread, and out to calls on the event loop, in the order of writes to a key.

    push ──> waiting ──> taken                        a key of which no event is taken
                └──────> parked ── ready ──> taken    a key of which one is: its events wait until that has ended

All that is parked is older than all that waits. Where the queue is full the oldest are dropped; in a large queue some at a time, so that
who writes does so once for many events.

An event takes a place, and a large one more: one for each queue_bytes / queue_events bytes begun. So places bound events and bytes at once, and of a
small event nothing need be counted but that it is there.

Locks: `waiting` is appended to without a lock, which a deque does at one instant, with the GIL and on free-threaded builds; `full_at` says when more
is to be done. All else is done under the lock of WatchCounts, a leaf: it is taken under a stripe, and nothing is taken, logged or awaited under it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from threading import Lock
from typing import TypeAlias

__all__ = ["EVENT_BYTES", "LOOKS_MAX", "Event", "WatchCounts", "WatchLimits", "WatchQueue"]

#: Bucket, key, value; None: deleted. A plain tuple, since every watched write makes one.
Event: TypeAlias = tuple[bytes, bytes, bytes | None]
BucketKey: TypeAlias = tuple[bytes, bytes]

#: What an event takes beside key and value: a tuple, its place in the queue, headers of bytes objects. The bucket's name is the store's.
EVENT_BYTES = 200
#: Where the queue is full, as many are dropped as give room to so many more: one in so many places, and not more than that.
SLACK_SHARE = 64
SLACK_MAX = 256
#: Events that the event loop looks at before it turns to something else.
LOOKS_MAX = 256


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """Limits of each watcher: of its queue, what is taken and has not ended included, and of its calls."""

    queue_events: int
    queue_bytes: int
    timeout_s: float


class WatchCounts:
    """How events ended, over all watchers that there are and were. What is neither is queued.

    :ivar lock: protects `dropped`, and the queues of all watchers
    :ivar failed: calls that had no answer in time, or could not be made
    """

    __slots__ = ("delivered", "dropped", "failed", "lock")

    def __init__(self) -> None:
        self.lock = Lock()
        self.delivered = 0
        self.failed = 0
        self.dropped = 0


class WatchQueue:
    """Events of one watcher. `push` and `settle` may be called from any thread, all else on one.

    :param wake: called, from any thread, when `take` gave nothing and there may be something now
    :ivar waiting: may be appended to by who does what `push` does
    :ivar small_bytes: key and value of an event that takes one place
    :ivar full_at: so many that wait make `settle` due
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
        #: Places but for those that are parked or taken, and but for what large ones that wait take beyond their first.
        self._room = self._places
        self._large = 0  # events of more than one place, wherever they are
        self._parked: OrderedDict[int, Event] = OrderedDict()
        self._parkings = 0
        self._chains: dict[BucketKey, deque[int]] = {}  # keys that are taken or ready: what is parked of each
        self._ready: deque[BucketKey] = deque()
        self._sleeping = True  # `wake` is due at the next event
        self._closed = False

    def __len__(self) -> int:
        """Events that are not taken yet."""
        return len(self.waiting) + len(self._parked)

    def push(self, event: Event) -> None:
        """Take in an event. O(1) but for what a large event drops. `keyvalue_provider.watching.patterns` has it written out for small ones."""
        _, key, value = event
        if len(key) + (0 if value is None else len(value)) > self.small_bytes:
            self._push_large(event)
        else:
            self.waiting.append(event)
        if len(self.waiting) >= self.full_at:
            self.settle()

    def settle(self) -> None:
        """Drop what is too much, and wake who sleeps."""
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
            if places > self._places:  # not even an empty queue has room
                self._counts.dropped += 1
                return
            self.waiting.append(event)
            self._count(places, -1)
            self._room += 1  # the first place is counted by its being there
            self._set_full_at()

    def open(self) -> None:
        """Take events in."""
        with self._lock:
            self._closed = False
            self._set_full_at()

    def close(self) -> None:
        """Take in no more, and drop all that is not taken."""
        with self._lock:
            self._closed = True
            while self.waiting or self._parked:
                self._drop_oldest()
            self._set_full_at()

    def take(self) -> Event | None:
        """The oldest event of a key of which none is taken; None where there is none, or none was found so far: then `wake` will be called."""
        for _ in range(LOOKS_MAX):
            with self._lock:
                if self._ready:
                    key = self._ready.popleft()
                    chain = self._chains[key]
                    if chain:
                        return self._parked.pop(chain.popleft())
                    del self._chains[key]  # what was parked was dropped meanwhile
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
            # Who appends looks at `full_at` behind that, and this looks at `waiting` behind `full_at`: one of the two sees the other.
            if self._sleeping and not self.waiting:
                return None
        self._wake()
        return None

    def end(self, event: Event) -> None:
        """An event that was taken is done with: now the next of its key can be taken."""
        with self._lock:
            self._count(self._places_of(event), 1)
            self._set_full_at()
            key = event[:2]
            if self._chains[key]:
                self._ready.append(key)
            else:
                del self._chains[key]

    def check(self, taken: Collection[Event]) -> None:
        """Assert every invariant. For tests, while no other thread pushes. O(n)."""
        queued = [*taken, *self._parked.values(), *self.waiting]
        places = [self._places_of(event) for event in queued]
        assert sum(places) <= self._places
        assert self._room == self._places - sum(places) + len(self.waiting)
        assert self._large == sum(each > 1 for each in places)
        assert self._chains.keys() == {event[:2] for event in taken} | set(self._ready)
        assert len(self._chains) == len(taken) + len(self._ready), "a key is taken once, or ready"
        assert sorted(parking for chain in self._chains.values() for parking in chain) == list(self._parked)
        for key, chain in self._chains.items():
            assert list(chain) == sorted(chain)
            assert all(self._parked[parking][:2] == key for parking in chain)
        assert not self._sleeping or not self.waiting, "nobody would be woken for it"
        assert not self._closed or not len(self)
        assert self.full_at == (1 if self._sleeping or self._closed else self._room + 1)

    # Under the lock, from here on.

    def _places_of(self, event: Event) -> int:
        _, key, value = event
        return -(-(EVENT_BYTES + len(key) + (0 if value is None else len(value))) // self._place_bytes)

    def _count(self, places: int, sign: int) -> None:
        """An event goes (sign 1) or comes (-1)."""
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
        while len(waiting) > self._room - slack:  # what is taken had room, so that this ends
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
