"""The core of the replicated store: deliveries and acknowledgements go in, frames to publish and answers come out.

    publish_...   adds a frame to the output, which `flush` writes once for each read of the connection
    deliver       applies a message of the stream to the engine
    acknowledge   takes the stream's answer to a message of ours
    barrier       returns an answer that comes once everything stored so far is applied here

The core has no I/O and reads no clock: `Outside` gives it the time, and takes its frames. All methods must be called
in one thread.

**The rule.** A message of ours is answered when it has sequence S in the stream, and the position is whole and has
reached S (`position.py`). Then the engine holds this change and all before it. A barrier is a message that stores
nothing. Reads that arrive together share a barrier, which is published after they arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keyvalue_engine import Bucket, Store, StoreError
from keyvalue_engine.entry import Entry
from keyvalue_replica.answers import Barrier, PartialAnswers
from keyvalue_replica.applier import Applier, Deletes, Headed, Message, Place
from keyvalue_replica.batches import Batches
from keyvalue_replica.clock import ServerClock
from keyvalue_replica.creation import Creation
from keyvalue_replica.errors import NotStoredError
from keyvalue_replica.increments import Increment, Increments, Step
from keyvalue_replica.layout import Layout, headers_of
from keyvalue_replica.outgoing import Outgoing, after_sequence
from keyvalue_replica.outside import Outside
from keyvalue_replica.own_changes import OwnChanges
from keyvalue_replica.position import Delivery, Position
from keyvalue_replica.promise import Promise
from keyvalue_replica.publications import Change, Publication, Publications, ReplicaCounts
from keyvalue_replica.reservations import Reservation, Reservations
from keyvalue_replica.sequences import Sequences
from keyvalue_replica.set_runs import SetRun

__all__ = ["BATCH_KEYS_MAX", "HEADER_BYTES", "Core"]

#: The server's limit for the messages of an atomic batch.
BATCH_KEYS_MAX = 1_000
#: After a barrier was delivered, the next ones ask for no acknowledgement for this time in seconds.
PROVEN_S = 1.0
#: The limit for the headers of a message of ours.
HEADER_BYTES = 256
#: The beginning of the server's answer to a message that nobody receives.
NOBODY = b"NATS/1.0 503"


class Core:
    """One instance's copy of the stream, and its publications.

    :param inbox: the prefix of the subjects for acknowledgements, without the last point
    :param instance: a name that no other instance has, for the subject of its barriers
    :param timeout_s: the longest time that a call waits
    :param reservations: the room that changes in flight need, if other cores share the store
    """

    def __init__(
        self,
        store: Store,
        layout: Layout,
        outside: Outside,
        inbox: str,
        instance: str,
        timeout_s: float,
        clock: ServerClock,
        reservations: Reservations | None = None,
    ) -> None:
        self.store = store
        self.layout = layout
        self.timeout_s = timeout_s
        self.clock = clock
        self.position = Position()
        self.counts = ReplicaCounts(self.position)
        self.reservations = reservations or Reservations(store)
        self.publications = Publications(self.position, self.counts, self._on_reused)
        self.heard_s = 0.0  # when the consumer has last sent something
        #: Values of at most this size fit into a message. It is looked up in turns with changes, since that takes long.
        self.value_bytes_max = 0
        #: Sequence and time of the last key after which nothing was to come. A stream that lost its end has another there.
        self._last = (0, 0)
        self._outside = outside
        self._sequences = Sequences()
        self._applier = Applier(store, layout, self._sequences, self.counts, outside.stop_serving)
        own_changes = OwnChanges(self._applier, layout, self._sequences, self.position)
        self.publications.apply, self.publications.apply_run = own_changes.apply, own_changes.apply_run
        self._increments = Increments(self, self._sequences, self.counts)
        self._reply = f"{inbox}.".encode()
        self._reply_at = len(self._reply)
        self._before_subject, self._after_subject = b"PUB " + layout.to_domain, b" " + self._reply
        self._to_domain = layout.to_domain
        self._barrier_subject = layout.barrier(instance)
        self._before_barrier = b"HPUB %b%b " % (layout.to_domain, self._barrier_subject)
        self._barrier_delivered_s = -PROVEN_S  # when a barrier was last delivered
        self._barrier: Barrier | None = None  # not written yet
        self.passing: Barrier | None = None  # while its callbacks run; reads that it allows need not wait
        self._mending: Publication | None = None  # the barrier that may make the position whole
        self._out: list[bytes] = []
        self._unwritten: list[Publication | SetRun] = []
        self._is_due = False
        self._turn_s = 0.0  # the time when `flush` became due
        self._batches = Batches(self, instance)

    def look_up_limit(self) -> None:
        """Update `value_bytes_max`."""
        self.value_bytes_max = self._outside.max_payload() - HEADER_BYTES

    # From the stream.

    def next_sequence(self) -> int:
        """Return where a new consumer goes on. If another message is there now, the whole bucket is read again."""
        return self._last[0] or self.position.applied + 1

    def begin(self) -> None:
        """Begin with a new consumer. The next barrier asks for an answer, and earlier ones may be lost."""
        self.position.begin()
        self._mending = None
        self.heard()
        self._barrier_delivered_s = -PROVEN_S

    def heard(self) -> None:
        """Note that the consumer has sent something."""
        self.heard_s = self._outside.now_s()

    def deliver(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        """Take a message of the consumer: a delivery, a heartbeat or a request of its flow control."""
        self.heard()
        delivery = Delivery.of(reply) if subject.startswith(b"$KV.") else None
        if delivery is None:
            self._take_status(reply, headers_of(block))
            return
        position = self.position
        applied = position.applied
        if not self._advance(delivery):
            return
        last_sequence, last_ns = self._last
        if delivery.sequence == last_sequence and delivery.timestamp_ns != last_ns:
            self._on_reused()
            return
        if not self.layout.is_internal(subject):
            if not delivery.pending:
                self._last = delivery.sequence, delivery.timestamp_ns
            if delivery.sequence > applied:
                self._applier.apply(subject, block, payload, delivery)
        else:
            token = int(payload) if payload.isdigit() and len(payload) < 19 else 0  # longer ones are of other clients
            self._take_barrier(subject, token, delivery.sequence, delivery.sequence > applied)
        self.release()

    def _take_status(self, reply: bytes, headers: dict[bytes, bytes]) -> None:
        stalled = headers.get(b"nats-consumer-stalled")
        if stalled or reply:  # flow control: the server waits for an answer
            self._outside.write(b"PUB %b 0\r\n\r\n" % (stalled or reply))
            return
        try:
            last, consumed = int(headers[b"nats-last-stream"]), int(headers[b"nats-last-consumer"])
        except (KeyError, ValueError):
            return
        if not self.position.rest(last, consumed):
            self._outside.follow_again("deliveries were lost")
            return
        if self.position.trusts_pending:  # otherwise, the server may not have the rest of a batch yet
            self._applier.end_batch()
        self.release()

    def acknowledge(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        """Take the stream's answer to a message of ours."""
        try:
            token = int(subject[self._reply_at :])
        except ValueError:
            return
        if payload or block.startswith(NOBODY):  # messages of a batch before the last one get an empty answer
            self.publications.acknowledge(token, payload, self._outside.now_s())
        if self._increments.counters:
            self.flush_soon()

    def acknowledge_all(self, numbers: Sequence[bytes], sequences: Sequence[bytes]) -> None:
        """Take the sequences of messages of ours that were stored, and the numbers in their reply subjects, as text."""
        self.publications.stored(numbers, sequences, self._outside.now_s())
        if self._increments.counters:
            self.flush_soon()

    def deliver_plain(self, subject: bytes, tokens: tuple[bytes, bytes], payload: bytes, delivery: Place) -> None:
        """Take a delivery without headers. Call `release` after the last one of a read.

        :param tokens: the last two tokens of the subject, which name the bucket and the key
        """
        position, (sequence, consumer_sequence, timestamp_ns, pending) = self.position, delivery
        if not pending:
            self.clock.note(timestamp_ns)
        applied = position.applied
        if not position.advance(sequence, consumer_sequence, pending):
            self._outside.follow_again("deliveries were lost")
            return
        if not pending:
            self._last = sequence, timestamp_ns
        if sequence > applied:
            if self.layout.max_age_ns:
                self._applier.apply(subject, b"", payload, Delivery(*delivery))
            else:
                self._applier.apply_plain(subject, tokens, payload, sequence)

    @property
    def takes_runs(self) -> bool:
        """Return True if `deliver_run` may be called: nothing can be answered yet, no sequence or timestamp is needed."""
        return not (self.position.is_whole or self._sequences.by_subject or self.layout.max_age_ns)

    def deliver_run(self, runs: Mapping[bytes, Mapping[bytes, bytes]], count: int, last: Place) -> None:
        """Take deliveries without headers that all have successors. The last one's place stands for all.

        :param runs: their payloads, by the last two tokens of their subjects
        """
        if self._advance(last, count):
            self._applier.apply_run(runs)

    def deliver_known(self, count: int, last: Place) -> None:
        """Take deliveries of messages that were applied when they were acknowledged. The last one's place stands for all.

        :param count: number of deliveries, whose sequences rise
        """
        sequence, _, timestamp_ns, pending = last
        if self._advance(last, count) and not pending:
            self._last = sequence, timestamp_ns

    def deliver_headed(self, deliveries: Sequence[Headed]) -> None:
        """Take deliveries with headers of ours, of one read. Call `release` after the last one of a read."""
        position, new = self.position, list[Headed]()
        for delivery in deliveries:
            place, applied = delivery[0][3], position.applied
            if self._advance(place):
                sequence, _, timestamp_ns, pending = place
                if not pending:
                    self._last = sequence, timestamp_ns
                if sequence > applied:
                    new.append(delivery)
        self._applier.apply_all(new)

    def deliver_part(self, part: Sequence[Message], last: Place) -> None:
        """Take more new sets of the batch that waits. They all have successors. The last one's place stands for all."""
        if self._advance(last, len(part)):
            self._applier.batch += part

    def deliver_barrier(self, subject: bytes, token: int, delivery: Place) -> None:
        """Take the delivery of a barrier. Call `release` after the last one of a read."""
        self.heard()
        sequence, applied = delivery[0], self.position.applied
        if self._advance(delivery):
            self._take_barrier(subject, token, sequence, sequence > applied)

    def _advance(self, place: Place, count: int = 1) -> bool:
        """Advance to a delivery. Return False, and follow the stream again, if deliveries before it were lost."""
        sequence, consumer_sequence, timestamp_ns, pending = place
        if not pending:
            self.clock.note(timestamp_ns)
        if self.position.advance(sequence, consumer_sequence, pending, count):
            return True
        self._outside.follow_again("deliveries were lost")
        return False

    def _take_barrier(self, subject: bytes, token: int, sequence: int, is_new: bool) -> None:
        if is_new and self._applier.batch:  # a barrier that is delivered again ends no later batch
            self._applier.end_batch()
        if subject == self._barrier_subject:
            self._barrier_delivered_s = self.heard_s
            if not self.publications.deliver_barrier(token, sequence, self.heard_s):
                self._mending = None
                self.mend()

    def mend(self) -> None:
        """Publish a barrier if only a barrier can make the position whole, unless one is on its way."""
        position = self.position
        if not (position.is_whole or position.trusts_pending) and (self._mending is None or self._mending.done()):
            self._mending = self.barrier()

    def release(self) -> None:
        """Answer what the position has passed, or try to make it whole."""
        if not self.position.is_whole:
            self.mend()
        elif not self._applier.batch:
            self.publications.release()
            if self._increments.ready:
                self.flush_soon()

    def has_passed(self, sequence: int) -> bool:
        """Return True if the change with this sequence and all before it are applied."""
        return self.position.has_passed(sequence)

    def _on_reused(self) -> None:
        self.position.tear()
        self._outside.read_again("the stream gave a sequence that it had used before: it was created again or cut")

    # To the stream.

    def _begin(self) -> float:
        """Let `flush` be called. Return the time of this turn, which is that of all changes published in it."""
        self.flush_soon()
        return self._turn_s

    def publish_one(
        self, message: Outgoing, reservation: Reservation | None, change: Change | None = None
    ) -> Publication:
        """Publish a change. The publication is the answer.

        :param change: what the message does, if it can be applied before it is delivered
        """
        publication = Publication(reservation, change)
        self.publish_as(message, publication)
        return publication

    def publish_value(
        self, subject: bytes, value: bytes, reservation: Reservation | None, change: Change
    ) -> Publication:
        """Publish a change that needs no headers, as `publish_one` does. For speed, everything is inlined."""
        publication = Publication(reservation, change)
        if not self._is_due:
            self.flush_soon()
        numbers = b"%d %d\r\n" % (self.publications.add(publication, self._turn_s), len(value))
        self._out += (self._before_subject, subject, self._after_subject, numbers, value, b"\r\n")
        self._unwritten.append(publication)
        return publication

    def publish_run(self, run: SetRun, subjects: Sequence[bytes]) -> None:
        """Publish the sets of a run, whose values have the same size. The run is told of their ends."""
        if not self._is_due:
            self.flush_soon()
        self.publications.add_run(run, self._turn_s)
        size = b" %d\r\n" % len(run.values[0])
        parts = [self._before_subject, b"", self._after_subject, b"", size, b"", b"\r\n"] * len(subjects)
        parts[1::7], parts[3::7], parts[5::7] = subjects, run.numbers, run.values
        self._out += parts
        self._unwritten.append(run)

    def publish_batch(self, messages: Sequence[Outgoing], reservation: Reservation | None) -> Publication:
        """Publish messages that are stored together or not at all. The publication is the answer."""
        return self._batches.publish(messages, Publication(reservation))

    def publish_together(self, messages: Sequence[Outgoing], publication: Publication) -> None:
        """Publish the messages of a batch, whose end `publication` is told."""
        token = self.publications.add(publication, self._begin())
        for message in messages:
            self._put(message, token)
        self._unwritten.append(publication)

    def _put(self, message: Outgoing, token: int) -> None:
        self._out.append(message.frame(self._to_domain, b"%b%d" % (self._reply, token)))

    def publish_all(self, messages: Sequence[Outgoing], reservation: Reservation | None, is_atomic: bool) -> Any:
        """Publish several messages, and return the answer, which comes when all are applied.

        :param is_atomic: True to store all or none; False to store as many as possible
        """
        if len(messages) == 1:
            return self.publish_one(messages[0], reservation)
        if is_atomic:
            return self.publish_batch(messages, reservation)
        answers = PartialAnswers(len(messages), reservation)
        for message in messages:
            self.publish_one(message, None).add_done_callback(answers.end_one)
        return answers

    def delete_message(self, subject: bytes) -> Outgoing:
        """Return the message that deletes a key."""
        return Outgoing(subject, b"", self.layout.delete_headers)

    def update(
        self, subject: bytes, handle: Bucket, key: bytes, step: Step, check: Callable[[Entry | None], object]
    ) -> Promise:
        """Change an entry, depending on what is stored. Return the answer.

        :param step: returns the new entry and the answer
        :param check: raises StoreError if the new entry exceeds a limit of the caller
        """
        answer = Promise()
        ends_s = self._outside.now_s() + self.timeout_s
        self._increments.add(subject, handle, key, Increment(step, check, answer, ends_s))
        return answer

    def create(self, handle: Bucket, messages: Mapping[bytes, Outgoing], reserve: Callable[[], Reservation]) -> Promise:
        """Store entries together if all their keys are missing. The answer is True if they were stored."""
        return Creation(self, self._sequences, handle, messages, reserve, self.now_s() + self.timeout_s)

    def publish_entry(
        self, subject: bytes, entry: Entry | None, sequence: int, publication: Publication, keeps: bool
    ) -> None:
        """Publish a key's new entry, or its delete, if the sequence of its last message is `sequence`."""
        message = self.delete_message(subject) if entry is None else Outgoing.of(subject, entry, self.clock(), keeps)
        self.publish_as(after_sequence(message, sequence), publication)

    def publish_delete(self, subject: bytes, sequence: int, publication: Publication) -> None:
        """Publish the delete of a key if the sequence of its last message is `sequence`."""
        self.publish_as(after_sequence(self.delete_message(subject), sequence), publication)

    def publish_as(self, message: Outgoing, publication: Publication) -> None:
        """Publish a message whose end `publication` is told."""
        self._put(message, self.publications.add(publication, self._begin()))
        self._unwritten.append(publication)

    def now_s(self) -> float:
        """Return the time that limits waits."""
        return self._outside.now_s()

    def barrier(self) -> Barrier:
        """Return an answer that comes once all changes that are stored by now are applied here."""
        publication = self._barrier
        if publication is None:
            publication = self._barrier = Barrier(self)
            self.flush_soon()
        return publication

    def after_barrier(self, act: Callable[[Exception | None], None]) -> None:
        """Call `act` with None once everything that is stored now has been applied, or with an error."""

        def end(barrier: Promise) -> None:
            try:
                barrier.result()
            except StoreError as error:
                act(error)
            else:
                act(None)

        self.barrier().add_done_callback(end)

    def call_later(self, delay_s: float, act: Callable[[], None]) -> None:
        """Call `act` once, after the delay. With a delay of 0, call it as `Outside.call_soon` does."""
        if delay_s:
            self._outside.call_later(delay_s, act)
        else:
            self._outside.call_soon(act)

    def report_deletes(self, deletes: Deletes | None) -> None:
        """Tell `deletes` of each delete that is applied from now on."""
        self._applier.deletes = deletes

    def flush_soon(self, delay_s: float = 0.0) -> None:
        """Call `flush` as `Outside.call_soon` does, or after a delay."""
        if delay_s:
            self._outside.call_later(delay_s, self.flush)
        elif not self._is_due:
            self._is_due = True
            self._turn_s = self._outside.now_s()
            self._outside.call_soon(self.flush)

    def flush(self) -> None:
        """Publish the sums of the counters that can go on, and a barrier if reads wait. Write all frames."""
        self._is_due = False
        if self._out:  # a barrier alone needs no limit, and often has a turn of its own
            self.look_up_limit()
        if self._increments.counters:
            self._increments.publish_ready(self._outside.now_s())
        barrier, self._barrier = self._barrier, None
        if barrier is not None:
            now_s = self._outside.now_s()
            token = self.publications.add_barrier(barrier, now_s)
            text, block = b"%d" % token, self.layout.barrier_block
            # A barrier's delivery shows that it is stored. While deliveries fail to come, ask for an answer as well,
            # because the server's answer may say why.
            reply = b"" if now_s - self._barrier_delivered_s < PROVEN_S else self._reply + text + b" "
            head, size = self._before_barrier + reply, len(block)
            self._out.append(b"%b%d %d\r\n%b%b\r\n" % (head, size, size + len(text), block, text))
            self._unwritten.append(barrier)
        out, self._out = self._out, []
        unwritten, self._unwritten = self._unwritten, []
        if out and not self._outside.write(b"".join(out)):
            out.clear()  # the traceback of the error may keep this frame alive
            error = NotStoredError("NATS is not connected, or does not read: nothing was sent")
            for publication in unwritten:
                self.publications.fail(publication, error)

    # Time.

    def tick(self) -> None:
        """Give up what has waited for too long. Call this method a few times in a second."""
        now_s = self._outside.now_s()
        self.publications.expire(now_s - self.timeout_s, self.timeout_s)
        self._batches.expire(now_s, self.timeout_s)
        self._increments.expire(now_s)
        if self.publications.has_lost_barriers(now_s - PROVEN_S):
            self.barrier()  # its delivery answers theirs
        self.mend()

    def give_up(self) -> None:
        """Answer all calls that wait, because the instance stops."""
        self._batches.expire(float("inf"), self.timeout_s)
        self.publications.expire(float("inf"), self.timeout_s)
        self._increments.expire(float("inf"))

    def restart(self) -> None:
        """Begin with an empty engine, because the whole stream is read again."""
        self.position.applied = 0
        self._last = (0, 0)
        self.position.tear()
        self.publications.restart()
        self._increments.restart()
        self._sequences.clear()
        self._applier.forget()
        self.counts.resynchronisations += 1
