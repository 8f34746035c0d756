"""What every evaluation suite returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from dynaflip.platform.evaluation.report.tables import Section


@dataclass(frozen=True)
class Outcome:
    """A finished evaluation: what is printed, logged and compared."""

    table: str  # plain text
    run_name: str
    run_id: str  # MLflow's
    notes: list[str] = field(default_factory=list)  # a line each
    metrics: dict[str, float] = field(default_factory=dict)
    report: Path | None = None  # HTML
    episodes: pl.DataFrame | None = None  # a row per episode, where the suite has any
    sections: list[Section] = field(default_factory=list)  # of the table, where they are known
    results: Path | None = None  # Parquet, a row per encoder, task, factor, level, seed and metric
    verdict: list[str] = field(default_factory=list)  # sentences, the most important first

    def rows(self) -> pl.DataFrame:
        """The episodes of a suite that has them."""
        assert self.episodes is not None, "this suite has no episodes"
        return self.episodes
