"""One policy evaluation from its settings to table, report and MLflow run."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dynaflip.eval.envs.metaworld_task_sets import tasks_of
from dynaflip.eval.envs.metaworld_tasks import KNOWN_TASKS
from dynaflip.eval.metrics.saliency import gaze
from dynaflip.eval.perturbations import layout_seed
from dynaflip.platform import tracking
from dynaflip.platform.evaluation.coverage import lacking
from dynaflip.platform.evaluation.demonstrations import SIMULATION, collect_demonstrations
from dynaflip.platform.evaluation.encoders_under_test import (
    TRAINED,
    Arm,
    info_of,
    resolve_arms,
    single_seed_notes,
)
from dynaflip.platform.evaluation.plan import ROLLOUT_VERSION, Cell, plan_cells
from dynaflip.platform.evaluation.report import rollout_tables
from dynaflip.platform.evaluation.report.tables import Section, as_text
from dynaflip.platform.evaluation.results import (
    IN_DISTRIBUTION,
    MEASURES,
    Successes,
    compare_arms,
    episode_table,
    groups,
    successes,
)
from dynaflip.platform.evaluation.rollout_config import RolloutConfig
from dynaflip.platform.evaluation.schedule import Workers, look, run_cells
from dynaflip.platform.evaluation.worker import Looked
from dynaflip.platform.paths import home, new_run_name
from dynaflip.platform.provenance import git_commit, hardware, versions_of

EPISODES_FILE = "episodes.parquet"
KIND = "policies"  # of the MLflow run
CELLS_TAG = "cells_digest"
VERSION_TAG = "rollout_version"
SIMULATOR_TAG = "simulator"
WHOLE = "whole"  # of a version's tag: the evaluation covers what promotion asks for
LOOKS = 3  # images a task whose saliency is shown


@dataclass(frozen=True)
class Outcome:
    """What a policy evaluation left behind."""

    table: str
    notes: list[str]
    metrics: dict[str, float]
    episodes: pl.DataFrame
    run_name: str
    run_id: str  # MLflow's
    report: Path  # HTML


def evaluate_policies(config: RolloutConfig) -> Outcome:
    """Fit policies on every arm's encoders, roll them out, compare and log.

    Raises:
        UserError: an encoder or a task does not exist, or the simulator cannot render.
    """
    tasks = tasks_of(config.tasks, KNOWN_TASKS)
    arms = resolve_arms(config)
    demonstrations = collect_demonstrations(config, tasks)
    cells = plan_cells(config, arms, demonstrations)
    # Opened before the first episode: a look at test counts though the job is killed.
    run, test_look = _open_run(config, arms, cells)
    with tracking.ending(run):
        run.log_settings(config)
        with Workers() as workers:
            table = episode_table(cells, run_cells(cells, workers))
            # An encoder that policies tune is no longer the one that would be looked through.
            looks = _look(config, arms, tasks, workers) if config.adaptation == "frozen" else {}
        return _conclude(config, arms, cells, table, looks, run, test_look)


def looks_at_test(cells_digest: str) -> int:
    """How many different evaluations on ``test`` this store has seen, this one included.

    Args:
        cells_digest: of this evaluation. The same cells again, after a kill or to see the
            table once more, are the same look.
    """
    store = tracking.client()
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    query = f"tags.kind = '{KIND}' and tags.perturbation_split = 'test'"
    found = store.search_runs(experiments, query, max_results=5000)
    seen = {run.data.tags.get(CELLS_TAG, run.info.run_id) for run in found}
    return len(seen | {cells_digest})


def _open_run(
    config: RolloutConfig, arms: list[Arm], cells: list[Cell]
) -> tuple[tracking.Run, int]:
    """MLflow's run, and which look at ``test`` it is (0 on dev)."""
    digests = json.dumps(sorted(cell.digest() for cell in cells))
    cells_digest = hashlib.sha256(digests.encode()).hexdigest()[:16]
    tags = {
        "kind": KIND,
        "encoder": config.encoder,
        "encoder_run_id": info_of(arms[0].encoders[0]).get("mlflow_run_id", ""),
        "encoder_digest": ",".join(encoder.digest for encoder in arms[0].encoders),
        "perturbation_split": config.split,
        CELLS_TAG: cells_digest,
        VERSION_TAG: ROLLOUT_VERSION,
        SIMULATOR_TAG: ", ".join(versions_of(SIMULATION)),
    }
    look = looks_at_test(cells_digest) if config.split == "test" else 0
    if look:
        tags["test_look"] = str(look)
    return tracking.open_run(config.experiment, new_run_name("policies"), tags), look


