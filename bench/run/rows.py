"""What a run gives: a row for each case, subject and round, and the failures of peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["REFERENCE", "Failure", "Row"]

#: The subject that others are measured against: the bare responder.
REFERENCE = "bare"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one subject gave in one case, in one round.

    :ivar fields: of the case
    :ivar latencies: a histogram, encoded
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
    """A case in which a peer gave nothing, and which is left out for it from then on; if `is_gone`, all its cases are."""

    subject: str
    case: str
    round: int
    why: str
    is_gone: bool

    def covers(self, subject: str, case: str) -> bool:
        """Whether a case is left out for a subject."""
        return subject == self.subject and (self.is_gone or case == self.case)

    @property
    def text(self) -> str:
        """One line."""
        left_out = "; all its cases are left out" if self.is_gone else ""
        return f"{self.subject}: {self.case}, round {self.round + 1}: {self.why}{left_out}"
