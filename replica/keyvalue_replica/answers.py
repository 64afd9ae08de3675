"""The answer that many reads share, and the answers to several others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from keyvalue_replica.errors import UnknownOutcomeError
from keyvalue_replica.promise import Promise
from keyvalue_replica.publications import Publication, answer_with
from keyvalue_replica.reservations import Reservation

__all__ = ["Barrier", "PartialAnswers", "Removals", "Several"]


class Passage(Protocol):
    """Someone who must know which barrier passes."""

    passing: Barrier | None


class Barrier(Publication):
    """The answer to the reads that wait for a barrier. While its callbacks run, `passage.passing` is the barrier.

    :ivar again: kept for those who share the barrier
    """

    __slots__ = ("_passage", "again")

    def __init__(self, passage: Passage) -> None:
        Publication.__init__(self)
        self.is_barrier = self._is_shared = True
        self.again: object = None
        self._passage = passage

    def _end(self) -> None:
        self._passage.passing = self
        try:
            Publication._end(self)
        finally:
            self._passage.passing = None


class Several(Promise):
    """The answer to several answers, each of which is passed to `end_one`."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left
        self._failed: Exception | None = None

    def end_one(self, answer: Promise) -> None:
        """Take an answer that has come."""
        try:
            self._take(answer.result())
        except Exception as error:
            self._failed = self._failed or error
        self._left -= 1
        if not self._left:
            outcome = self._outcome(self._failed)
            if not self.done():
                answer_with(self, outcome)

    def _take(self, result: Any) -> None:
        """Take the result of an answer."""

    def _outcome(self, failed: Exception | None) -> object:
        """Return the result or the error. `failed` is the first error of an answer."""
        raise NotImplementedError


class PartialAnswers(Several):
    """The answer to several messages: the first error, or None if all were stored."""

    def __init__(self, left: int, reservation: Reservation | None) -> None:
        super().__init__(left)
        self._reservation = reservation

    def _outcome(self, failed: Exception | None) -> object:
        if self._reservation is not None:
            self._reservation.release()
        if failed is None:
            return None
        return UnknownOutcomeError(f"some of the keys may have been changed (batch is pipelined): {failed}")


class Removals(Several):
    """The answer to removals of several keys: the first error, or the number of keys that existed.

    :param removals: the answers to the single removals; each is the entry before and after
    """

    def __init__(self, removals: Sequence[Promise]) -> None:
        super().__init__(len(removals))
        self._removed = 0
        for removal in removals:
            removal.add_done_callback(self.end_one)

    def _take(self, result: Any) -> None:
        before, _ = result
        self._removed += before is not None

    def _outcome(self, failed: Exception | None) -> object:
        return self._removed if failed is None else failed
