"""Images of the rollouts' report: gains, heat map, rollouts that play, saliency, failures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import polars as pl

from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.metrics.saliency import overlay
from dynaflip.eval.plots import condition_name, gain_figure, gain_words, heat_figure
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import TRAINED, EncoderUnderTest
from dynaflip.platform.evaluation.plan import Condition, EvaluationJob
from dynaflip.platform.evaluation.report.gains import heat_maps, success_gains
from dynaflip.platform.evaluation.report.html_page import ReportImage, jpeg_of, png_of
from dynaflip.platform.evaluation.report.rollout_tables import GIVEN
from dynaflip.platform.evaluation.results import Successes, successes
from dynaflip.platform.evaluation.worker import SaliencyMaps

# In the gallery, for each condition.
_FAILURES = 3


def images_of(
    config: RolloutConfig,
    tested: list[EncoderUnderTest],
    jobs: list[EvaluationJob],
    table: pl.DataFrame,
    saliency: dict[str, SaliencyMaps],
    curve: list[ReportImage],
) -> list[ReportImage]:
    """Every image, for the report and for MLflow: figures first.

    Args:
        config, tested, jobs: what was evaluated.
        table: a row per episode.
        saliency: by task.
        curve: success by number of demonstrations, if it was asked for.
    """
    names, given = [entry.name for entry in tested], config.proprioception[0]
    by_name = {name: successes(table, name, proprioception=given) for name in names}
    made = measure_figures(by_name, "success", GIVEN[given]) + curve
    first: dict[tuple[str, str, str], EvaluationJob] = {}
    for job in jobs:
        if job.policy.use_proprioception == given and job.recorded:
            # Jobs of fewer demonstrations come after those of all.
            first.setdefault((job.under_test, job.task, job.condition.name), job)
    recorded = [job for job in first.values() if cache.animation_path(job).is_file()]
    made += _animations(recorded, table)
    if saliency:
        shown = [entry for entry in tested if entry.encoders[0].folder is not None]
        columns = ("image", *(entry.name for entry in shown))
        caption = "A row for each task: the image, and what each encoder's embedding is made of."
        sheet = jpeg_of(_saliency_sheet(shown, saliency))
        made.append(
            ReportImage("saliency.jpg", caption, sheet, "Saliency of the encoders", "", columns)
        )
    return made + _failures(recorded, table, names)


def measure_figures(by_name: dict[str, Successes], measure: str, given: str) -> list[ReportImage]:
    """The gain by factor and the heat map of some measure in [0, 1].

    Args:
        by_name: encoder's name → its values; the encoder under test has the name ``trained``.
        measure: what is measured, in a word or two.
        given: what policies are given.
    """
    made = []
    gains = success_gains(by_name, TRAINED)
    if gains:
        title = f"Gain in {measure} by factor, {given}"
        figure = png_of(gain_figure(gains, "points", title))
        caption = (
            "Points are means, lines their 95 % intervals: those of the tables, without correction "
            "for several comparisons."
        )
        made.append(
            ReportImage("gains.png", caption, figure, "Gain by factor", gain_words(gains, "points"))
        )
    maps = heat_maps(by_name, TRAINED)
    if maps:
        heading = f"{measure.capitalize()} by factor, {given}"
        caption = f"Mean {measure} of all policies, tasks and initial states, in percent."
        figure = png_of(heat_figure(maps))
        made.append(ReportImage("heat_map.png", caption, figure, heading))
    return made


def _frames(job: EvaluationJob) -> list[np.ndarray]:
    from PIL import Image, ImageSequence

    with Image.open(cache.animation_path(job)) as animation:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]


def _saliency_sheet(shown: list[EncoderUnderTest], saliency: dict[str, SaliencyMaps]) -> np.ndarray:
    """(rows · H, columns · W, 3): each task's first image and every encoder's saliency over it."""
    rows = []
    for maps_of_task in saliency.values():
        image = maps_of_task.images[0]
        maps = [maps_of_task.saliency[entry.encoders[0].digest][0] for entry in shown]
        rows.append(np.concatenate([image, *(overlay(image, heat) for heat in maps)], 1))
    return np.concatenate(rows, 0)


def _animations(recorded: list[EvaluationJob], table: pl.DataFrame) -> list[ReportImage]:
    """The same initial state with every encoder, side by side: unperturbed and perturbed."""
    made: list[ReportImage] = []
    conditions = dict.fromkeys(job.condition for job in recorded)
    perturbed = [c for c in conditions if c.factor != UNPERTURBED]
    together = [c for c in perturbed if c.factor == ALL_FACTORS]
    shown = [c for c in conditions if c.factor == UNPERTURBED]
    for condition in shown + (together or perturbed)[-1:]:
        for task in dict.fromkeys(job.task for job in recorded):
            same = [c for c in recorded if (c.task, c.condition) == (task, condition)]
            if not same:
                continue
            by_name = {job.under_test: job for job in same}
            frames = [_frames(job) for job in by_name.values()]
            columns = tuple(f"{n}: {_ended(job, table)}" for n, job in by_name.items())
            caption = f"{task}, {_condition_words(condition)}"
            data = _side_by_side(frames)
            heading = "" if made else "Rollouts from the same initial state, side by side"
            name = f"{task}-{condition.name}.webp"
            made.append(ReportImage(name, caption, data, heading, "", columns))
    return made


def _failures(
    recorded: list[EvaluationJob], table: pl.DataFrame, names: list[str]
) -> list[ReportImage]:
    """Last frames of recorded episodes in which the encoder under test failed, by condition."""
    made: list[ReportImage] = []
    by_condition: dict[Condition, int] = {}
    for job in recorded:
        number = by_condition.get(job.condition, 0)
        if job.under_test != TRAINED or number >= _FAILURES or _episode(job, table)["success_ever"]:
            continue
        by_condition[job.condition] = number + 1
        caption = f"{_condition_words(job.condition)}, {job.task}: {_ended(job, table)}"
        others = {name: _episode(job, table, name) for name in names if name != TRAINED}
        solved = [name for name, row in others.items() if row and row["success_ever"]]
        if others:
            caption += f"; solved from here by {', '.join(solved) or 'none of the others'}"
        heading = "" if made else f"Failures of {TRAINED}: last frame"
        name = f"failure-{job.task}-{job.condition.name}.jpg"
        made.append(ReportImage(name, caption, jpeg_of(_frames(job)[-1]), heading, tile=True))
    return sorted(made, key=lambda image: not image.heading)


def _episode(
    job: EvaluationJob, table: pl.DataFrame, under_test: str | None = None
) -> dict[str, Any]:
    """The row of the recorded (first) episode of a job, or of another encoder's; {} without one."""
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


def _ended(job: EvaluationJob, table: pl.DataFrame) -> str:
    """How the recorded episode of a job ended."""
    row = _episode(job, table)
    if row["success_ever"]:
        return "solved" if row["success_last"] else "solved, and lost again"
    return f"not solved in {row['steps']} steps"


def _condition_words(condition: Condition) -> str:
    level = f", level {condition.level}" if condition.level else ""
    return condition_name(condition.factor) + level


def _side_by_side(animations: list[list[np.ndarray]]) -> bytes:
    """Animated WebP; an episode that has ended shows its last frame."""
    from PIL import Image

    length = max(map(len, animations))
    rows = [
        Image.fromarray(
            np.concatenate([frames[min(i, len(frames) - 1)] for frames in animations], 1)
        )
        for i in range(length)
    ]
    buffer = io.BytesIO()
    rows[0].save(
        buffer, "WEBP", save_all=True, append_images=rows[1:], duration=60, loop=0,
        quality=60, method=2,
    )  # fmt: skip
    return buffer.getvalue()
