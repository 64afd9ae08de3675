"""A table of texts and its two renderers: for a terminal of `WIDTH` columns, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import NamedTuple

__all__ = ["WIDTH", "ReportTable"]

WIDTH = 100
#: On a terminal, a longer name in the first column is wrapped if the other columns need the room.
NAME_WIDTH_MIN = 40


class ReportTable(NamedTuple):
    """A table whose first column names the rows.

    :ivar is_grouped: True if successive rows have the same name; a terminal then shows it once, on a line above them
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_grouped: bool = False

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, *self.rows)]
        return "\n".join((lines[0], "|---|---|" + "---:|" * (len(self.columns) - 2), *lines[1:]))

    def terminal(self) -> list[str]:
        """Return the table as lines. Columns at the end that do not fit are left out."""
        groups = ["", *(row[0] if self.is_grouped else "" for row in self.rows)]
        indent = "  " * self.is_grouped
        names, *columns = zip(*(row[self.is_grouped :] for row in (self.columns, *self.rows)), strict=True)
        widths = [max(map(len, column)) for column in columns]
        longest = max(map(len, names))
        while (room := WIDTH - len(indent) - sum(widths) - 2 * len(widths)) < min(longest, NAME_WIDTH_MIN):
            widths.pop()
        room = min(room, longest)
        lines = []
        for group, before, name, *cells in zip(groups, ["", *groups], names, *columns, strict=False):
            first, *rest = wrap(name, room) or [""]
            shown = [cell.rjust(width) for cell, width in zip(cells, widths, strict=False)]
            lines += wrap(group, WIDTH) * (group != before)
            lines += [f"{indent}{'  '.join((first.ljust(room), *shown))}".rstrip(), *(f"  {line}" for line in rest)]
        return lines
