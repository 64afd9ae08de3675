"""Several entries that are stored if all their keys are missing: an atomic batch with a condition for each key.

    barrier ──> look ──┬─ a key exists ──────────────────────────────────────> False
                       └─ batch: each key's last sequence must be the known one ──┬─ stored ──> True
                  └──────── probes of all keys <──────────── refused ─────────────┘

The server names the last sequence of one key only, and does not say of which. So a refused batch is followed by a
*probe* of each key: a message with a condition that never holds. The server stores nothing, and names the sequence.

The batch must not be published while a known sequence is not applied, because the key may exist since then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from keyvalue_engine import Bucket, StoreError
from keyvalue_replica.answers import Several
from keyvalue_replica.errors import NotStoredError, UnknownOutcomeError
from keyvalue_replica.increments import LATE, RETRY_S
from keyvalue_replica.outgoing import Outgoing, after_sequence
from keyvalue_replica.promise import Promise
from keyvalue_replica.publications import Publication
from keyvalue_replica.reservations import Reservation
from keyvalue_replica.sequences import Sequences

__all__ = ["Creation", "PipelinedCreation"]

#: No message has this sequence.
NEVER = 2**62


class BatchPublisher(Protocol):
    """What a creation needs from the core."""

    def now_s(self) -> float: ...

    def has_passed(self, sequence: int, /) -> bool: ...

    def after_barrier(self, act: Callable[[Exception | None], None], /) -> None: ...

    def call_later(self, delay_s: float, act: Callable[[], None], /) -> None: ...

    def publish_batch(self, messages: Sequence[Outgoing], reservation: Reservation | None, /) -> Publication: ...

    def publish_as(self, message: Outgoing, publication: Publication, /) -> None: ...


class Creation(Promise):
    """The answer: True if all entries were stored, False if a key exists.

    :param messages: the messages that store the entries, by key
    :param reserve: reserves the room for the entries; may raise StoreError
    :param ends_s: no batch is published later
    """

    def __init__(
        self,
        publisher: BatchPublisher,
        sequences: Sequences,
        handle: Bucket,
        messages: Mapping[bytes, Outgoing],
        reserve: Callable[[], Reservation],
        ends_s: float,
    ) -> None:
        super().__init__()
        self._publisher = publisher
        self._sequences = sequences
        self._handle = handle
        self._messages = messages
        self._reserve = reserve
        self._ends_s = ends_s
        self._probes = 0  # the number of probes without an answer
        self._batch: Publication | None = None
        for message in messages.values():
            sequences.watch(message.subject)
        publisher.after_barrier(self._look)

    def _look(self, error: Exception | None) -> None:
        """Publish the batch if no key exists."""
        if self.done():
            return
        if error is None and self._publisher.now_s() >= self._ends_s:
            error = NotStoredError(LATE)
        if error is not None:
            self.set_exception(error)
        elif any(map(self._handle.exists, self._messages)):
            self.set_result(False)
        else:
            self._publish()

    def _publish(self) -> None:
        known = [max(self._sequences.watch(message.subject), 0) for message in self._messages.values()]
        if not self._publisher.has_passed(max(known)):
            self._publisher.after_barrier(self._look)
            return
        try:
            reservation = self._reserve()
        except StoreError as error:
            self.set_exception(error)
            return
        batch = [after_sequence(*pair) for pair in zip(self._messages.values(), known, strict=True)]
        publication = self._batch = self._publisher.publish_batch(batch, reservation)
        publication.answers = [(self, True)]
        publication.owner = self

    def acknowledged(self, sequence: int) -> None:
        """Do nothing. The answer comes once the batch is applied."""

    def failed(self) -> None:
        """Do nothing. The answer is the error."""

    def overtaken(self, last_sequence: int | None) -> None:
        """Ask for the sequences of all keys, because one of them was not the known one."""
        self._probes = len(self._messages)
        assert self._batch is not None
        self._batch.set_result(None)  # it is not in flight any more
        for message in self._messages.values():
            probe = Publication()
            probe.is_barrier = True  # it stores nothing
            probe.answers = [(self, None)]
            probe.owner = Probe(self, message.subject, self._sequences.get(message.subject))
            self._publisher.publish_as(after_sequence(Outgoing(message.subject), NEVER), probe)

    def learn(self, subject: bytes, last_sequence: int | None, expected: int) -> None:
        """Take the answer to a probe. After the last one, look again."""
        if last_sequence is not None:
            self._sequences.learn(subject, last_sequence, expected)
        self._probes -= 1
        if not self._probes:
            self._publisher.call_later(RETRY_S, lambda: self._publisher.after_barrier(self._look))


class Probe:
    """The owner of a probe."""

    def __init__(self, creation: Creation, subject: bytes, expected: int) -> None:
        self._creation = creation
        self._subject = subject
        self._expected = expected

    def acknowledged(self, sequence: int) -> None:
        """A probe is never stored."""
        raise AssertionError(sequence)

    def overtaken(self, last_sequence: int | None) -> None:
        """Pass on the last sequence of the key."""
        self._creation.learn(self._subject, last_sequence, self._expected)

    def failed(self) -> None:
        """Do nothing. The answer is the error."""


class PipelinedCreation(Several):
    """The answer to entries that are each stored on its own, if no key existed at the beginning.

    :param update: stores an entry if its key is missing; its answer is True if it was stored
    """

    def __init__(
        self,
        publisher: BatchPublisher,
        handle: Bucket,
        entries: Mapping[bytes, bytes],
        update: Callable[[bytes], Promise],
    ) -> None:
        super().__init__(len(entries))
        self._handle = handle
        self._keys = list(entries)
        self._update = update
        self._stored = 0
        publisher.after_barrier(self._begin)

    def _begin(self, error: Exception | None) -> None:
        if self.done():
            return
        if error is not None:
            self.set_exception(error)
        elif any(map(self._handle.exists, self._keys)):
            self.set_result(False)
        else:
            for key in self._keys:
                self._update(key).add_done_callback(self.end_one)

    def _take(self, result: bool) -> None:
        self._stored += result

    def _outcome(self, failed: Exception | None) -> object:
        if failed is None and self._stored in (0, len(self._keys)):
            return self._stored > 0
        why = failed or "another call has stored some of them meanwhile"
        return UnknownOutcomeError(f"some of the keys may have been stored (batch is pipelined): {why}")