def sections_of(
    config: RolloutConfig, arms: list[str], table: pl.DataFrame, unseen_tasks: list[str]
) -> tuple[list[Section], dict[str, float]]:
    """All tables of an evaluation, and its figures by name.

    Args:
        config: what was evaluated.
        arms: names in the table's order.
        table: a row an episode.
        unseen_tasks: tasks held out of pretraining; beside others they have tables of their own.
    """
    sections: list[Section] = []
    metrics: dict[str, float] = {}
    for proprioception in config.proprioception:
        ever, last = (
            {
                arm: successes(table, arm, proprioception=proprioception, measure=measure)
                for arm in arms
            }
            for measure in MEASURES
        )
        metrics |= _metrics(ever, MEASURES[0], proprioception)
        metrics |= _metrics(last, MEASURES[1], proprioception)
        made = rollout_tables.headline_sections(ever, last, TRAINED)
        if 0 < len(unseen_tasks) < len(ever[TRAINED].tasks):
            for section in rollout_tables.headline_sections(
                {arm: found.of_tasks(unseen_tasks) for arm, found in ever.items()},
                {arm: found.of_tasks(unseen_tasks) for arm, found in last.items()},
                TRAINED,
            ):
                section.title = f"Tasks held out of pretraining. {section.title}"
                made.append(section)
        made += [
            rollout_tables.condition_section(ever),
            *rollout_tables.task_sections(ever, TRAINED),
        ]
        for section in made:
            section.title += f" ({rollout_tables.GIVEN[proprioception]})"
        sections += made
    return sections, metrics


def _look(
    config: RolloutConfig, arms: list[Arm], tasks: tuple[str, ...], workers: Workers
) -> dict[str, Looked]:
    """Saliency of each arm's first encoder (policies without one look at nothing)."""
    encoders = {arm.encoders[0].digest: arm.encoders[0] for arm in arms}
    seeds = [layout_seed(config.split, index) for index in range(LOOKS)]
    seeing = [encoder for encoder in encoders.values() if encoder.folder is not None]
    return look(tasks, config.image_px, seeds, seeing, workers)


def gaze_section(arms: list[Arm], looks: dict[str, Looked]) -> tuple[Section, dict[str, float]]:
    """The share of saliency on robot and object by arm, beside their share of the image."""
    section = Section(
        "Where it looks: share of saliency, % (an even gaze has the share of the area)",
        columns=("", "on the robot", "on the object"),
    )
    robot, objects = (
        np.concatenate([getattr(found, name) for found in looks.values()])
        for name in ("robot", "objects")
    )
    metrics: dict[str, float] = {}
    area = None
    for arm in arms:
        encoder = arm.encoders[0]
        if encoder.folder is None:
            continue
        maps = np.concatenate([found.saliency[encoder.digest] for found in looks.values()])
        shares = area = gaze(maps, robot, objects)
        section.rows.append([arm.name, f"{100 * shares.robot:.1f}", f"{100 * shares.object:.1f}"])
        name = arm.name.replace(" ", "_")
        metrics[f"gaze/robot/{name}"] = shares.robot
        metrics[f"gaze/object/{name}"] = shares.object
    if area is not None:
        cells = [f"{100 * area.robot_area:.1f}", f"{100 * area.object_area:.1f}"]
        section.rows.append(["share of the area", *cells])
    return section, metrics


