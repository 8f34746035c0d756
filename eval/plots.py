"""Figures of an evaluation: gain by factor, heat map, error by factor, retrieval, examples.

Colours differ in lightness too, and what a colour says is written or drawn beside it, so that
figures survive a grey print.
"""

from __future__ import annotations

from dataclasses import dataclass
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
SERIES_COLOURS = ("#14506b", "#d08a2e", "#7a9e3f", "#b3476b", "#8a8a8a", "#7d6bb5", "#333333")
_MARKERS = "osD^vPX"


@dataclass(frozen=True)
class Gain:
    """Gain of an encoder over another one, with its 95 % interval."""

    row: str  # group of conditions or factor
    baseline: str
    value: float  # above 0 is better, in the figure's unit
    low: float  # NaN where there is no interval
    high: float

    @property
    def clear(self) -> bool:
        """True if the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class HeatMap:
    """Values by row and column; NaN where nothing was measured."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: np.ndarray  # (rows, columns)
    signed: bool  # differences, around 0


def gain_figure(gains: list[Gain], unit: str, title: str) -> Any:
    """Gain by factor: a point with its interval for each baseline, filled where it leaves out 0.

    Args:
        gains: rows in the order that they are drawn, from the top.
        unit: of the values, for the axis.
        title: above the figure.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    rows = list(dict.fromkeys(gain.row for gain in gains))
    baselines = list(dict.fromkeys(gain.baseline for gain in gains))
    height = 1.5 + len(rows) * (0.2 + 0.11 * len(baselines))
    figure = Figure(figsize=(9.5, height), layout="constrained")
    panel = figure.subplots()
    for index, baseline in enumerate(baselines):
        own = [gain for gain in gains if gain.baseline == baseline]
        colour, marker = (kinds[index % len(kinds)] for kinds in (SERIES_COLOURS, _MARKERS))
        offset = 0.7 * ((index + 0.5) / len(baselines) - 0.5)
        for gain in own:
            place = rows.index(gain.row) + offset
            if np.isfinite(gain.low):
                panel.plot([gain.low, gain.high], [place, place], color=colour, linewidth=1.8)
            panel.plot(
                gain.value, place, marker, color=colour, markersize=6,
                markerfacecolor=colour if gain.clear else "white",
            )  # fmt: skip
        panel.plot([], [], marker, color=colour, label=f"over {baseline}")
    panel.axvline(0, color="black", linewidth=1)
    panel.set_yticks(np.arange(len(rows)), rows)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    for place in np.arange(len(rows) - 1) + 0.5:
        panel.axhline(place, color="#dddddd", linewidth=0.8)
    panel.grid(axis="x", alpha=0.3)
    panel.set_xlabel(f"gain, {unit} (right of 0 is better); filled where the interval leaves out 0")
    panel.set_title(title, loc="left", fontsize=11)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper right",
                  ncol=min(len(baselines), 3), frameon=False)  # fmt: skip
    return figure


def gain_words(gains: list[Gain], unit: str) -> str:
    """The figure in words, for those who cannot see it."""
    told = []
    for gain in gains:
        ends = f" [{gain.low:+.1f}, {gain.high:+.1f}]" if np.isfinite(gain.low) else ""
        told.append(f"{gain.row}, over {gain.baseline}: {gain.value:+.1f}{ends}")
    return f"Gain in {unit}. " + "; ".join(told)


def heat_figure(maps: list[HeatMap]) -> Any:
    """Values as colours and numbers, a panel a map.

    Returns:
        A matplotlib figure.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    width = sum(1.4 + 0.95 * len(one.columns) for one in maps)
    rows = max(len(one.rows) for one in maps)
    figure = Figure(figsize=(max(6.0, 1.6 + width), 1.5 + 0.42 * rows), layout="constrained")
    panels = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for panel, one in zip(panels, maps, strict=True):
        most = max(float(np.nanmax(np.abs(one.values), initial=0)), 20.0)
        low, high = (-most, most) if one.signed else (0.0, 100.0)
        colours = colormaps["PuOr_r" if one.signed else "Blues"]
        panel.imshow(one.values, colours, vmin=low, vmax=high, aspect="auto")
        for (row, column), value in np.ndenumerate(one.values):
            if not np.isfinite(value):
                continue
            shade = colours((value - low) / (high - low))
            dark = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 0.5
            text = f"{value:+.0f}" if one.signed else f"{value:.0f}"
            panel.text(column, row, text, ha="center", va="center",
                       color="white" if dark else "black")  # fmt: skip
        panel.set_xticks(np.arange(len(one.columns)), one.columns, rotation=30, ha="right")
        panel.set_title(one.title, fontsize=11)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    panels[0].set_yticks(np.arange(len(maps[0].rows)), maps[0].rows)
    return figure


def heat_words(maps: list[HeatMap]) -> str:
    """The figure in words, for those who cannot see it."""
    told = []
    for one in maps:
        rows = []
        for name, values in zip(one.rows, one.values, strict=True):
            form = "+.0f" if one.signed else ".0f"
            cells = zip(one.columns, values, strict=True)
            rows.append(f"{name}: {', '.join(f'{c} {v:{form}}' for c, v in cells if v == v)}")
        told.append(f"{one.title}. {'; '.join(rows)}.")
    return " ".join(told)


def condition_name(condition: str) -> str:
    """Name of a condition in tables and images."""
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
