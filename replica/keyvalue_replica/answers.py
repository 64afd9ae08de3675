"""The answer that many reads share, and the answer to many messages."""

from __future__ import annotations

from typing import Protocol

from keyvalue_replica.errors import UnknownOutcomeError
from keyvalue_replica.promise import Promise
from keyvalue_replica.publications import Publication
from keyvalue_replica.reservations import Reservation

__all__ = ["Barrier", "PartialAnswers"]


class Passage(Protocol):
    """Someone who must know which barrier passes."""

    passing: Barrier | None


class Barrier(Publication):
    """The answer to the reads that wait for a barrier. While its callbacks run, `passage.passing` is the barrier.

    :ivar again: kept for those who share the barrier
    """

    again: object = None

    def __init__(self, passage: Passage) -> None:
        Publication.__init__(self, None, True)
        self._passage = passage

    def _end(self) -> None:
        self._passage.passing = self
        try:
            Publication._end(self)
        finally:
            self._passage.passing = None


class PartialAnswers(Promise):
    """The answer to several messages: the first error, or None if all were stored."""

    def __init__(self, left: int, reservation: Reservation | None) -> None:
        super().__init__()
        self._left = left
        self._reservation = reservation
        self._failed: Exception | None = None

    def end_one(self, publication: Publication) -> None:
        """Count a message that has ended."""
        try:
            publication.result()
        except Exception as error:
            text = "some of the keys may have been changed (batch is pipelined)"
            self._failed = self._failed or UnknownOutcomeError(f"{text}: {error}")
        self._left -= 1
        if self._left:
            return
        if self._reservation is not None:
            self._reservation.release()
        if self.done():
            return
        if self._failed is None:
            self.set_result(None)
        else:
            self.set_exception(self._failed)
