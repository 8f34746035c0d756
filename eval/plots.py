"""Figures of an evaluation: error by factor, retrieval against chance, examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.labelled_frames import TARGETS, UNITS, LabelledFrames
from dynaflip.eval.metrics.probe_report import MEAN, ProbeReport

RECORDED = "recorded"
ONE_FACTOR = "one"  # the pool of all frames that show a single factor
CONDITION_NAMES = {
    RECORDED: "held-out recordings",
    UNPERTURBED: "unperturbed",
    ALL_FACTORS: "all factors at once",
    ONE_FACTOR: "one factor at a time",
}
TARGET_NAMES = {"hand": "end effector", "object": "object", "joints": "arm's joints"}
SCOPE_NAMES = {
    "all": "among all",
    "task": "same task",
    "clip": "same clip",
    "all_swapped": "among all, other clip's condition",
    "task_swapped": "same task, other clip's condition",
}
_COLOURS = ("#1b7f79", "#d08a2e")


def condition_name(condition: str) -> str:
    """How a condition is called in tables and images."""
    return CONDITION_NAMES.get(condition, condition.replace("_", " "))


def probe_figure(report: ProbeReport, encoders: tuple[str, str]) -> Any:
    """Error by condition, a panel a target: two encoders' points with 95 % intervals.

    A black line marks what predicting the task's mean would give. Errors span decades, so
    the axis is logarithmic, and points and not bars, which would start anywhere.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9), layout="constrained")
    panels = figure.subplots(len(TARGETS), 1, sharex=True)
    places = np.arange(len(report.conditions))
    for panel, target in zip(panels, TARGETS, strict=True):
        for index, (encoder, colour) in enumerate(zip(encoders, _COLOURS, strict=True)):
            errors = [report.score(target, c, encoder).error for c in report.conditions]
            values = np.array([interval.value for interval in errors])
            bounds = np.array([[i.value - i.low, i.high - i.value] for i in errors]).T
            panel.errorbar(
                places + 0.25 * (index - 0.5),
                values,
                yerr=np.nan_to_num(bounds).clip(min=0),
                fmt="o",
                markersize=7,
                capsize=3,
                label=encoder,
                color=colour,
            )
        means = [report.score(target, c, MEAN).error.value for c in report.conditions]
        panel.scatter(places, means, marker="_", s=500, color="black", label="task's mean")
        panel.set_ylabel(f"{TARGET_NAMES[target]}: error, {UNITS[target]}")
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        panel.tick_params(axis="y", which="minor", labelsize=7)
        panel.grid(axis="y", which="both", alpha=0.25)
    names = [condition_name(condition) for condition in report.conditions]
    panels[-1].set_xticks(places, names, rotation=30, ha="right")
    panels[0].legend(ncol=3, loc="upper right")
    panels[0].set_title("Linear probes from frozen features, fitted on unperturbed recordings")
    return figure


def retrieval_figure(reports: dict[str, dict[str, float]]) -> Any:
    """Top-1 retrieval of each encoder with 95 % intervals; a black tick marks chance.

    Args:
        reports: encoder → metrics of :func:`dynaflip.eval.retrieval.retrieval_report`.
    """
    from matplotlib.figure import Figure

    first = next(iter(reports.values()))
    scopes = [s for s in SCOPE_NAMES if f"retrieval/{s}/top1" in first]
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    places = np.arange(len(scopes))
    for index, ((name, metrics), colour) in enumerate(zip(reports.items(), _COLOURS, strict=True)):
        values = np.array([metrics[f"retrieval/{s}/top1"] for s in scopes])
        low = np.array([metrics.get(f"retrieval/{s}/low", np.nan) for s in scopes])
        high = np.array([metrics.get(f"retrieval/{s}/high", np.nan) for s in scopes])
        bounds = np.nan_to_num(np.stack([values - low, high - values])).clip(min=0)
        place = places + 0.4 * (index - 0.5)
        panel.bar(place, values, 0.4, yerr=bounds, label=name, color=colour, capsize=2)
    chance = [first[f"retrieval/{s}/chance"] for s in scopes]
    panel.scatter(places, chance, marker="_", s=600, color="black", label="chance")
    panel.set_xticks(places, [SCOPE_NAMES[s].replace(", ", ",\n") for s in scopes])
    panel.set_ylabel("top-1")
    panel.legend(ncol=3)
    panel.set_title("Which caption and flow belong to this image transition?")
    return figure


def contact_sheet(frames: LabelledFrames, tasks: int = 4) -> tuple[np.ndarray, list[str]]:
    """One moment of some tasks under every condition.

    Args:
        frames: rendered views.
        tasks: rows, the first so many tasks.

    Returns:
        An image (tasks · H, conditions · W, 3) uint8, and the columns' conditions.
    """
    conditions = list(dict.fromkeys(frames.condition.tolist()))
    rows = []
    for task in list(dict.fromkeys(frames.task.tolist()))[:tasks]:
        episode = frames.episode[frames.task == task][0]
        cells = []
        for condition in conditions:
            here = np.flatnonzero((frames.episode == episode) & (frames.condition == condition))
            cells.append(frames.images[here[len(here) // 2]])
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows, axis=0), conditions
