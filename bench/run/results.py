"""The results of a run: a row for each case, subject and round, the failures of peers, and the file run.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["REFERENCE", "RUN_FILE", "Failure", "Row", "Run"]

#: The name of the bare responder, to which all other subjects are compared.
REFERENCE = "bare"
RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The figures of one subject in one case and round.

    :ivar fields: the parameters of the case, by name
    :ivar figures: the measured figures, by name (see `bench.report.figures.FIGURES`)
    """

    scenario: str
    case: str
    fields: Mapping[str, float | str]
    subject: str
    round: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Failure:
    """A case in which a peer failed. The remaining rounds skip this case, or all the peer's cases if `is_gone`."""

    subject: str
    case: str
    round: int
    why: str
    is_gone: bool

    @property
    def text(self) -> str:
        """The failure as one line of text."""
        left_out = "; all its cases are skipped" if self.is_gone else ""
        return f"{self.subject}: {self.case}, round {self.round + 1}: {self.why}{left_out}"


@dataclass(frozen=True, slots=True)
class Run:
    """The rows of one run, and the conditions under which they were measured.

    :ivar about: the time, machine, versions and settings of the run
    :ivar void: the reasons why the figures are unusable; empty if they are usable
    """

    about: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    void: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the run as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run from a file. Another version of this program may have written other fields.

        :raises ValueError, OSError: the file does not hold a run, or cannot be read
        """
        try:
            fields = json.loads(path.read_text())
            return cls(fields["about"], [Row(**row) for row in fields["rows"]], fields["void"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a run of this benchmark: {error!r}") from None
