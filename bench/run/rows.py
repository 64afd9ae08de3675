"""The results of a run: a row for each case, subject and round, and the failures of peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["REFERENCE", "Failure", "Row"]

#: The name of the bare responder, to which all other subjects are compared.
REFERENCE = "bare"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The figures of one subject in one case and round.

    :ivar fields: the parameters of the case, by name
    :ivar figures: the measured figures, by name (see `bench.report.figures.FIGURES`)
    :ivar latencies: an encoded histogram of the latencies, or empty
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
    """A case in which a peer failed. The remaining rounds skip this case, or all the peer's cases if `is_gone`."""

    subject: str
    case: str
    round: int
    why: str
    is_gone: bool

    def covers(self, subject: str, case: str) -> bool:
        """Return True if the run must skip this case of this subject because of the failure."""
        return subject == self.subject and (self.is_gone or case == self.case)

    @property
    def text(self) -> str:
        """The failure as one line of text."""
        left_out = "; all its cases are skipped" if self.is_gone else ""
        return f"{self.subject}: {self.case}, round {self.round + 1}: {self.why}{left_out}"
