"""Episodes that failed: how near they came to the goal, and a gallery of their last frames.

How far an episode came is the share of the way from the object's first place to where it counts as
solved. That is read off the solved episodes of the same task, by any policy: environments have
tolerances of their own. Without a solved episode it is the goal itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from dynaflip.eval.expert_views import UNPERTURBED
from dynaflip.platform.evaluation.encoders_under_test import TRAINED
from dynaflip.platform.evaluation.plan import EvaluationJob
from dynaflip.platform.evaluation.report.html_page import ReportImage, jpeg_of
from dynaflip.platform.evaluation.report.recordings import first_episode, frames_of
from dynaflip.platform.evaluation.report.rollout_tables import GIVEN, condition_words
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.report.verdict import subject_name

_NEAR, _FAR = 0.75, 0.25  # shares of the way
NEAR_MISS, PART, TOTAL, UNKNOWN = "near miss", "part of the way", "total failure", "failure"
_WHERE = {"unperturbed": True, "perturbed": False}
# Tiles for each condition: of the encoder under test, and of every other one.
_MOST, _MOST_OF_OTHERS = 3, 1
_LEAD = (
    "First episodes of the policies of seed 0 that were not solved, from the nearest miss to the "
    f"furthest. A {NEAR_MISS} came at least three quarters of the way to where episodes of its "
    f"task count as solved, a {TOTAL} less than a quarter. Distances are the object's from its "
    "goal."
)


@dataclass(frozen=True)
class _Failure:
    """A recorded episode that was not solved."""

    job: EvaluationJob
    row: dict[str, Any]
    kind: str
    way: float  # share of the way to the goal; -1 where it is not known


def with_way(table: pl.DataFrame) -> pl.DataFrame:
    """Episodes with ``way``, the share of the way that they came, in [0, 1]; null if not known.

    Args:
        table: a row per episode; one of before has no distances.
    """
    if "nearest_m" not in table.columns:
        return table.with_columns(way=pl.lit(None, pl.Float64))
    solved_m = (
        pl.when(pl.col("success_ever")).then(pl.col("nearest_m")).max().over("task").fill_null(0.0)
    )
    whole = pl.col("start_m") - solved_m
    way = ((pl.col("start_m") - pl.col("nearest_m")) / whole).clip(0.0, 1.0)
    return table.with_columns(way=pl.when(whole > 0).then(way))


def failure_section(table: pl.DataFrame, names: list[str]) -> Section | None:
    """How failures ended, by encoder; None where nothing failed or no distance is known.

    Args:
        table: a row per episode.
        names: of what was compared, in the order of the rows.
    """
    failed = with_way(table).filter(~pl.col("success_ever"), pl.col("way").is_not_null())
    if "demonstrations" in failed.columns:  # of the most, as every table but the curve's
        number = pl.col("demonstrations")
        failed = failed.filter(number == number.max())
    given = table["proprioception"].unique(maintain_order=True).to_list()
    section = Section(
        "How failures ended",
        columns=(
            "", "failures", "near misses %", "part of the way %", "total failures %",
            "nearest to the goal, cm (median)", "at the end, cm (median)",
        ),
    )  # fmt: skip
    for (where, unperturbed), name, state in itertools.product(_WHERE.items(), names, given):
        rows = failed.filter(
            pl.col("arm") == name,
            (pl.col("factor") == UNPERTURBED) == unperturbed,
            pl.col("proprioception") == state,
        )
        if rows.is_empty():
            continue
        kinds = [kind_of(way) for way in rows["way"]]
        shares = [100 * kinds.count(kind) / len(kinds) for kind in (NEAR_MISS, PART, TOTAL)]
        cm = [100 * float(np.median(rows[column])) for column in ("nearest_m", "end_m")]
        cells = [*(f"{share:.0f}" for share in shares), *(f"{one:.1f}" for one in cm)]
        label = f"{name}, {where}" + (f", {GIVEN[state]}" if len(given) > 1 else "")
        section.rows.append([label, str(len(rows)), *cells])
    return section if section.rows else None


def failure_images(
    recorded: list[EvaluationJob], table: pl.DataFrame, names: list[str], control_hz: float
) -> list[ReportImage]:
    """The gallery: the encoder under test, then the others, each from near to far.

    Args:
        recorded: jobs whose first episode is recorded.
        table: a row per episode.
        names: of what was compared.
        control_hz: of the environment.
    """
    found = _failures(recorded, with_way(table))
    made: list[ReportImage] = []
    for heading, own in (
        (
            f"Failures of the encoder under test ({TRAINED})",
            [one for one in found if one.job.under_test == TRAINED],
        ),
        (
            "Failures of the encoders beside it",
            [one for one in found if one.job.under_test != TRAINED],
        ),
    ):
        for index, failure in enumerate(sorted(own, key=lambda one: -one.way)):
            tile = _tile(failure, table, names, control_hz)
            if index == 0:
                tile = replace(tile, heading=heading, lead="" if made else _LEAD)
            made.append(tile)
    return made


def kind_of(way: float | None) -> str:
    """How a failure is called by its share of the way."""
    if way is None:
        return UNKNOWN
    return NEAR_MISS if way >= _NEAR else PART if way >= _FAR else TOTAL


def _failures(recorded: list[EvaluationJob], table: pl.DataFrame) -> list[_Failure]:
    """At most some of each encoder and condition: the nearest and the furthest first."""
    by_place: dict[tuple[str, str], list[_Failure]] = {}
    for job in recorded:
        row = first_episode(job, table)
        if row["success_ever"]:
            continue
        way = row["way"]
        failure = _Failure(job, row, kind_of(way), -1.0 if way is None else way)
        by_place.setdefault((job.under_test, job.condition.name), []).append(failure)
    chosen: list[_Failure] = []
    for (under_test, _), failures in by_place.items():
        most = _MOST if under_test == TRAINED else _MOST_OF_OTHERS
        ordered = sorted(failures, key=lambda one: -one.way)
        chosen += [ordered[0], *ordered[:0:-1]][:most]
    return chosen


def _tile(
    failure: _Failure, table: pl.DataFrame, names: list[str], control_hz: float
) -> ReportImage:
    """Its nearest moment, a moment before the end, and the end."""
    job, row = failure.job, failure.row
    frames = frames_of(job)
    last = len(frames) - 1
    a_frame = max(row["steps"] / len(frames), 1.0)  # steps
    before = max(0, last - max(1, round(control_hz / 4 / a_frame)))
    shown = {f"{(last - before) * a_frame / control_hz:.2f} s before": before, "end": last}
    if row.get("nearest_step") is not None:
        shown = {"nearest": min(round(row["nearest_step"] / a_frame), last), **shown}
    sheet = jpeg_of(np.concatenate([frames[index] for index in shown.values()], 1))
    others = {name: first_episode(job, table, name) for name in names if name != job.under_test}
    solved = [name for name, of_other in others.items() if of_other.get("success_ever")]
    caption = (
        f"{failure.kind.capitalize()}: {job.task}, {condition_words(job.condition)}\n"
        f"{_encoder_words(job)}, policy of seed {job.policy.seed}, layout {row['layout_seed']}, "
        f"{row['steps']} steps.{_distances(row)}"
    )
    if others:
        caption += f" Solved from here by {', '.join(solved) or 'none of the others'}."
    name = f"failure-{job.under_test.replace(' ', '_')}-{job.task}-{job.condition.name}.jpg"
    return ReportImage(name.replace("/", "_"), caption, sheet, columns=tuple(shown), tile=True)


def _encoder_words(job: EvaluationJob) -> str:
    """``trained (dynaflip-encoder/7)``; baselines that are named by what they are have no more."""
    weights = subject_name(job.policy.encoder.name)
    told = job.under_test == TRAINED or not job.policy.encoder.name.startswith(job.under_test)
    return f"{job.under_test} ({weights})" if told else job.under_test


def _distances(row: dict[str, Any]) -> str:
    """`` 4.1 cm from the goal at the nearest, 12.3 cm at the end (18.2 cm at the start).``"""
    if row.get("nearest_m") is None:
        return ""
    nearest, end, start = (100 * row[key] for key in ("nearest_m", "end_m", "start_m"))
    return (
        f" {nearest:.1f} cm from the goal at the nearest (step {row['nearest_step']}), "
        f"{end:.1f} cm at the end, {start:.1f} cm at the start."
    )
