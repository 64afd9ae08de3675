"""A run, and the file run.json that stores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.run.rows import Row

__all__ = ["RUN_FILE", "Run"]

RUN_FILE = "run.json"
#: Another version of this program may write another format.
FORMAT = 2


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
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read a run from a file.

        :raises ValueError: the file does not hold a run
        :raises OSError: the file cannot be read
        """
        try:
            fields = json.loads(path.read_text())
            if fields["format"] != FORMAT:
                raise ValueError(f"found format {fields['format']}, allowed {FORMAT}")
            return cls(fields["about"], [Row(**row) for row in fields["rows"]], fields["void"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a run of this benchmark: {error!r}") from None
