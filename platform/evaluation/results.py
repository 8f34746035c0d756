"""Episodes as a table, success as arrays, and the comparisons that the report shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from dynaflip.errors import UserError
from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.intervals.hierarchical_bootstrap import Rate, paired_success, success_rate
from dynaflip.eval.perturbations import seen_factors, unseen_factors
from dynaflip.platform.evaluation.plan import Cell
from dynaflip.platform.evaluation.worker import CellResult

MEASURES = ("success_ever", "success_last")
IN_DISTRIBUTION = "in distribution"
OUT_OF_DISTRIBUTION = "out of distribution"
# Kinds of factor, as named in tables; a group is a set of conditions.
SEEN, UNSEEN, TOGETHER = "kinds seen in pretraining", "kinds never seen", "all at once"


def episode_table(cells: list[Cell], results: list[CellResult]) -> pl.DataFrame:
    """A row an episode; what ``compare`` and other tools read."""
    rows: list[dict[str, Any]] = []
    for cell, result in zip(cells, results, strict=True):
        for index, start in enumerate(cell.starts):
            rows.append(
                {
                    "arm": cell.arm,
                    "encoder": cell.policy.encoder.name,
                    "encoder_digest": cell.policy.encoder.digest,
                    "proprioception": cell.policy.use_proprioception,
                    "seed": cell.policy.seed,
                    "task": cell.task,
                    "factor": cell.condition.factor,
                    "level": cell.condition.level,
                    "episode": index,
                    "layout_seed": start.layout_seed,
                    "success_ever": result.success_ever[index],
                    "success_last": result.success_last[index],
                    "steps": result.steps[index],
                }
            )
    return pl.DataFrame(rows)


@dataclass(frozen=True)
class Successes:
    """One arm's successes: ``values`` (S, T, C, E) with the names of T and C."""

    values: np.ndarray
    tasks: tuple[str, ...]
    conditions: tuple[tuple[str, int], ...]  # (factor, level)

    def of_conditions(self, chosen: list[tuple[str, int]]) -> np.ndarray:
        """(S, T, C', E)."""
        return self.values[:, :, [self.conditions.index(c) for c in chosen]]

    def of_tasks(self, chosen: list[str]) -> Successes:
        """Some tasks alone."""
        places = [self.tasks.index(task) for task in chosen]
        return Successes(self.values[:, places], tuple(chosen), self.conditions)


def successes(
    table: pl.DataFrame, arm: str, *, proprioception: bool, measure: str = "success_ever"
) -> Successes:
    """An arm's successes as an array.

    Raises:
        UserError: a cell is missing or of another number of episodes.
    """
    rows = table.filter((pl.col("arm") == arm) & (pl.col("proprioception") == proprioception))
    keys = ["seed", "task", "factor", "level", "episode"]
    rows = rows.sort(keys)
    tasks = tuple(rows["task"].unique().sort())
    conditions = tuple(rows.select("factor", "level").unique().sort("factor", "level").iter_rows())
    shape = (rows["seed"].n_unique(), len(tasks), len(conditions), rows["episode"].n_unique())
    if int(np.prod(shape)) != len(rows) or rows.select(keys).is_duplicated().any():
        raise UserError(
            f"evaluation: {arm} has {len(rows)} episodes, not the {' x '.join(map(str, shape))} "
            f"of its seeds, tasks, conditions and episodes"
        )
    return Successes(rows[measure].to_numpy().reshape(shape).astype(float), tasks, conditions)


def groups(conditions: tuple[tuple[str, int], ...]) -> dict[str, list[tuple[str, int]]]:
    """Conditions by kind, in the table's order; empty groups are left out.

    Out of distribution is the mean over single factors; all at once stands beside it.
    """
    single = [c for c in conditions if c[0] not in (UNPERTURBED, ALL_FACTORS)]
    found = {
        IN_DISTRIBUTION: [c for c in conditions if c[0] == UNPERTURBED],
        OUT_OF_DISTRIBUTION: single,
        SEEN: [c for c in single if c[0] in seen_factors()],
        UNSEEN: [c for c in single if c[0] in unseen_factors()],
        TOGETHER: [c for c in conditions if c[0] == ALL_FACTORS],
    }
    return {name: chosen for name, chosen in found.items() if chosen}


@dataclass(frozen=True)
class Comparison:
    """An arm beside the reference, on some conditions and tasks."""

    rate: Rate
    difference: Rate | None  # reference − arm, paired; None for the reference itself


def compare_arms(
    found: dict[str, Successes],
    reference: str,
    conditions: list[tuple[str, int]],
    *,
    resample_tasks: bool = False,
) -> dict[str, Comparison]:
    """Success of every arm on some conditions, and how much better the reference is.

    Args:
        found: arm → its successes, over the same tasks and episodes.
        reference: the arm whose gain over the others is asked for.
        conditions: of :attr:`Successes.conditions`.
        resample_tasks: treat tasks as a sample too.
    """
    mine = found[reference].of_conditions(conditions)
    compared = {}
    for arm, other in found.items():
        theirs = other.of_conditions(conditions)
        compared[arm] = Comparison(
            success_rate(theirs, resample_tasks=resample_tasks),
            None
            if arm == reference
            else paired_success(mine, theirs, resample_tasks=resample_tasks),
        )
    return compared