def _metrics(found: dict[str, Successes], measure: str, proprioception: bool) -> dict[str, float]:
    metrics: dict[str, float] = {}
    given = "proprioception" if proprioception else "pictures"
    for name, conditions in groups(found[TRAINED].conditions).items():
        for arm, comparison in compare_arms(found, TRAINED, conditions).items():
            key = f"{measure}/{given}/{name}/{arm}".replace(" ", "_")
            rates = {key: comparison.rate}
            if comparison.difference is not None:
                rates[f"{key}/trained_minus_this"] = comparison.difference
            for full, rate in rates.items():
                metrics |= {full: rate.value, f"{full}/low": rate.low, f"{full}/high": rate.high}
    return metrics


def _conclude(
    config: RolloutConfig,
    arms: list[Arm],
    cells: list[Cell],
    table: pl.DataFrame,
    looks: dict[str, Looked],
    run: tracking.Run,
    test_look: int,
) -> Outcome:
    from dynaflip.platform.evaluation.report.html import write_report
    from dynaflip.platform.evaluation.report.rollout_images import images_of

    unseen_tasks = _tasks_unseen(arms[0], config)
    sections, metrics = sections_of(config, [arm.name for arm in arms], table, unseen_tasks)
    if looks:
        where, shares = gaze_section(arms, looks)
        sections.append(where)
        metrics |= shares
    notes = _notes(config, arms, unseen_tasks, test_look)
    images = images_of(config, arms, cells, table, looks)
    path = home() / "reports" / f"{run.run_name}.html"
    write_report(
        path,
        title=f"DynaFLIP: policies on {config.encoder} ({config.adaptation})",
        facts=facts_of(config, arms, table),
        sections=sections,
        notes=notes,
        images=[(caption, data) for _, caption, data in images],
    )
    text = as_text(sections)
    outcome = Outcome(text, notes, metrics, table, run.run_name, run.run_id, path)
    _log(config, outcome, run, images)
    _mark_encoders(config, arms, outcome)
    return outcome


