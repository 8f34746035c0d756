"""Images of the rollouts' report: gains, heat map, rollouts that play, saliency, failures."""

from __future__ import annotations

import io

import numpy as np
import polars as pl

from dynaflip.eval.envs.registry import environment
from dynaflip.eval.metrics.attention import AttentionMaps, twice
from dynaflip.eval.metrics.saliency import overlay
from dynaflip.eval.plots import gain_figure, gain_words, heat_figure, heat_words
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.attention import shown_conditions
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import TRAINED, EncoderUnderTest
from dynaflip.platform.evaluation.plan import EvaluationJob
from dynaflip.platform.evaluation.report.attention import attention_images
from dynaflip.platform.evaluation.report.failures import failure_images
from dynaflip.platform.evaluation.report.gains import heat_maps, success_gains
from dynaflip.platform.evaluation.report.html_page import ReportImage, jpeg_of, png_of
from dynaflip.platform.evaluation.report.recordings import ended, frames_of
from dynaflip.platform.evaluation.report.rollout_tables import GIVEN, condition_words
from dynaflip.platform.evaluation.results import Successes, successes
from dynaflip.platform.evaluation.worker import SaliencyMaps

GAIN_CAPTION = (
    "The encoder under test beside each other one: right of 0 it is better. Points are means, "
    "lines their 95 % intervals: those of the tables, without correction for several comparisons."
)

_SALIENCY = "What each encoder's embedding is made of: saliency"
_SALIENCY_LEAD = (
    "The brighter, the more a pixel contributes to the embedding (gradient times input), which is "
    "the same for every policy on the encoder. More of it on robot and object is what one hopes "
    "for; the tables have the shares."
)


def images_of(
    config: RolloutConfig,
    tested: list[EncoderUnderTest],
    jobs: list[EvaluationJob],
    table: pl.DataFrame,
    saliency: dict[str, SaliencyMaps],
    attention: dict[str, AttentionMaps],
    curve: list[ReportImage],
) -> list[ReportImage]:
    """Every image, for the report and for MLflow: figures first.

    Args:
        config, tested, jobs: what was evaluated.
        table: a row per episode.
        saliency, attention: by task.
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
    made += _saliency_images(tested, saliency)
    made += attention_images(config, jobs, attention)
    control_hz = environment(config.environment).control_hz
    return made + failure_images(recorded, table, names, control_hz)


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
        words = gain_words(gains, "points")
        made.append(ReportImage("gains.png", GAIN_CAPTION, figure, "Gain by factor", words))
    maps = heat_maps(by_name, TRAINED, measure)
    if maps:
        heading = f"{measure.capitalize()} by factor, {given}"
        caption = (
            f"Mean {measure} of all policies, tasks and initial states, in percent: more is better."
        )
        if any(one.signed for one in maps):
            caption += " The gain beside it is better above 0."
        figure = png_of(heat_figure(maps))
        made.append(ReportImage("heat_map.png", caption, figure, heading, heat_words(maps)))
    return made


def _saliency_images(
    tested: list[EncoderUnderTest], saliency: dict[str, SaliencyMaps]
) -> list[ReportImage]:
    """An image a task: its first moment, and every encoder's saliency over it."""
    shown = [entry for entry in tested if entry.encoders[0].folder is not None]
    made: list[ReportImage] = []
    for task, maps_of_task in saliency.items():
        image = maps_of_task.images[0]
        maps = [maps_of_task.saliency[entry.encoders[0].digest][0] for entry in shown]
        large = twice(image)
        sheet = jpeg_of(np.concatenate([large, *(overlay(large, heat) for heat in maps)], 1))
        heading, lead = ("", "") if made else (_SALIENCY, _SALIENCY_LEAD)
        columns = ("image", *(entry.name for entry in shown))
        name, caption = f"saliency-{task}.jpg", f"{task}, unperturbed"
        made.append(ReportImage(name, caption, sheet, heading, columns=columns, lead=lead))
    return made


def _animations(recorded: list[EvaluationJob], table: pl.DataFrame) -> list[ReportImage]:
    """The same initial state with every encoder, side by side: unperturbed and perturbed."""
    made: list[ReportImage] = []
    for condition in shown_conditions(recorded):
        for task in dict.fromkeys(job.task for job in recorded):
            same = [c for c in recorded if (c.task, c.condition) == (task, condition)]
            if not same:
                continue
            by_name = {job.under_test: job for job in same}
            frames = [frames_of(job) for job in by_name.values()]
            columns = tuple(f"{n}: {ended(job, table)}" for n, job in by_name.items())
            caption = f"{task}, {condition_words(condition)}"
            data = _side_by_side(frames)
            heading = "" if made else "Rollouts from the same initial state, side by side"
            name = f"{task}-{condition.name}.webp"
            still = jpeg_of(np.concatenate([of_one[-1] for of_one in frames], 1))
            made.append(ReportImage(name, caption, data, heading, columns=columns, printed=still))
    return made


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
