"""The messages that an instance has published, until each is acknowledged, applied and answered.

    publish ──> unacknowledged ── PubAck with sequence S ──> acknowledged ── the position passes S ──> answered
                     │                                            │
                     ├── refused by the server: not stored        └── too late: stored, but not seen here
                     └── too late: unknown

A message is never sent a second time. So after an unknown outcome, it is stored once or not at all.
"""

from __future__ import annotations

import json
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from keyvalue_engine import Bucket, StoreError
from keyvalue_replica.errors import BucketFullError, NotStoredError, UnknownOutcomeError
from keyvalue_replica.position import Position
from keyvalue_replica.promise import Promise
from keyvalue_replica.reservations import Reservation
from keyvalue_replica.set_runs import SetRun

__all__ = ["Answer", "Change", "CountSum", "Publication", "Publications", "ReplicaCounts", "answer_with"]

#: JetStream's codes of errors.
WRONG_LAST_SEQUENCE = (10071, 10164)
STREAM_FULL = (10077, 10122, 10054)


class Answer(Protocol):
    """What a caller waits for, for example an asyncio.Future."""

    def done(self) -> bool: ...

    def set_result(self, value: Any, /) -> None: ...

    def set_exception(self, error: Exception, /) -> None: ...


#: A bucket's handle, a key, and the value to set, or None to delete the key.
Change: TypeAlias = tuple[Bucket, bytes, bytes | None]


class ReplicaCounts:
    """Numbers since the start.

    :ivar unconfirmed: changes that may or may not have been stored, or that were not seen here in time
    :ivar refused: changes that the NATS server refused, and barriers that failed
    :ivar lost_races: increments that another instance overtook, and that were tried again
    :ivar resynchronisations: number of times that the whole bucket was read again
    :ivar foreign: messages whose subject is not that of a key
    """

    def __init__(self, position: Position) -> None:
        self._position = position
        self.unconfirmed = 0
        self.refused = 0
        self.lost_races = 0
        self.resynchronisations = 0
        self.foreign = 0

    @property
    def torn(self) -> int:
        """Return the number of times that a change was missing when a later one arrived."""
        return self._position.torn


