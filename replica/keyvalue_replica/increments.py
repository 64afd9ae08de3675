"""Increments, and other writes that depend on what is stored: compare-and-swap on the sequence of a key's last message.

Increments of one key that wait at one instance are published together, as one sum, and each caller gets its own part:

    waiting  +1 +1 +5  ──>  value 10, if the last sequence is 40  ── acknowledged ──>  answers 4, 5, 10
                                        └── overtaken: it is 42 ──> apply 42, and try again

If none of them changes the entry, nothing is published. Then a barrier shows that the entry is the latest.

An instance that does not know the sequence of a key expects 0. The server's refusal then names the sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeAlias

from keyvalue_engine import Bucket
from keyvalue_engine.entry import Entry, unless_expired, value_of
from keyvalue_engine.room import growth_of
from keyvalue_replica.errors import NotStoredError, UnknownOutcomeError
from keyvalue_replica.publications import Answer, Publication, ReplicaCounts, answer_with
from keyvalue_replica.reservations import Reservations
from keyvalue_replica.sequences import NO_MESSAGE, UNKNOWN, Sequences

__all__ = ["Counter", "Increment", "Increments", "Publisher", "Step"]

#: Number of increments of one key that are published together.
TOGETHER_MAX = 4_096
#: No more are published together if the entries that they have made have this size. Each answer holds its own entries, so
#: appends to a large value would take the memory of one value each.
TOGETHER_BYTES = 1024 * 1024
#: Seconds until the next try if the server does not say which message was in the way.
RETRY_S = 0.003
UNCONFIRMED = "the change may or may not have been stored: JetStream was too slow (jetstream_timeout_ms)"
LATE = "other instances changed this key again and again (jetstream_timeout_ms): nothing was stored"


#: A function that returns the entry of a key after an increment, and the answer to the caller.
Step: TypeAlias = Callable[[Entry | None], tuple[Entry | None, object]]


class Increment:
    """An increment that waits, or another write that depends on what is stored.

    :ivar step: returns the entry after the increment, and the answer; an error is the answer too
    :ivar check: raises StoreError if the new entry exceeds a limit of the caller
    :ivar is_latest: True if a barrier has passed since the call, so that the entry can't be an old one
    """

    __slots__ = ("answer", "check", "ends_s", "is_latest", "step")

    def __init__(self, step: Step, check: Callable[[Entry | None], object], answer: Answer, ends_s: float) -> None:
        self.step = step
        self.check = check
        self.answer = answer
        self.ends_s = ends_s
        self.is_latest = False


class Publisher(Protocol):
    """What increments need from the core."""

    reservations: Reservations

    @property
    def clock(self) -> Callable[[], int]:
        """Return a function that returns the server's time in nanoseconds."""

    def publish_entry(
        self, subject: bytes, entry: Entry | None, sequence: int, publication: Publication, keeps_deadline: bool, /
    ) -> None:
        """Publish a key's new entry, or its delete, if the sequence of its last message is `sequence`."""

    def has_passed(self, sequence: int) -> bool:
        """Return True if this and all earlier messages are applied."""

    def after_barrier(self, act: Callable[[Exception | None], None]) -> None:
        """Call `act` with None once everything that is stored now has been applied, or with an error."""

    def flush_soon(self, delay_s: float = 0.0) -> None:
        """Call `Increments.publish_ready` in the next turn of the event loop, or after a delay."""


class Counter:
    """A key whose increments wait. It owns the publication of their sum.

    :ivar expected: the sequence that was known when the sum was published
    :ivar needed: the sequence that must have been applied before the next try
    :ivar ahead: the sequence and the entry of our own last sum, which may not have been applied yet
    """

    __slots__ = (
        "_increments",
        "ahead",
        "expected",
        "handle",
        "is_published",
        "key",
        "needed",
        "next",
        "subject",
        "taken",
        "waiting",
    )

    def __init__(self, increments: Increments, subject: bytes, handle: Bucket, key: bytes) -> None:
        self._increments = increments
        self.subject = subject
        self.handle = handle
        self.key = key
        self.waiting: deque[Increment] = deque()
        self.taken: list[Increment] = []  # the increments of the publication
        self.next: Entry | None = None  # what the publication stores
        self.is_published = False
        self.needed = self.expected = 0
        self.ahead: tuple[int, Entry | None] | None = None

    def acknowledged(self, sequence: int) -> None:
        """Go on with the next increments, which need not wait until this sum is applied."""
        self.ahead = sequence, self.next
        self._end()

    def overtaken(self, last_sequence: int | None) -> None:
        """Put the increments back, to try again."""
        self.waiting.extendleft(reversed(self.taken))
        self.ahead = None
        self.needed = max(self.needed, last_sequence or 0)
        self._increments.overtaken(self, last_sequence)
        self._end(RETRY_S if last_sequence is None else 0.0)

    def failed(self) -> None:
        """Go on after a publication that failed. Its increments have been answered."""
        self.ahead = None
        self._end()

    def _end(self, delay_s: float = 0.0) -> None:
        self.taken = []
        self.is_published = False
        self._increments.look_at(self, delay_s)


