"""Tables on a terminal, by rich; plain aligned text where the output is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from dynaflip.platform.evaluation.report.tables import Section

if TYPE_CHECKING:
    from rich.console import Console

_PADDING = 2  # characters beside a column
_EDGES = 2
_STYLES = {"better": "green", "worse": "red"}


def show_sections(
    sections: Sequence[Section], text: str, *, console: Console | None = None
) -> None:
    """Print tables.

    Args:
        sections: empty where they are known as text alone.
        text: the same, plain.
        console: where to; standard output by default.
    """
    from rich.console import Console

    # Cells hold [low, high], which is no markup.
    console = console or Console(markup=False, highlight=False)
    if not console.is_terminal or not sections:
        print(f"\n{text}\n", file=console.file)
        return
    for section in sections:
        title = section.title
        for columns in _fitting(section, console.width):
            _print_columns(console, section, title, columns)
            title = ""


def _print_columns(console: Console, section: Section, title: str, columns: list[int]) -> None:
    """Print a table of some of a section's columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if title:
        console.print(Text(title, style="bold"))
    table = Table(box=box.SIMPLE)
    for number in columns:
        width = _width(section, number)
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(section.columns[number], justify=justify, min_width=width)
    for row in section.rows:
        table.add_row(*(Text(row[n], style=_STYLES.get(row[n], "")) for n in columns))
    console.print(table)


def _fitting(section: Section, width: int) -> list[list[int]]:
    """Columns in as few tables as fit the terminal, each with the first, which names the row."""
    tables: list[list[int]] = []
    used = width
    for number in range(1, len(section.columns)):
        needed = _width(section, number) + _PADDING
        if used + needed > width:
            tables.append([0])
            used = _width(section, 0) + _PADDING + _EDGES
        tables[-1].append(number)
        used += needed
    return tables or [[0]]


def _width(section: Section, number: int) -> int:
    """Characters that a column needs without a break in a cell; its head may break at blanks."""
    cells = [row[number] for row in section.rows]
    return max(len(word) for word in [*cells, *section.columns[number].split(), ""])
