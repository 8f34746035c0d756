"""Two finished policy evaluations side by side, paired episode by episode."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import polars as pl
import yaml

from dynaflip.errors import UserError
from dynaflip.eval.intervals.hierarchical_bootstrap import Rate, paired_success, success_rate
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.encoders_under_test import TRAINED
from dynaflip.platform.evaluation.report.rollout_tables import GIVEN, percent, points
from dynaflip.platform.evaluation.report.tables import Section, as_text
from dynaflip.platform.evaluation.results import Successes, groups, successes
from dynaflip.platform.evaluation.suites.rollouts import (
    EPISODES_FILE,
    KIND,
    SIMULATOR_TAG,
    VERSION_TAG,
)

# Settings that must be alike for episodes to be pairs.
_PROTOCOL = (
    "split", "episodes", "horizon_steps", "steps_after_success", "image_px", "demonstrations",
    "head", "multitask", "adaptation", "seed", "seeds",
)  # fmt: skip


@dataclass(frozen=True)
class FinishedEvaluation:
    """A policy evaluation as MLflow keeps it."""

    run_id: str
    run_name: str
    settings: dict[str, Any]
    episodes: pl.DataFrame
    test_look: str  # which look at test it was; empty on dev
    rollout_version: str  # of the code's recipe for episodes
    simulator: str  # its packages with versions; empty where the run does not say


def read_evaluation(run: str) -> FinishedEvaluation:
    """By name or id of its MLflow run.

    Raises:
        UserError: there is no such run, or it is no finished policy evaluation.
    """
    entity = tracking.find_run(run)
    if entity is None:
        newest = ", ".join(tracking.newest_run_names(KIND)) or "none"
        raise UserError(f"compare: there is no run {run}; newest policy runs: {newest}")
    run_id = entity.info.run_id
    episodes = tracking.read_artifact(run_id, EPISODES_FILE)
    settings = tracking.read_artifact(run_id, "config.yaml")
    if episodes is None or settings is None:
        raise UserError(
            f"compare: run {run} holds no {EPISODES_FILE}; it is not a finished evaluation of "
            f"policies (jobs/evaluate.py --suite metaworld)"
        )
    return FinishedEvaluation(
        run_id,
        entity.info.run_name,
        yaml.safe_load(settings),
        pl.read_parquet(io.BytesIO(episodes)),
        entity.data.tags.get("test_look", ""),
        entity.data.tags.get(VERSION_TAG, "1"),  # runs of before the tag
        entity.data.tags.get(SIMULATOR_TAG, ""),
    )


def check_same_protocol(first: FinishedEvaluation, second: FinishedEvaluation) -> None:
    """Refuse to pair episodes of different protocols."""
    if first.rollout_version != second.rollout_version:
        raise UserError(
            f"compare: {first.run_name} and {second.run_name} are of different versions of the "
            f"rollouts ({first.rollout_version} and {second.rollout_version}); evaluate the "
            "older one anew"
        )
    if first.simulator != second.simulator and first.simulator and second.simulator:
        raise UserError(
            f"compare: {first.run_name} was rolled out in {first.simulator}, {second.run_name} in "
            f"{second.simulator}: their episodes are no pairs; evaluate both in one of them"
        )
    # What only some policies have is asked of those alone.
    used = [str(first.settings["head"])]
    used += ["end_to_end"] if first.settings["adaptation"] != "frozen" else []
    used += ["tasks"] if first.settings["multitask"] else []  # they all shape the one policy
    for key in (*_PROTOCOL, *used):
        if first.settings.get(key) != second.settings.get(key):
            raise UserError(
                f"compare: {first.run_name} has {key} {first.settings.get(key)}, "
                f"{second.run_name} {second.settings.get(key)}: their episodes are no pairs"
            )


@dataclass(frozen=True)
class PairedGroup:
    """Success of both runs' trained arms on a group of conditions they share."""

    name: str
    first: Rate
    second: Rate
    difference: Rate  # first − second
    tasks: tuple[str, ...]
    conditions: tuple[tuple[str, int], ...]  # (factor, level)


def shared_proprioception(first: FinishedEvaluation, second: FinishedEvaluation) -> list[bool]:
    """With (True) and without (False) proprioception, as far as both runs have it.

    Raises:
        UserError: they share neither.
    """
    given = [v for v in first.settings["proprioception"] if v in second.settings["proprioception"]]
    if not given:
        raise UserError("compare: one run gives policies hand position and gripper, the other not")
    return given


def paired_groups(
    first: FinishedEvaluation,
    second: FinishedEvaluation,
    *,
    proprioception: bool,
    second_arm: str = TRAINED,
) -> list[PairedGroup]:
    """Every group of conditions on the tasks and conditions that both runs have.

    Args:
        first, second: the runs, whose trained arms are paired.
        proprioception: of the policies that are paired.
        second_arm: another arm of ``second`` instead.

    Raises:
        UserError: they share none.
    """
    check_same_protocol(first, second)
    for run, arm in ((first, TRAINED), (second, second_arm)):
        if arm not in run.episodes["arm"].unique():
            raise UserError(f"compare: {run.run_name} has no arm {arm}")
    mine = successes(first.episodes, TRAINED, proprioception=proprioception)
    theirs = successes(second.episodes, second_arm, proprioception=proprioception)
    policies = {len(mine.values), len(theirs.values)}
    if len(policies - {1}) > 1:  # a single one stands beside each of the other's
        raise UserError(
            f"compare: {first.run_name} has {len(mine.values)} policies of these weights, "
            f"{second.run_name} {len(theirs.values)}: their episodes are no pairs"
        )
    tasks = [task for task in mine.tasks if task in theirs.tasks]
    conditions = [c for c in mine.conditions if c in theirs.conditions]
    if not tasks or not conditions:
        raise UserError("compare: the runs share no task under the same condition")
    found = []
    for name, chosen in groups(tuple(conditions)).items():
        a, b = _chosen(mine, tasks, chosen), _chosen(theirs, tasks, chosen)
        rates = success_rate(a), success_rate(b), paired_success(a, b)
        found.append(PairedGroup(name, *rates, tuple(tasks), tuple(chosen)))
    return found


def compare(first_run: str, second_run: str) -> str:
    """The comparison as a table."""
    first, second = read_evaluation(first_run), read_evaluation(second_run)
    sections = []
    for proprioception in shared_proprioception(first, second):
        section = Section(
            f"Success %, {first.settings['encoder']} beside {second.settings['encoder']} "
            f"({GIVEN[proprioception]})",
            columns=("", first.run_name, second.run_name, "difference, points", "verdict"),
        )
        for group in paired_groups(first, second, proprioception=proprioception):
            section.rows.append(
                [
                    group.name,
                    percent(group.first),
                    percent(group.second),
                    points(group.difference),
                    group.difference.verdict(),
                ]
            )
        sections.append(section)
    return as_text(sections)


def _chosen(found: Successes, tasks: list[str], conditions: list[tuple[str, int]]) -> Any:
    places = [found.tasks.index(task) for task in tasks]
    return found.of_conditions(conditions)[:, places]
