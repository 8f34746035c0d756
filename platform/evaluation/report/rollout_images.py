"""Images of a policy evaluation: bars by condition, what every cell shows, rollouts in motion."""

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
from dynaflip.platform.evaluation.encoders_under_test import TRAINED, Arm
from dynaflip.platform.evaluation.plan import Cell
from dynaflip.platform.evaluation.report.html import jpeg_of, png_of
from dynaflip.platform.evaluation.results import successes
from dynaflip.platform.evaluation.rollout_config import RolloutConfig
from dynaflip.platform.evaluation.worker import Looked

_COLOURS = ("#1b7f79", "#d08a2e", "#5b6fb5", "#9a9a9a", "#b3476b", "#6a9a3c", "#444444")


def images_of(
    config: RolloutConfig,
    arms: list[Arm],
    cells: list[Cell],
    table: pl.DataFrame,
    looks: dict[str, Looked],
) -> list[tuple[str, str, bytes]]:
    """(file name, caption, bytes) of every image, for the report and for MLflow."""
    made = [("success.png", "Success by condition", png_of(_bars(config, table)))]
    recorded = [
        cell
        for cell in cells
        if cell.policy.use_proprioception == config.proprioception[0]
        and cell.recorded
        and cache.animation_path(cell).is_file()
    ]
    trained = [cell for cell in recorded if cell.arm == TRAINED]
    if trained:
        caption = "First image of every cell: tasks down, conditions across: " + ", ".join(
            dict.fromkeys(cell.condition.name for cell in trained)
        )
        made.append(("cells.jpg", caption, jpeg_of(_sheet(trained))))
    if looks:
        shown = [arm for arm in arms if arm.encoders[0].folder is not None]
        names = ", ".join(arm.name for arm in shown)
        caption = f"Where it looks, a row a task: the image, then {names}"
        made.append(("saliency.jpg", caption, jpeg_of(_gazes(shown, looks))))
    return made + _films(recorded)


def _bars(config: RolloutConfig, table: pl.DataFrame) -> Any:
    from matplotlib.figure import Figure

    arms = table["arm"].unique(maintain_order=True).to_list()
    given = config.proprioception[0]
    found = {arm: successes(table, arm, proprioception=given) for arm in arms}
    conditions = found[arms[0]].conditions
    figure = Figure(figsize=(max(7.0, 1.1 * len(conditions)), 4.5), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(arms)
    for index, (arm, values) in enumerate(found.items()):
        rates = [success_rate(values.of_conditions([c])) for c in conditions]
        heights = np.array([100 * rate.value for rate in rates])
        spread = np.array([[r.value - r.low, r.high - r.value] for r in rates]).T * 100
        panel.bar(
            np.arange(len(conditions)) + (index - (len(arms) - 1) / 2) * width,
            heights,
            width,
            yerr=spread.clip(min=0),
            color=_COLOURS[index % len(_COLOURS)],
            error_kw={"linewidth": 0.8},
            label=arm,
        )
    names = [condition_name(f) + (f"\nlevel {level}" if level else "") for f, level in conditions]
    panel.set_xticks(np.arange(len(conditions)), names, rotation=40, ha="right", fontsize=8)
    panel.set_ylabel("success, %")
    panel.set_ylim(0, 100)
    panel.legend(fontsize=8)
    panel.grid(axis="y", alpha=0.3)
    return figure


def _frames(cell: Cell) -> list[np.ndarray]:
    from PIL import Image, ImageSequence

    with Image.open(cache.animation_path(cell)) as film:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


def _sheet(cells: list[Cell]) -> np.ndarray:
    """(rows · H, columns · W, 3): a row a task, a column a condition."""
    tasks = dict.fromkeys(cell.task for cell in cells)
    rows = [np.concatenate([_frames(c)[0] for c in cells if c.task == task], 1) for task in tasks]
    return np.concatenate(rows, 0)


def _gazes(arms: list[Arm], looks: dict[str, Looked]) -> np.ndarray:
    """(rows · H, columns · W, 3): each task's first image and every arm's saliency over it."""
    rows = []
    for found in looks.values():
        image = found.images[0]
        maps = [found.saliency[arm.encoders[0].digest][0] for arm in arms]
        rows.append(np.concatenate([image, *(overlay(image, heat) for heat in maps)], 1))
    return np.concatenate(rows, 0)


def _films(recorded: list[Cell]) -> list[tuple[str, str, bytes]]:
    """The same initial state by every arm, side by side: unperturbed and under all factors."""
    made = []
    conditions = dict.fromkeys(cell.condition for cell in recorded)
    perturbed = [c for c in conditions if c.factor != UNPERTURBED]
    together = [c for c in perturbed if c.factor == ALL_FACTORS]
    shown = [c for c in conditions if c.factor == UNPERTURBED]
    for condition in shown + (together or perturbed)[:1]:
        for task in dict.fromkeys(cell.task for cell in recorded):
            same = [c for c in recorded if (c.task, c.condition) == (task, condition)]
            if not same:
                continue
            arms = {cell.arm: _frames(cell) for cell in same}
            caption = f"{task}, {condition_name(condition.factor)}: {', '.join(arms)}"
            name = f"{task}-{condition.name}.gif"
            made.append((name, caption, _side_by_side(list(arms.values()))))
    return made


def _side_by_side(films: list[list[np.ndarray]]) -> bytes:
    from PIL import Image

    length = max(map(len, films))
    frames = [
        Image.fromarray(np.concatenate([film[min(i, len(film) - 1)] for film in films], 1))
        for i in range(length)
    ]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=60, loop=0)
    return buffer.getvalue()