class Increments:
    """The increments that wait.

    :ivar counters: the keys whose increments wait, by subject
    :ivar ready: those of them to look at in the next turn, or when the position advances
    """

    def __init__(self, publisher: Publisher, sequences: Sequences, counts: ReplicaCounts) -> None:
        self._publisher = publisher
        self._sequences = sequences
        self._counts = counts
        self.counters: dict[bytes, Counter] = {}
        self.ready: dict[bytes, Counter] = {}

    def add(self, subject: bytes, handle: Bucket, key: bytes, increment: Increment) -> None:
        """Add an increment, to be published in the next turn of the event loop."""
        counter = self.counters.get(subject)
        if counter is None:
            counter = self.counters[subject] = Counter(self, subject, handle, key)
        counter.waiting.append(increment)
        if not counter.is_published:
            self.look_at(counter, 0.0)

    def look_at(self, counter: Counter, delay_s: float) -> None:
        """Look at a counter in the next turn, or after a delay."""
        self.ready[counter.subject] = counter
        self._publisher.flush_soon(delay_s)

    def overtaken(self, counter: Counter, last_sequence: int | None) -> None:
        """Note the sequence that a counter's key has at the server."""
        if self._sequences.get(counter.subject) != UNKNOWN:
            self._counts.lost_races += 1
        if last_sequence is not None:
            self._sequences.learn(counter.subject, last_sequence, counter.expected)

    def publish_ready(self, now_s: float) -> None:
        """Publish the sums of the counters that can go on. An increment whose time limit has passed gets an error."""
        ready, self.ready = self.ready, {}
        for subject, counter in ready.items():
            if counter.is_published:
                continue
            waiting = counter.waiting
            while waiting and waiting[0].answer.done():
                waiting.popleft()
            if not waiting:
                self.counters.pop(subject, None)
            elif self._publisher.has_passed(counter.needed):
                self._publish(counter, now_s)
            else:
                self.ready[subject] = counter  # until the position has passed

    def expire(self, now_s: float) -> None:
        """Fail the increments whose time is over. Look at all counters, and at all increments that are published."""
        for counter in self.counters.values():
            for increment in counter.taken:
                if increment.ends_s <= now_s and not increment.answer.done():
                    increment.answer.set_exception(UnknownOutcomeError(UNCONFIRMED))
            waiting = counter.waiting
            while waiting and (waiting[0].ends_s <= now_s or waiting[0].answer.done()):
                answer = waiting.popleft().answer
                if not answer.done():
                    answer.set_exception(NotStoredError(LATE))

    def restart(self) -> None:
        """Forget which sequences are known, because the stream is read again, or another one."""
        for counter in self.counters.values():
            counter.needed, counter.ahead = 0, None

    def _publish(self, counter: Counter, now_s: float) -> None:
        """Publish what the increments that wait make of the entry. If they change nothing, confirm that it is the latest."""
        sequence, entry = self._base(counter)
        before = entry
        publication = Publication()
        publication.answers = answers = []
        is_changed, made_bytes = False, 0
        while counter.waiting and len(counter.taken) < TOGETHER_MAX and made_bytes < TOGETHER_BYTES:
            increment = counter.waiting.popleft()
            if increment.answer.done():
                continue
            if increment.ends_s <= now_s:
                increment.answer.set_exception(NotStoredError(LATE))
                continue
            outcome: object
            try:
                after, outcome = increment.step(entry)
                if after is not entry:
                    increment.check(after)
                    is_changed, entry = True, after
                    made_bytes += len(value_of(after) or b"")
            except Exception as error:  # the answer of this increment alone
                outcome = error
            if increment.is_latest and not is_changed:
                answer_with(increment.answer, outcome)
                continue
            counter.taken.append(increment)
            answers.append((increment.answer, outcome))
        if is_changed:
            counter.next = entry
            counter.is_published = True
            publication.owner = counter
            keeps = isinstance(entry, tuple) and isinstance(before, tuple) and entry[1] == before[1]
            if entry is not None:
                growth = growth_of(counter.key, counter.handle.entry(counter.key), entry)  # it was checked
                publication.reservation = self._publisher.reservations.hold(counter.handle.name, growth)
            self._publisher.publish_entry(counter.subject, entry, sequence, publication, keeps)
        elif counter.taken:
            self._confirm(counter)
        else:
            self.look_at(counter, 0.0)

    def _confirm(self, counter: Counter) -> None:
        """Put the increments back. After a barrier, an answer that changes nothing needs no message of its own."""
        taken, counter.taken = counter.taken, []
        counter.waiting.extendleft(reversed(taken))

        def go_on(error: Exception | None) -> None:
            for increment in taken:
                if error is None:
                    increment.is_latest = True
                elif not increment.answer.done():
                    increment.answer.set_exception(error)
            if not counter.is_published and self.counters.get(counter.subject) is counter:
                self.look_at(counter, 0.0)

        self._publisher.after_barrier(go_on)

    def _base(self, counter: Counter) -> tuple[int, Entry | None]:
        """Return the sequence and the entry that the next sum starts from."""
        known = counter.expected = self._sequences.watch(counter.subject)
        if counter.ahead is not None and counter.ahead[0] > known:
            sequence, entry = counter.ahead
            return sequence, unless_expired(entry, self._publisher.clock())
        if known == NO_MESSAGE:
            return 0, None
        return max(known, 0), counter.handle.entry(counter.key)
