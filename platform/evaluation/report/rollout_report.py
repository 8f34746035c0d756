"""The report of an evaluation by rollouts: tables with their metrics, facts and notes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from dynaflip.eval.envs.registry import environment
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import (
    TRAINED,
    EncoderUnderTest,
    single_seed_notes,
)
from dynaflip.platform.evaluation.protocols import change_lines, label_of
from dynaflip.platform.evaluation.report import rollout_tables
from dynaflip.platform.evaluation.report.gains import verdict_lines
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.report.verdict import SUCCESS, Wording, subject_name
from dynaflip.platform.evaluation.results import (
    MEASURES,
    Successes,
    compare_encoders,
    groups,
    metric_name,
    successes,
)
from dynaflip.platform.evaluation.worker import SaliencyMaps
from dynaflip.platform.provenance import git_commit, hardware

# How the columns beside a plain verdict are meant.
COMPARISONS = (
    "Holm's correction keeps the chance of any false verdict among the comparisons of a table at "
    "5 %; plain verdicts have that chance each. Best of all is the share of the resamples (of "
    "policies and initial states) in which an encoder is the best of the table."
)


def sections_of(
    config: RolloutConfig, names: list[str], table: pl.DataFrame, unseen_tasks: list[str]
) -> tuple[list[Section], dict[str, float]]:
    """All tables of an evaluation, and its metrics.

    Args:
        config: what was evaluated.
        names: of the encoders under test, in the table's order.
        table: a row per episode.
        unseen_tasks: tasks held out of pretraining; beside others they have tables of their own.
    """
    sections: list[Section] = []
    metrics: dict[str, float] = {}
    for proprioception in config.proprioception:
        ever, last = (
            {
                name: successes(table, name, proprioception=proprioception, measure=measure)
                for name in names
            }
            for measure in MEASURES
        )
        metrics |= _metrics(ever, MEASURES[0], proprioception)
        metrics |= _metrics(last, MEASURES[1], proprioception)
        shown = rollout_tables.headline_sections(ever, last, TRAINED)
        if 0 < len(unseen_tasks) < len(ever[TRAINED].tasks):
            for section in rollout_tables.headline_sections(
                {name: values.of_tasks(unseen_tasks) for name, values in ever.items()},
                {name: values.of_tasks(unseen_tasks) for name, values in last.items()},
                TRAINED,
            ):
                section.title = f"Tasks held out of pretraining. {section.title}"
                shown.append(section)
        shown += [
            rollout_tables.condition_section(ever),
            *rollout_tables.task_sections(ever, TRAINED),
        ]
        for section in shown:
            section.title += f" ({rollout_tables.GIVEN[proprioception]})"
        sections += shown
    return sections, metrics


def verdict_of(
    config: RolloutConfig,
    names: list[str],
    table: pl.DataFrame,
    measure: str = MEASURES[0],
    wording: Wording = SUCCESS,
) -> list[str]:
    """The result in sentences, of the first of ``config.proprioception``.

    Args:
        config: what was evaluated.
        names: of the encoders under test.
        table: a row per episode.
        measure: column of the values.
        wording: of the measure.
    """
    given = config.proprioception[0]
    by_name = {
        name: successes(table, name, proprioception=given, measure=measure) for name in names
    }
    subject = subject_name(config.encoder)
    return verdict_lines(by_name, TRAINED, subject=subject, split=config.split, wording=wording)


def saliency_section(
    tested: list[EncoderUnderTest], saliency: dict[str, SaliencyMaps]
) -> tuple[Section, dict[str, float]]:
    """The share of saliency on robot and object by encoder, beside their share of the image."""
    from dynaflip.eval.metrics.saliency import saliency_shares

    section = Section(
        "Saliency on robot and object, % (spread evenly it is the share of the area)",
        columns=("", "on the robot", "on the object"),
    )
    robot, objects = (
        np.concatenate([getattr(maps, name) for maps in saliency.values()])
        for name in ("robot", "objects")
    )
    metrics: dict[str, float] = {}
    area = None
    for entry in tested:
        encoder = entry.encoders[0]
        if encoder.folder is None:
            continue
        maps = np.concatenate([of_task.saliency[encoder.digest] for of_task in saliency.values()])
        shares = area = saliency_shares(maps, robot, objects)
        row = [entry.name, f"{100 * shares.robot:.1f}", f"{100 * shares.object:.1f}"]
        section.rows.append(row)
        name = entry.name.replace(" ", "_")
        metrics[f"gaze/robot/{name}"] = shares.robot
        metrics[f"gaze/object/{name}"] = shares.object
    if area is not None:
        areas = [f"{100 * area.robot_area:.1f}", f"{100 * area.object_area:.1f}"]
        section.rows.append(["share of the area", *areas])
    return section, metrics


def facts_of(
    config: RolloutConfig,
    tested: list[EncoderUnderTest],
    table: pl.DataFrame,
    suite: str = "rollouts",
) -> dict[str, str]:
    """Settings, code and machine, as the report's head lists them."""
    protocol = label_of(config, suite)
    numbers = [*sorted(config.fewer_demonstrations), config.demonstrations]
    spec = environment(config.environment)
    tuned = (
        {}
        if config.adaptation == "frozen"
        else {"tuning": _settings_text(asdict(config.end_to_end))}
    )
    return {
        **({"protocol": protocol} if protocol else {}),
        "encoders": "; ".join(
            f"{entry.name}: {', '.join(e.name for e in entry.encoders)}" for entry in tested
        ),
        "environment": spec.version(),
        "tasks": ", ".join(table["task"].unique().sort()),
        "policy": config.head
        + (" of all tasks, told apart by captions" if config.multitask else ""),
        "encoder in the policy": config.adaptation,
        "policy's settings": _settings_text(config.settings_of_head()),
        "read-out": f"{config.readout} {_settings_text(config.settings_of_readout())}".strip(),
        **tuned,
        "policies": f"{config.seeds} per encoder, {config.episodes} episodes per job",
        "proprioception": ", ".join(rollout_tables.GIVEN[p] for p in config.proprioception),
        "perturbation split": config.split,
        "levels": ", ".join(map(str, config.levels)),
        "image": f"{config.image_px} px",
        "horizon": f"{config.horizon_steps} steps of 1/{spec.control_hz:g} s",
        "demonstrations": f"{', '.join(map(str, numbers))} per task, unperturbed"
        + (f", of {config.source}" if config.source else ""),
        "git commit": git_commit(),
        "hardware": hardware(),
    }