def _log(
    config: RolloutConfig,
    outcome: Outcome,
    run: tracking.Run,
    images: list[tuple[str, str, bytes]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run.log_metrics(outcome.metrics, step=0)
        run.log_text(outcome.table, "table.txt")
        run.log_text(json.dumps(outcome.metrics, indent=1, sort_keys=True), "metrics.json")
        run.log_file(outcome.report)
        outcome.episodes.write_parquet(Path(folder) / EPISODES_FILE)
        run.log_file(Path(folder) / EPISODES_FILE)
        for name, _, data in images:
            (Path(folder) / name).write_bytes(data)
            run.log_file(Path(folder) / name, "images")


def _mark_encoders(config: RolloutConfig, arms: list[Arm], outcome: Outcome) -> None:
    """Put the report on the runs that made the encoders, and their own scores on their versions.

    Scores are of frozen encoders. Those that promotion could rest on stay before those that it
    could not, and those of more policies before those of fewer: the headline has one policy of
    each version, and promotion asks for several.
    """
    store = tracking.client()
    prefix = f"policies_{config.split}"
    count, breadth, at = f"{prefix}_number", f"{prefix}_breadth", f"{prefix}_run_id"
    for encoder in arms[0].encoders:
        made_by = info_of(encoder).get("mlflow_run_id")
        if not made_by:
            continue
        if (maker := tracking.find_run(made_by)) is not None:  # it may be in another store
            made = tracking.Run(made_by, maker.info.run_name, tracking.tracking_uri())
            made.log_file(outcome.report, "evaluation")
        if config.adaptation != "frozen":
            continue
        own = outcome.episodes.filter(
            (pl.col("arm") == TRAINED) & (pl.col("encoder_digest") == encoder.digest)
        )
        policies = own["seed"].n_unique()
        missing = lacking(
            adaptation=config.adaptation,
            episodes=config.episodes,
            tasks=set(own["task"]),
            conditions=set(own.select("factor", "level").iter_rows()),
        )
        mine = (not missing, policies)
        for version in store.search_model_versions(f"run_id='{made_by}'"):
            if (version.tags.get(breadth) == WHOLE, int(version.tags.get(count, 0))) > mine:
                continue
            name, number = version.name, str(version.version)
            scores = _scores(config, own)
            for key in version.tags:
                if key.startswith(f"{config.split}/") and key not in scores:
                    store.delete_model_version_tag(name, number, key)  # of another evaluation
            covered = f"lacks {len(missing)}" if missing else WHOLE
            marks = {count: str(policies), breadth: covered, at: outcome.run_id}
            for key, text in {**scores, **marks}.items():
                store.set_model_version_tag(name, number, key, text)


def _scores(config: RolloutConfig, own: pl.DataFrame) -> dict[str, str]:
    """``SPLIT/success_ever/GIVEN/GROUP`` of one encoder's episodes."""
    found = {}
    for proprioception in config.proprioception:
        values = successes(own, TRAINED, proprioception=proprioception)
        given = "proprioception" if proprioception else "pictures"
        for group, conditions in groups(values.conditions).items():
            key = f"{config.split}/{MEASURES[0]}/{given}/{group}".replace(" ", "_")
            found[key] = f"{values.of_conditions(conditions).mean():.4g}"
    return found


def facts_of(config: RolloutConfig, arms: list[Arm], table: pl.DataFrame) -> dict[str, str]:
    """What a report says of the settings, the code and the machine."""
    return {
        "arms": "; ".join(f"{a.name}: {', '.join(e.name for e in a.encoders)}" for a in arms),
        "tasks": ", ".join(table["task"].unique().sort()),
        "policy": config.head + (" of all tasks, told in words" if config.multitask else ""),
        "encoder in the policy": config.adaptation,
        "policy's settings": _said(getattr(config, config.head)),
        **({} if config.adaptation == "frozen" else {"tuning": _said(config.end_to_end)}),
        "policies": f"{config.seeds} an arm, {config.episodes} episodes a cell each",
        "hand position and gripper": ", ".join(
            rollout_tables.GIVEN[p] for p in config.proprioception
        ),
        "perturbation split": config.split,
        "levels": ", ".join(map(str, config.levels)),
        "image": f"{config.image_px} px, horizon {config.horizon_steps} steps of 1/80 s",
        "demonstrations": f"{config.demonstrations} a task, unperturbed",
        "git commit": git_commit(),
        "hardware": hardware(),
    }


def _said(settings: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in asdict(settings).items())


def _notes(config: RolloutConfig, arms: list[Arm], unseen_tasks: list[str], look: int) -> list[str]:
    notes = [
        "Intervals are 95 %, by hierarchical bootstrap over policies (each with its pretraining "
        "seed) and initial states, tasks fixed; the last column resamples tasks too. Every "
        "encoder meets the same initial states, and differences are paired.",
        "Out of distribution is the mean over single factors. An episode ends "
        f"{config.steps_after_success} steps after it is first solved.",
    ]
    notes += single_seed_notes(arms)
    if unseen_tasks:
        notes.append(f"tasks held out of pretraining: {', '.join(unseen_tasks)}")
    if look:
        notes.append(f"this is look {look} at the test split in this store")
    return notes


def _tasks_unseen(arm: Arm, config: RolloutConfig) -> list[str]:
    """Tasks that no encoder of the arm saw in pretraining, where its folder says what it saw."""
    seen: set[str] = set()
    for encoder in arm.encoders:
        known = info_of(encoder).get("caption_groups")
        if known is None:
            return []
        seen |= set(known)
    return [task for task in tasks_of(config.tasks, KNOWN_TASKS) if task not in seen]


__all__ = [
    "IN_DISTRIBUTION",
    "Outcome",
    "evaluate_policies",
    "facts_of",
    "looks_at_test",
    "sections_of",
]
