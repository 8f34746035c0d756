"""Rows of the GPU check: what was measured, what it is compared with; as a table and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLUMNS = ("part", "case", "result", "compared with", "ratio", "MFU", "peak GB", "note")


@dataclass(frozen=True)
class Row:
    """One measurement of one part."""

    part: str
    case: str
    value: float | None = None
    unit: str = ""
    # Another measurement of the same run in the same unit, and what it is of.
    reference: float | None = None
    reference_name: str = ""
    # Model FLOP utilisation: FLOP/s as a share of the device's dense bfloat16 peak.
    mfu: float | None = None
    peak_gb: float | None = None  # most memory that torch had allocated on the device
    note: str = ""
    failed: bool = False

    @property
    def ratio(self) -> float | None:
        """The result divided by what it is compared with."""
        if self.value is None or not self.reference:
            return None
        return self.value / self.reference

    def as_json(self) -> dict[str, Any]:
        """The fields and the ratio as JSON values; what was not measured is left out."""
        fields = {**dataclasses.asdict(self), "ratio": self.ratio}
        return {name: value for name, value in fields.items() if value not in (None, "")}


def read_row(values: dict[str, Any]) -> Row:
    """The row of :meth:`Row.as_json`."""
    return Row(**{name: value for name, value in values.items() if name != "ratio"})


def table(rows: Sequence[Row]) -> str:
    """All rows as lines of aligned columns; columns that no row fills are left out."""
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    filled = [i for i in range(len(COLUMNS)) if any(line[i] for line in cells[1:])]
    widths = {i: max(len(line[i]) for line in cells) for i in filled}
    lines = ["  ".join(line[i].ljust(widths[i]) for i in filled).rstrip() for line in cells]
    rule = "  ".join("-" * widths[i] for i in filled)
    return "\n".join([lines[0], rule, *lines[1:]])


def number(value: float) -> str:
    """Three significant digits, thousands with a comma."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cells(row: Row) -> tuple[str, ...]:
    result = "FAILED" if row.failed else ""
    if row.value is not None:
        result = f"{number(row.value)} {row.unit}".strip()
    compared = ""
    if row.reference is not None:
        compared = f"{row.reference_name} {number(row.reference)}".strip()
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    mfu = "" if row.mfu is None else f"{100 * row.mfu:.0f} %"
    peak = "" if row.peak_gb is None else f"{row.peak_gb:.2f}"
    return row.part, row.case, result, compared, ratio, mfu, peak, row.note