def notes_of(
    config: RolloutConfig,
    tested: list[EncoderUnderTest],
    table: pl.DataFrame,
    unseen_tasks: list[str],
    test_evaluation: int,
) -> list[str]:
    """How to read the tables, and what limits them."""
    notes = [
        "Intervals are 95 %, by hierarchical bootstrap over policies (each with its pretraining "
        'seed) and initial states, tasks fixed; the column "tasks resampled" takes them for '
        "a sample of tasks too. Every encoder meets the same initial states, and differences are "
        "paired.",
        "Out of distribution is the mean over single factors. An episode ends "
        f"{config.steps_after_success} steps after it is first solved.",
    ]
    notes.append(COMPARISONS)
    if config.protocol:
        notes += [f"protocol {label_of(config)}", *change_lines(config)]
    if config.unseen != "nothing":
        notes.append(f"checked: pretraining had none of what is called unseen ({config.unseen})")
    notes += power_lines(config, [entry.name for entry in tested], table, MEASURES[0])
    notes += single_seed_notes(tested)
    if unseen_tasks:
        notes.append(f"tasks held out of pretraining: {', '.join(unseen_tasks)}")
    if test_evaluation:
        notes.append(f"this is evaluation {test_evaluation} on the test split in this store")
    return notes


def power_lines(
    config: RolloutConfig, names: list[str], table: pl.DataFrame, measure: str
) -> list[str]:
    """Which gains the design tells apart, with and without proprioception.

    Args:
        config: what was evaluated.
        names: of the encoders under test.
        table: a row per episode.
        measure: column of the values.
    """
    lines: list[str] = []
    for proprioception in config.proprioception:
        by_name = {
            name: successes(table, name, proprioception=proprioception, measure=measure)
            for name in names
        }
        given = rollout_tables.GIVEN[proprioception]
        lines += rollout_tables.power_notes(by_name, TRAINED, given)
    return lines


def _settings_text(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _metrics(by_name: dict[str, Successes], measure: str, proprioception: bool) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for group, conditions in groups(by_name[TRAINED].conditions).items():
        for name, comparison in compare_encoders(by_name, TRAINED, conditions).items():
            key = f"{metric_name(measure, proprioception, group)}/{name.replace(' ', '_')}"
            rates = {key: comparison.rate}
            if comparison.difference is not None:
                rates[f"{key}/trained_minus_this"] = comparison.difference
            for full, rate in rates.items():
                metrics |= {full: rate.value, f"{full}/low": rate.low, f"{full}/high": rate.high}
    return metrics
