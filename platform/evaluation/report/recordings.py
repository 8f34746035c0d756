"""Recorded first episodes of an evaluation: their frames, their rows and how they ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.plan import EvaluationJob


def frames_of(job: EvaluationJob) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 of a job's recorded episode."""
    from PIL import Image, ImageSequence

    with Image.open(cache.animation_path(job)) as animation:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]


def first_episode(
    job: EvaluationJob, table: pl.DataFrame, under_test: str | None = None
) -> dict[str, Any]:
    """The row of a job's recorded (first) episode, or of another encoder's; {} without one.

    Args:
        job: that was recorded.
        table: a row per episode.
        under_test: name of the other encoder.
    """
    rows = table.filter(
        pl.col("arm") == (under_test or job.under_test),
        pl.col("proprioception") == job.policy.use_proprioception,
        pl.col("task") == job.task,
        pl.col("factor") == job.condition.factor,
        pl.col("level") == job.condition.level,
        pl.col("episode") == 0,
    ).sort("seed")
    if "demonstrations" in rows.columns:
        rows = rows.sort("demonstrations", descending=True, maintain_order=True)
    return rows.row(0, named=True) if len(rows) else {}


def ended(job: EvaluationJob, table: pl.DataFrame) -> str:
    """How the recorded episode of a job ended."""
    row = first_episode(job, table)
    if row["success_ever"]:
        return "solved" if row["success_last"] else "solved, and lost again"
    return f"not solved in {row['steps']} steps"
