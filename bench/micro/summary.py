"""Tables for the benchmarks' `extra_info`, which pytest-benchmark does not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Figures", "tables"]


@dataclass(frozen=True)
class Figures:
    """The extra figures of one benchmark. The name of each figure includes its unit."""

    group: str
    name: str
    figures: Mapping[str, float]


def tables(found: Sequence[Figures]) -> Iterator[str]:
    """Yield the lines of a table for each group. Benchmarks without figures are left out."""
    groups: dict[str, list[Figures]] = {}
    for figures in found:
        if figures.figures:
            groups.setdefault(figures.group, []).append(figures)
    for group, rows in sorted(groups.items()):
        columns = list(dict.fromkeys(column for row in rows for column in row.figures))
        cells = [[group, *columns]]
        cells += [[row.name, *(text(row.figures.get(column)) for column in columns)] for row in rows]
        name_width, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
        yield ""
        for name, *others in cells:
            right = (cell.rjust(width) for cell, width in zip(others, widths, strict=True))
            yield "   ".join([name.ljust(name_width), *right]).rstrip()


def text(figure: float | None) -> str:
    return "" if figure is None else f"{figure:,}" if isinstance(figure, int) else f"{figure:,.2f}"
