"""Sets that were published together, and mostly are stored, applied and answered together.

    SetRun   numbers 7 to 12   [ 7  8  9 | 10  11  12 ]
                                 answered   unacknowledged

A run is one record for many sets. It is for the usual case: the acknowledgements come in order, each with the sequence
after the previous one, and the position is whole and follows. In any other case, and for errors and time limits, each
set that is not answered gets a `Publication` of its own, and the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from keyvalue_engine import Bucket
from keyvalue_replica.promise import Promise

__all__ = ["SetRun"]


class Parter(Protocol):
    """The publications, of which the run is a part."""

    def part(self, run: SetRun, /) -> object: ...


class SetRun:
    """Sets of one bucket that were published together and are not answered. Their order is that of their numbers.

    :ivar handle: applies the sets
    :ivar numbers: the numbers in their reply subjects, as text
    :ivar token: the first number
    :ivar answered: how many of them are answered
    :ivar began_s: when they were published
    :ivar after: the largest sequence that the stream was known to have before
    """

    __slots__ = (
        *("_part", "_publications", "_take"),
        *("after", "answered", "began_s", "handle", "keys", "numbers", "token", "values"),
    )

    # Set by `Publications.add_run`.
    began_s: float
    after: int
    token: int
    numbers: tuple[bytes, ...]

    def __init__(self, publications: Parter, handle: Bucket, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
        self.handle = handle
        self.keys = keys
        self.values = values
        self.answered = 0
        self._publications = publications
        self._take: Callable[[int], object] | None = None
        self._part: Callable[[Sequence[Promise]], object] | None = None

    def __len__(self) -> int:
        """Return the number of sets that are not answered."""
        return len(self.keys) - self.answered

    def begin(self, take: Callable[[int], object], part: Callable[[Sequence[Promise]], object]) -> None:
        """Set the functions that are told of answers.

        :param take: called with the number of the next sets that have succeeded
        :param part: called with a `Publication` for each set that is not answered, when the run ends before they are
        """
        self._take, self._part = take, part

    def part(self) -> None:
        """Give each set that is not answered a publication of its own."""
        self._publications.part(self)

    def succeed(self, number: int) -> None:
        """Answer the next sets."""
        self.answered += number
        take = self._take
        if not len(self):
            self._take = self._part = None  # each end holds the other one
        if take is not None:
            take(number)

    def end(self, publications: Sequence[Promise]) -> None:
        """End the run, because the sets that are not answered have publications of their own."""
        part, self._take, self._part = self._part, None, None
        if part is not None:
            part(publications)
