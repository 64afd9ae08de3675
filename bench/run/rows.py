"""The results of a run: a row for each case, subject and round, and the failures of peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["REFERENCE", "Failure", "Row"]

#: The subject that other subjects are compared with: the bare responder.
REFERENCE = "bare"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The figures of one subject in one case and round.

    :ivar fields: the fields of the case
    :ivar latencies: an encoded histogram
    """

    scenario: str
    case: str
    fields: Mapping[str, float | str]
    subject: str
    round: int
    figures: Mapping[str, float]
    latencies: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A case in which a peer failed. Later rounds skip this case for the peer, or all its cases if `is_gone`."""

    subject: str
    case: str
    round: int
    why: str
    is_gone: bool

    def covers(self, subject: str, case: str) -> bool:
        """Return True if this failure makes a run skip a case for a subject."""
        return subject == self.subject and (self.is_gone or case == self.case)

    @property
    def text(self) -> str:
        """The failure as one line of text."""
        left_out = "; all its cases are skipped" if self.is_gone else ""
        return f"{self.subject}: {self.case}, round {self.round + 1}: {self.why}{left_out}"
