"""Images of the rollouts' report: bars by condition, first frames, saliency, animations."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import polars as pl

from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.intervals.hierarchical_bootstrap import success_rate
from dynaflip.eval.metrics.saliency import overlay
from dynaflip.eval.plots import condition_name
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import TRAINED, EncoderUnderTest
from dynaflip.platform.evaluation.plan import EvaluationJob
from dynaflip.platform.evaluation.report.html_page import jpeg_of, png_of
from dynaflip.platform.evaluation.results import successes
from dynaflip.platform.evaluation.worker import SaliencyMaps

_COLOURS = ("#1b7f79", "#d08a2e", "#5b6fb5", "#9a9a9a", "#b3476b", "#6a9a3c", "#444444")


def images_of(
    config: RolloutConfig,
    tested: list[EncoderUnderTest],
    jobs: list[EvaluationJob],
    table: pl.DataFrame,
    saliency: dict[str, SaliencyMaps],
) -> list[tuple[str, str, bytes]]:
    """(file name, caption, bytes) of every image, for the report and for MLflow."""
    made = [("success.png", "Success by condition", png_of(_bars(config, table)))]
    recorded = [
        job
        for job in jobs
        if job.policy.use_proprioception == config.proprioception[0]
        and job.recorded
        and cache.animation_path(job).is_file()
    ]
    trained = [job for job in recorded if job.under_test == TRAINED]
    if trained:
        caption = "First frame of every job: tasks down, conditions across: " + ", ".join(
            dict.fromkeys(job.condition.name for job in trained)
        )
        made.append(("cells.jpg", caption, jpeg_of(_sheet(trained))))
    if saliency:
        shown = [entry for entry in tested if entry.encoders[0].folder is not None]
        names = ", ".join(entry.name for entry in shown)
        caption = f"Saliency, a row per task: the image, then {names}"
        made.append(("saliency.jpg", caption, jpeg_of(_saliency_sheet(shown, saliency))))
    return made + _animations(recorded)


def _bars(config: RolloutConfig, table: pl.DataFrame) -> Any:
    from matplotlib.figure import Figure

    names = table["arm"].unique(maintain_order=True).to_list()
    given = config.proprioception[0]
    by_name = {name: successes(table, name, proprioception=given) for name in names}
    conditions = by_name[names[0]].conditions
    figure = Figure(figsize=(max(7.0, 1.1 * len(conditions)), 4.5), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(names)
    for index, (name, values) in enumerate(by_name.items()):
        rates = [success_rate(values.of_conditions([c])) for c in conditions]
        heights = np.array([100 * rate.value for rate in rates])
        spread = np.array([[r.value - r.low, r.high - r.value] for r in rates]).T * 100
        panel.bar(
            np.arange(len(conditions)) + (index - (len(names) - 1) / 2) * width,
            heights,
            width,
            yerr=spread.clip(min=0),
            color=_COLOURS[index % len(_COLOURS)],
            error_kw={"linewidth": 0.8},
            label=name,
        )
    labels = [condition_name(f) + (f"\nlevel {level}" if level else "") for f, level in conditions]
    panel.set_xticks(np.arange(len(conditions)), labels, rotation=40, ha="right", fontsize=8)
    panel.set_ylabel("success, %")
    panel.set_ylim(0, 100)
    panel.legend(fontsize=8)
    panel.grid(axis="y", alpha=0.3)
    return figure


def _frames(job: EvaluationJob) -> list[np.ndarray]:
    from PIL import Image, ImageSequence

    with Image.open(cache.animation_path(job)) as animation:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(animation)]


def _sheet(jobs: list[EvaluationJob]) -> np.ndarray:
    """(rows · H, columns · W, 3): a row per task, a column per condition."""
    tasks = dict.fromkeys(job.task for job in jobs)
    rows = [np.concatenate([_frames(c)[0] for c in jobs if c.task == task], 1) for task in tasks]
    return np.concatenate(rows, 0)


def _saliency_sheet(shown: list[EncoderUnderTest], saliency: dict[str, SaliencyMaps]) -> np.ndarray:
    """(rows · H, columns · W, 3): each task's first image and every encoder's saliency over it."""
    rows = []
    for maps_of_task in saliency.values():
        image = maps_of_task.images[0]
        maps = [maps_of_task.saliency[entry.encoders[0].digest][0] for entry in shown]
        rows.append(np.concatenate([image, *(overlay(image, heat) for heat in maps)], 1))
    return np.concatenate(rows, 0)


def _animations(recorded: list[EvaluationJob]) -> list[tuple[str, str, bytes]]:
    """The same initial state with every encoder, side by side: unperturbed and all factors."""
    made = []
    conditions = dict.fromkeys(job.condition for job in recorded)
    perturbed = [c for c in conditions if c.factor != UNPERTURBED]
    together = [c for c in perturbed if c.factor == ALL_FACTORS]
    shown = [c for c in conditions if c.factor == UNPERTURBED]
    for condition in shown + (together or perturbed)[:1]:
        for task in dict.fromkeys(job.task for job in recorded):
            same = [c for c in recorded if (c.task, c.condition) == (task, condition)]
            if not same:
                continue
            by_name = {job.under_test: _frames(job) for job in same}
            caption = f"{task}, {condition_name(condition.factor)}: {', '.join(by_name)}"
            name = f"{task}-{condition.name}.gif"
            made.append((name, caption, _side_by_side(list(by_name.values()))))
    return made


def _side_by_side(animations: list[list[np.ndarray]]) -> bytes:
    from PIL import Image

    length = max(map(len, animations))
    rows = [
        Image.fromarray(
            np.concatenate([frames[min(i, len(frames) - 1)] for frames in animations], 1)
        )
        for i in range(length)
    ]
    buffer = io.BytesIO()
    rows[0].save(buffer, "GIF", save_all=True, append_images=rows[1:], duration=60, loop=0)
    return buffer.getvalue()
