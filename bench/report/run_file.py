"""A run, and the file run.json that stores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.report.shapes import RUN, faults
from bench.run.rows import Row

__all__ = ["RUN_FILE", "Run"]

RUN_FILE = "run.json"
FORMAT = 1


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
        rows = [asdict(row) for row in self.rows]
        path.write_text(json.dumps({"format": FORMAT, "about": self.about, "void": self.void, "rows": rows}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run from a file.

        :raises ValueError: the file does not hold a run
        :raises OSError: the file cannot be read
        """
        try:
            fields = json.loads(path.read_text())
            if isinstance(fields, dict) and fields.get("format") != FORMAT:
                raise ValueError(f"found format {fields.get('format')}, allowed {FORMAT}")
            for fault in faults(fields, RUN):
                raise ValueError(fault)
            return cls(fields["about"], [Row(**row) for row in fields["rows"]], fields["void"])
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a run of this benchmark: {error}") from None
