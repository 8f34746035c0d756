"""Results of an evaluation: episodes as a table, success as arrays, and comparisons of encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from dynaflip.errors import UserError
from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.intervals.hierarchical_bootstrap import Rate, paired_success, success_rate
from dynaflip.eval.perturbations import BUILT_IN_FACTORS, seen_factors, unseen_factors
from dynaflip.platform.evaluation.job_result import JobResult
from dynaflip.platform.evaluation.plan import EvaluationJob

MEASURES = ("success_ever", "success_last")
# How far the object was from its goal: empty where the environment does not know.
GOAL_COLUMNS = {
    "start_m": pl.Float64,
    "nearest_m": pl.Float64,
    "nearest_step": pl.Int64,
    "end_m": pl.Float64,
}
IN_DISTRIBUTION = "in distribution"
OUT_OF_DISTRIBUTION = "out of distribution"
# Groups of conditions, as tables name them.
SEEN, UNSEEN, TOGETHER = "factors seen in pretraining", "factors never seen", "all at once"
# Their names in metrics and tags, where these are older than the table's.
_STORED_NAMES = {SEEN: "kinds seen in pretraining", UNSEEN: "kinds never seen"}


def episode_table(jobs: list[EvaluationJob], results: list[JobResult]) -> pl.DataFrame:
    """A row per episode: what ``compare`` and other tools read."""
    rows: list[dict[str, Any]] = []
    for job, result in zip(jobs, results, strict=True):
        for index, start in enumerate(job.starts):
            goal = result.goal[index] if result.goal else None
            rows.append(
                {
                    "arm": job.under_test,
                    "encoder": job.policy.encoder.name,
                    "encoder_digest": job.policy.encoder.digest,
                    "proprioception": job.policy.use_proprioception,
                    "demonstrations": job.policy.demonstrations[0].shown,
                    "seed": job.policy.seed,
                    "task": job.task,
                    "factor": job.condition.factor,
                    "level": job.condition.level,
                    "episode": index,
                    "layout_seed": start.layout_seed,
                    "success_ever": result.success_ever[index],
                    "success_last": result.success_last[index],
                    "steps": result.steps[index],
                    **{column: getattr(goal, column, None) for column in GOAL_COLUMNS},
                }
            )
    return pl.DataFrame(rows, schema_overrides=GOAL_COLUMNS)


@dataclass(frozen=True)
class Successes:
    """Successes of one encoder under test: ``values`` (S, T, C, E) with the names of T and C.

    Legend: S policies, T tasks, C conditions, E episodes.
    """

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
    table: pl.DataFrame,
    under_test: str,
    *,
    proprioception: bool,
    measure: str = "success_ever",
    demonstrations: int | None = None,
) -> Successes:
    """Successes as an array.

    Args:
        table: of :func:`episode_table`.
        under_test: name of an encoder under test or baseline.
        proprioception: of its policies.
        measure: column with the values.
        demonstrations: that its policies were trained on; None: the most that there are.

    Raises:
        UserError: a job is missing or of another number of episodes.
    """
    own = (pl.col("arm") == under_test) & (pl.col("proprioception") == proprioception)
    rows = table.filter(own)
    if "demonstrations" in rows.columns:  # tables of before have one number of them
        number = pl.col("demonstrations")
        rows = rows.filter(number == (number.max() if demonstrations is None else demonstrations))
    keys = ["seed", "task", "factor", "level", "episode"]
    rows = rows.sort(keys)
    tasks = tuple(rows["task"].unique().sort())
    conditions = tuple(rows.select("factor", "level").unique().sort("factor", "level").iter_rows())
    shape = (rows["seed"].n_unique(), len(tasks), len(conditions), rows["episode"].n_unique())
    if int(np.prod(shape)) != len(rows) or rows.select(keys).is_duplicated().any():
        raise UserError(
            f"evaluation: {under_test} has {len(rows)} episodes, not the "
            f"{' x '.join(map(str, shape))} of its seeds, tasks, conditions and episodes"
        )
    return Successes(rows[measure].to_numpy().reshape(shape).astype(float), tasks, conditions)


def groups(conditions: tuple[tuple[str, int], ...]) -> dict[str, list[tuple[str, int]]]:
    """Conditions by group, in the table's order; empty groups are left out.

    Out of distribution is the mean over single factors; all at once stands beside it.
    """
    single = [c for c in conditions if c[0] not in (UNPERTURBED, ALL_FACTORS)]
    by_name = {
        IN_DISTRIBUTION: [c for c in conditions if c[0] == UNPERTURBED],
        OUT_OF_DISTRIBUTION: single,
        SEEN: [c for c in single if c[0] in seen_factors(BUILT_IN_FACTORS)],
        UNSEEN: [c for c in single if c[0] in unseen_factors(BUILT_IN_FACTORS)],
        TOGETHER: [c for c in conditions if c[0] == ALL_FACTORS],
    }
    return {name: chosen for name, chosen in by_name.items() if chosen}


def metric_name(measure: str, proprioception: bool, group: str) -> str:
    """``success_ever/proprioception/in_distribution``: the name in metrics and tags."""
    given = "proprioception" if proprioception else "pictures"
    return f"{measure}/{given}/{_STORED_NAMES.get(group, group)}".replace(" ", "_")


@dataclass(frozen=True)
class Comparison:
    """An encoder beside the reference, on some conditions and tasks."""

    rate: Rate
    difference: Rate | None  # reference − this one, paired; None for the reference itself


def compare_encoders(
    by_name: dict[str, Successes],
    reference: str,
    conditions: list[tuple[str, int]],
    *,
    resample_tasks: bool = False,
) -> dict[str, Comparison]:
    """Success of every encoder on some conditions, and how much better the reference is.

    Args:
        by_name: successes over the same tasks and episodes.
        reference: the one whose gain over the others is asked for.
        conditions: of :attr:`Successes.conditions`.
        resample_tasks: treat tasks as a sample too.
    """
    first = by_name[reference].of_conditions(conditions)
    compared = {}
    for name, other in by_name.items():
        values = other.of_conditions(conditions)
        rate = success_rate(values, resample_tasks=resample_tasks)
        difference = None
        if name != reference:
            difference = paired_success(first, values, resample_tasks=resample_tasks)
        compared[name] = Comparison(rate, difference)
    return compared
