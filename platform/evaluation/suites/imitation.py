"""Policies held against the expert in what it sees: a score in minutes, for tuning.

Cells, arms, demonstrations and fitted policies are those of the policy evaluation, so a rollout
of the same settings afterwards finds its policies fitted. Only ``dev`` is shown here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dynaflip.errors import UserError
from dynaflip.eval.envs.metaworld_task_sets import tasks_of
from dynaflip.eval.envs.metaworld_tasks import KNOWN_TASKS
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.demonstrations import collect_demonstrations
from dynaflip.platform.evaluation.encoders_under_test import (
    TRAINED,
    Arm,
    info_of,
    resolve_arms,
    single_seed_notes,
)
from dynaflip.platform.evaluation.plan import Cell, plan_cells
from dynaflip.platform.evaluation.report import rollout_tables
from dynaflip.platform.evaluation.report.html import write_report
from dynaflip.platform.evaluation.report.tables import Section, as_text
from dynaflip.platform.evaluation.results import Successes, compare_arms, groups, successes
from dynaflip.platform.evaluation.rollout_config import RolloutConfig
from dynaflip.platform.evaluation.schedule import Workers, fit_missing, imitate
from dynaflip.platform.evaluation.suites.rollouts import Outcome, facts_of
from dynaflip.platform.evaluation.worker import Imitated
from dynaflip.platform.paths import home, new_run_name

KIND = "imitation"  # of the MLflow run
AGREEMENT = "agreement"
AGREEMENTS_FILE = "agreements.parquet"

NOTES = [
    "Agreement is the mean over the expert's moments of max(0, 1 - squared distance of the "
    "policy's action from the expert's / variance of the expert's actions), in percent: 100 is "
    "the expert itself. It is no success: policies are not rolled out.",
    "Intervals are 95 %, by hierarchical bootstrap over policies and initial states, tasks fixed; "
    "every policy is shown the same moments, and differences are paired.",
]


def evaluate_imitation(config: RolloutConfig) -> Outcome:
    """Fit policies on every arm's encoders, hold them against the expert, compare and log.

    Raises:
        UserError: the split is not ``dev``, an encoder or a task does not exist, or the
            simulator cannot render.
    """
    if config.split != "dev":
        raise UserError(
            "split: agreement with the expert is for tuning, so it is shown dev alone; roll "
            "policies out on test with --suite metaworld"
        )
    tasks = tasks_of(config.tasks, KNOWN_TASKS)
    arms = resolve_arms(config)
    cells = plan_cells(config, arms, collect_demonstrations(config, tasks))
    tags = {
        "kind": KIND,
        "encoder": config.encoder,
        "encoder_run_id": info_of(arms[0].encoders[0]).get("mlflow_run_id", ""),
        "perturbation_split": config.split,
    }
    run = tracking.open_run(config.experiment, new_run_name(KIND), tags)
    with tracking.ending(run):
        run.log_settings(config)
        with Workers() as workers:
            fit_missing(cells, workers)
            found = imitate(cells, workers)
        return _conclude(config, arms, agreement_table(cells, found), run)


def agreement_table(cells: list[Cell], found: dict[tuple[str, str], Imitated]) -> pl.DataFrame:
    """A row a cell and initial state: mean agreement over the expert's moments in it.

    Args:
        cells: all of an evaluation.
        found: (task, digest of a policy) → its agreement.
    """
    rows: list[dict[str, Any]] = []
    for cell in cells:
        digest = cell.policy.digest()
        imitated = found[cell.task, digest]
        here = imitated.condition == cell.condition.name
        for index, start in enumerate(cell.starts):
            moments = imitated.agreement[digest][here & (imitated.episode == index)]
            rows.append(
                {
                    "arm": cell.arm,
                    "encoder_digest": cell.policy.encoder.digest,
                    "proprioception": cell.policy.use_proprioception,
                    "seed": cell.policy.seed,
                    "task": cell.task,
                    "factor": cell.condition.factor,
                    "level": cell.condition.level,
                    "episode": index,
                    "layout_seed": start.layout_seed,
                    "moments": len(moments),
                    AGREEMENT: float(np.mean(moments)),
                }
            )
    return pl.DataFrame(rows)


def _sections(
    config: RolloutConfig, arms: list[Arm], table: pl.DataFrame
) -> tuple[list[Section], dict[str, float]]:
    sections: list[Section] = []
    metrics: dict[str, float] = {}
    for proprioception in config.proprioception:
        found = {
            arm.name: successes(table, arm.name, proprioception=proprioception, measure=AGREEMENT)
            for arm in arms
        }
        given = rollout_tables.GIVEN[proprioception]
        made = _compared(found, "proprioception" if proprioception else "pictures", metrics)
        by_condition = rollout_tables.condition_section(found)
        by_condition.title = "Agreement % by condition"
        for section in [made, by_condition]:
            section.title += f" ({given})"
            sections.append(section)
    return sections, metrics


def _compared(found: dict[str, Successes], given: str, metrics: dict[str, float]) -> Section:
    """Each group of conditions: every arm's agreement and what the reference has more."""
    section = Section(
        "Agreement with the expert, %", columns=("", "", "agreement", "trained - this", "verdict")
    )
    for group, conditions in groups(found[TRAINED].conditions).items():
        for arm, comparison in compare_arms(found, TRAINED, conditions).items():
            gain = comparison.difference
            beside = [rollout_tables.points(gain), gain.verdict()] if gain else ["-", "-"]
            section.rows.append([group, arm, rollout_tables.percent(comparison.rate), *beside])
            key = f"{AGREEMENT}/{given}/{group}/{arm}".replace(" ", "_")
            metrics[key] = comparison.rate.value
    return section


def _conclude(
    config: RolloutConfig, arms: list[Arm], table: pl.DataFrame, run: tracking.Run
) -> Outcome:
    sections, metrics = _sections(config, arms, table)
    notes = [*NOTES, *single_seed_notes(arms)]
    path = home() / "reports" / f"{run.run_name}.html"
    write_report(
        path,
        title=f"DynaFLIP: agreement with the expert on {config.encoder}",
        facts=facts_of(config, arms, table),
        sections=sections,
        notes=notes,
        images=[],
    )
    outcome = Outcome(as_text(sections), notes, metrics, table, run.run_name, run.run_id, path)
    run.log_metrics(metrics, step=0)
    run.log_text(outcome.table, "table.txt")
    run.log_file(path)
    with tempfile.TemporaryDirectory() as folder:
        table.write_parquet(Path(folder) / AGREEMENTS_FILE)
        run.log_file(Path(folder) / AGREEMENTS_FILE)
    return outcome