class CountSum:
    """The sums of the numbers of several cores."""

    def __init__(self) -> None:
        self.unconfirmed = self.refused = self.lost_races = self.torn = self.resynchronisations = self.foreign = 0

    def add(self, counts: ReplicaCounts | CountSum) -> None:
        """Add the numbers of a core, or of several."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(counts, name))


class Owner(Protocol):
    """Someone who goes on when a publication has ended."""

    def acknowledged(self, sequence: int, /) -> None: ...

    def overtaken(self, last_sequence: int | None, /) -> None:
        """Go on with the answers of the publication, because the key's last sequence was not the expected one.

        :param last_sequence: the key's last sequence, 0 if the stream has no message of the key, or None if the server
            does not say it
        """

    def failed(self) -> None: ...


class Publication(Promise):
    """A message, or several messages that are stored together or not at all. It is the answer to the call that made it.

    A caller may cancel its answer. The publication then goes on without one.

    :ivar answers: further answers that wait for it, each with its result, which may be an error
    :ivar change: the handle, the key and the value that the message sets, None as the value for a delete; None if only
        the delivery tells what to apply
    :ivar is_barrier: True if it stores nothing, and only reads wait for it
    :ivar after: the largest sequence that the stream was known to have before; the message's own is larger
    :ivar gaps: the number of gaps of the position when it was published
    :ivar owner: told how the publication ended; None for nobody
    """

    __slots__ = ("after", "answers", "began_s", "change", "gaps", "is_barrier", "owner", "reservation", "token")

    # Set by `Publications.add`.
    began_s: float
    after: int
    token: int

    def __init__(self, reservation: Reservation | None = None, change: Change | None = None) -> None:
        # Without a call of `Promise.__init__`, for speed.
        self._is_done = self._is_shared = self.is_barrier = False
        self._value = self._error = self._act = self._more = None
        self.answers: list[tuple[Answer, object]] | None = None
        self.owner: Owner | None = None
        self.gaps = 0
        self.reservation = reservation
        self.change = change

    def fail(self, error: Exception) -> None:
        """Answer with an error. Its traceback may keep this object alive for long, so free the value now."""
        self.change = None
        if self.reservation is not None:
            self.release()
        if not self._is_done:
            self.set_exception(error)
        if self.answers is not None:
            for answer, _ in self.answers:
                if not answer.done():
                    answer.set_exception(error)

    def succeed(self) -> None:
        """Answer with the results."""
        if self.reservation is not None:
            self.release()
        if not self._is_done:
            self._end()  # the value is None
        if self.answers is not None:
            for answer, result in self.answers:
                if not answer.done():
                    answer_with(answer, result)

    def release(self) -> None:
        """Free the reserved room."""
        reservation, self.reservation = self.reservation, None
        if reservation is not None:
            reservation.release()


def answer_with(answer: Answer, result: object) -> None:
    """Give an answer its result, or its error."""
    if isinstance(result, Exception):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def unknown_outcome(publication: Publication, why: str) -> StoreError:
    """Return the error of a publication whose outcome is unknown."""
    if publication.is_barrier:
        return NotStoredError(f"the newest values are not known: {why}")
    return UnknownOutcomeError(f"the change may or may not have been stored: {why}")


class Publications:
    """The publications of an instance that are not answered.

    :param on_reused: called if a message got a sequence that the stream had used before: it was created anew, or has
        lost messages
    :ivar apply: called with a publication that follows the position, and its sequence; applies it if it can
    :ivar apply_run: called with a run, the index of a set that follows the position, the index after the last one to apply,
        and the sequence of the first; applies them if it can
    :ivar observe: called with the seconds between publishing messages and their confirmation, with True for barriers, and
        with the number of messages
    """

    def __init__(self, position: Position, counts: ReplicaCounts, on_reused: Callable[[], None]) -> None:
        self.observe: Callable[[float, bool, int], None] | None = None
        self.apply: Callable[[Publication, int], None] | None = None
        self.apply_run: Callable[[SetRun, int, int, int], None] | None = None
        self._barriers: deque[Publication] = deque()  # those that are not delivered, in the order of their numbers
        self._position = position
        self._counts = counts
        self._on_reused = on_reused
        self._highest = 0  # the highest sequence that any acknowledgement has named
        self._tokens = 0
        self._unacknowledged: dict[int, Publication] = {}
        self._runs: dict[bytes, SetRun] = {}  # by the number of the next set that is not answered
        self._acknowledged: deque[tuple[int, int, Publication]] = deque()  # in the order of their sequences

    def __len__(self) -> int:
        """Return the number of publications that are not answered."""
        return len(self._unacknowledged) + len(self._acknowledged) + sum(map(len, self._runs.values()))

    def add(self, publication: Publication, now_s: float) -> int:
        """Add a publication. Return the number that names it in its reply subject."""
        self._tokens = publication.token = token = self._tokens + 1
        publication.began_s = now_s
        applied, highest = self._position.applied, self._highest
        publication.after = applied if applied > highest else highest
        self._unacknowledged[token] = publication
        return token

    def add_run(self, run: SetRun, now_s: float) -> None:
        """Add sets that are published together. Give them numbers."""
        run.token = token = self._tokens + 1
        self._tokens += len(run.keys)
        run.began_s = now_s
        applied, highest = self._position.applied, self._highest
        run.after = applied if applied > highest else highest
        run.numbers = tuple([b"%d" % number for number in range(token, self._tokens + 1)])
        self._runs[run.numbers[0]] = run

    def part(self, run: SetRun) -> None:
        """Give each set of a run that is not answered a publication of its own. The run ends."""
        del self._runs[run.numbers[run.answered]]
        publications = []
        for at in range(run.answered, len(run.keys)):
            publication = Publication(None, (run.handle, run.keys[at], run.values[at]))
            publication.token, publication.began_s, publication.after = run.token + at, run.began_s, run.after
            self._unacknowledged[publication.token] = publication
            publications.append(publication)
        run.end(publications)

    def part_all(self) -> None:
        """End all runs."""
        for run in list(self._runs.values()):
            self.part(run)

    def _parted(self, token: int) -> Publication | None:
        """Return the publication of a set in a run, which ends; or None if the number is not that of such a set."""
        for run in self._runs.values():
            if run.token + run.answered <= token < run.token + len(run.keys):
                self.part(run)
                return self._unacknowledged[token]
        return None

    def acknowledge(self, token: int, payload: bytes, now_s: float) -> None:
        """Take the server's answer: a PubAck in JSON, or nothing, which says that nobody serves the stream."""
        at = payload.find(b'"seq":')
        if at >= 0 and b'"error"' not in payload:
            end = payload.find(b",", at)
            self.stored((b"%d" % token,), (payload[at + 6 : end] if end > 0 else payload[at + 6 : -1],), now_s)
        elif (publication := self._unacknowledged.get(token) or self._parted(token)) is not None:
            self._refuse(publication, payload)

    def stored(self, numbers: Sequence[bytes], sequences: Sequence[bytes], now_s: float) -> None:
        """Take the sequences of messages that were stored, and the numbers of the messages. Both are decimal text."""
        runs, at = self._runs, 0
        while runs and at < len(numbers):
            run = runs.get(numbers[at])
            if run is None:
                start = at
                while at < len(numbers) and numbers[at] not in runs:
                    at += 1
                self._each_stored(numbers[start:at], sequences[start:at], now_s)
            else:
                taken = self._take_run(run, numbers[at:], sequences[at:], now_s)
                if not taken:
                    self.part(run)
                at += taken
        if at < len(numbers):
            self._each_stored(numbers[at:], sequences[at:], now_s)

    def _take_run(self, run: SetRun, numbers: Sequence[bytes], sequences: Sequence[bytes], now_s: float) -> int:
        """Apply and answer the next sets of a run. Return their number, or 0 if the run must end."""
        start, number, position = run.answered, min(len(run), len(numbers)), self._position
        first = int(sequences[0])
        last, applied = first + number - 1, position.applied
        if (
            not position.is_whole
            or first > applied + 1
            or first <= run.after
            or tuple(numbers[:number]) != run.numbers[start : start + number]
            or list(sequences[:number]) != [b"%d" % sequence for sequence in range(first, last + 1)]
        ):
            return 0
        if last > applied:
            if self.apply_run is not None:
                self.apply_run(run, start + applied + 1 - first, start + number, applied + 1)
            if last > position.applied:
                return 0
        del self._runs[run.numbers[start]]
        if number < len(run):
            self._runs[run.numbers[start + number]] = run
        self._report(number, run.began_s, now_s)
        run.succeed(number)
        return number

    def _each_stored(self, numbers: Sequence[bytes], sequences: Sequence[bytes], now_s: float) -> None:
        self._stored(zip(map(int, numbers), map(int, sequences), strict=True), now_s)

    def _stored(self, sequences: Iterable[tuple[int, int]], now_s: float) -> None:
        """Take the sequences of messages that were stored, by their numbers. For speed, `Publication.succeed` is inlined."""
        position, take, apply = self._position, self._unacknowledged.pop, self.apply
        unobserved, unobserved_s = 0, 0.0  # the number of stored changes that `observe` does not know, and their time
        for token, sequence in sequences:
            publication = take(token, None)
            if publication is None:
                if self._parted(token) is None:
                    continue  # it was given up
                publication = take(token)
            if publication.began_s == unobserved_s and not publication.is_barrier:
                unobserved += 1
            elif publication.is_barrier:
                if self.observe is not None:
                    self.observe(now_s - publication.began_s, True, 1)
            else:
                self._report(unobserved, unobserved_s, now_s)
                unobserved, unobserved_s = 1, publication.began_s
            if sequence <= publication.after:
                self._on_reused()
            if publication.owner is not None:
                publication.owner.acknowledged(sequence)
            if position.is_whole:
                if sequence == position.applied + 1 and apply is not None:
                    apply(publication, sequence)
                if sequence <= position.applied:
                    if publication.reservation is None and publication.answers is None and not publication._is_done:
                        publication._end()
                    else:
                        publication.succeed()
                    continue
            self._wait(sequence, publication)
        self._report(unobserved, unobserved_s, now_s)

    def _wait(self, sequence: int, publication: Publication) -> None:
        """Let a publication wait until the position has passed its sequence."""
        entry = sequence, publication.token, publication
        if sequence > self._highest:
            self._highest = sequence
            self._acknowledged.append(entry)
        else:
            insort(self._acknowledged, entry)

    def _report(self, number: int, began_s: float, now_s: float) -> None:
        """Tell `observe` about changes that are stored. Most of those of a read were published together."""
        if number and self.observe is not None:
            self.observe(now_s - began_s, False, number)

    def add_barrier(self, publication: Publication, now_s: float) -> int:
        """Add a barrier. Return the number that it carries."""
        publication.gaps = self._position.gaps
        while self._barriers and self._barriers[0].done():  # given up
            self._barriers.popleft()
        self._barriers.append(publication)
        return self.add(publication, now_s)

    def has_lost_barriers(self, before_s: float) -> bool:
        """Return True if barriers wait for their delivery, and all were published before a time."""
        barriers = self._barriers
        return bool(barriers) and barriers[-1].began_s <= before_s and not all(map(Publication.done, barriers))

    def deliver_barrier(self, token: int, sequence: int, now_s: float) -> bool:
        """Take the delivery of a barrier of ours. All earlier ones have lower sequences.

        Return False if the position stays torn, because a gap came after the barrier was published.
        """
        barriers, position, passed = self._barriers, self._position, []
        while barriers and barriers[0].token <= token:
            passed.append(barriers.popleft())
        is_whole = position.is_whole or (bool(passed) and position.mend(passed[-1].gaps))
        for barrier in passed:
            if self._unacknowledged.pop(barrier.token, None) is None:
                continue  # it was given up, or the server has answered
            if self.observe is not None:
                self.observe(now_s - barrier.began_s, True, 1)
            if sequence <= barrier.after:
                self._on_reused()
            if position.is_whole and sequence <= position.applied:
                barrier._end()  # the value is None
            else:
                self._wait(sequence, barrier)
        return is_whole

    def _refuse(self, publication: Publication, payload: bytes) -> None:
        if not payload:
            self._fail(publication, NotStoredError("JetStream is off, or the stream has no leader: nothing was stored"))
            return
        try:
            error = json.loads(payload)["error"]
            code, text, status = int(error["err_code"]), str(error["description"]), int(error["code"])
        except (ValueError, KeyError, TypeError):
            return  # not an answer of JetStream; the time limit ends the wait
        if code in WRONG_LAST_SEQUENCE and publication.owner is not None:
            del self._unacknowledged[publication.token]
            publication.release()
            last = text.rpartition(" ")[2]
            publication.owner.overtaken(int(last) if last.isdigit() else None)
        elif code in STREAM_FULL:
            self._fail(publication, BucketFullError(f"the KV bucket is full: {text}"))
        elif status == 503:  # the server may have passed the message on before it failed
            self._fail(publication, unknown_outcome(publication, text))
        else:
            self._fail(publication, NotStoredError(f"the NATS server refused it: {text}"))

    def _fail(self, publication: Publication, error: StoreError) -> None:
        del self._unacknowledged[publication.token]
        self._give_up(publication, error)
        if publication.owner is not None:
            publication.owner.failed()

    def _give_up(self, publication: Publication, error: StoreError) -> None:
        """Answer a publication with an error, and count it."""
        if isinstance(error, UnknownOutcomeError):
            self._counts.unconfirmed += 1
        else:
            self._counts.refused += 1
        publication.fail(error)

    def fail(self, publication: Publication | SetRun, error: StoreError) -> None:
        """End a publication, or the sets of a run, that wait for their acknowledgement."""
        number = 1 if isinstance(publication, Publication) else len(publication.keys)
        for token in range(publication.token, publication.token + number):
            waiting = self._unacknowledged.get(token) or self._parted(token)
            if waiting is not None:
                self._fail(waiting, error)

    def release(self) -> None:
        """Answer the publications that the position has passed."""
        acknowledged, position = self._acknowledged, self._position
        applied = position.applied
        while acknowledged and position.is_whole and acknowledged[0][0] <= applied:
            acknowledged.popleft()[2].succeed()

    def expire(self, before_s: float, timeout_s: float) -> None:
        """Give up the publications that began before a time.

        :param timeout_s: the time limit, for the text of the error
        """
        late = f"within {timeout_s:g} s (jetstream_timeout_ms)"
        for run in [each for each in self._runs.values() if each.began_s <= before_s]:
            self.part(run)
        # They are not in the order of their beginnings: batches wait before they are published.
        for publication in [each for each in self._unacknowledged.values() if each.began_s <= before_s]:
            self._fail(publication, unknown_outcome(publication, f"JetStream has not confirmed it {late}"))
        acknowledged = self._acknowledged
        if any(publication.began_s <= before_s for _, _, publication in acknowledged):
            self._acknowledged = deque(entry for entry in acknowledged if entry[2].began_s > before_s)
            for _, _, publication in acknowledged:
                if publication.began_s <= before_s:
                    error: StoreError = UnknownOutcomeError(f"it is stored, but has not arrived here {late}")
                    if publication.is_barrier:
                        error = unknown_outcome(publication, f"a change has not arrived here {late}")
                    self._give_up(publication, error)

    def restart(self) -> None:
        """Forget which sequences are known, because the stream is read again, or another one."""
        self._highest = 0
        acknowledged, self._acknowledged = self._acknowledged, deque()
        for _, _, publication in acknowledged:
            self._give_up(publication, unknown_outcome(publication, "the whole KV bucket is read again"))
