"""Tables on a terminal, by rich; plain aligned text where the output is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynaflip.platform.evaluation.report.tables import Section

if TYPE_CHECKING:
    from rich.console import Console

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
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for section in sections:
        table = Table(title=section.title, title_justify="left", title_style="bold", box=box.SIMPLE)
        for number, column in enumerate(section.columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        console.print(table)
