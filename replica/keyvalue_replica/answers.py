"""The answer that many reads share, and the answer to many messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from keyvalue_replica.errors import UnknownOutcomeError
from keyvalue_replica.promise import Promise
from keyvalue_replica.publications import Publication
from keyvalue_replica.reservations import Reservation

__all__ = ["Barrier", "PartialAnswers", "Removals"]


class Passage(Protocol):
    """Someone who must know which barrier passes."""

    passing: Barrier | None


class Barrier(Publication):
    """The answer to the reads that wait for a barrier. While its callbacks run, `passage.passing` is the barrier.

    :ivar again: kept for those who share the barrier
    """

    again: object = None
    is_barrier = _is_shared = True

    def __init__(self, passage: Passage) -> None:
        Publication.__init__(self)
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


class Removals(Promise):
    """The answer to removals of several keys: the first error, or the number of keys that existed.

    :param removals: the answers to the single removals; each is the entry before and after
    """

    def __init__(self, removals: Sequence[Promise]) -> None:
        super().__init__()
        self._left = len(removals)
        self._removed = 0
        self._failed: Exception | None = None
        for removal in removals:
            removal.add_done_callback(self._end_one)

    def _end_one(self, removal: Promise) -> None:
        try:
            before, _ = removal.result()
            self._removed += before is not None
        except Exception as error:
            self._failed = self._failed or error
        self._left -= 1
        if self._left or self.done():
            return
        if self._failed is None:
            self.set_result(self._removed)
        else:
            self.set_exception(self._failed)
