"""Figures of a sweep: confirmation, history, importance, parallel coordinates, Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynaflip.platform.sweep.config import UNITS
from dynaflip.platform.sweep.importance import kept_importances
from dynaflip.platform.sweep.space import Dimension, short_names
from dynaflip.platform.sweep.status import DONE, TrialStatus
from dynaflip.platform.sweep.table import shown_value, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    from dynaflip.platform.sweep.report import Report

_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9730d", "#8a8f98"
_STYLE: Any = {  # typed by matplotlib with the names of all its settings
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555",
    "axes.grid": True,
    "grid.color": "#e4e6ea",
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "svg.hashsalt": "dynaflip",  # equal figures are equal files
}
_WIDTH = 8.0  # inches


def figures(report: Report) -> dict[str, Figure]:
    """The figures that the finished trials allow, by name."""
    import matplotlib

    makers: dict[str, Callable[[Report], Figure | None]] = {
        "confirmation": _confirmation,
        "history": _history,
        "importance": _importance,
        "parallel_coordinates": _parallel_coordinates,
        "pareto_front": _pareto_front,
    }
    made = {}
    with matplotlib.rc_context(_STYLE):
        for name, make in makers.items():
            figure = make(report)
            if figure is not None:
                made[name] = figure
    return made


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _done(report: Report) -> list[TrialStatus]:
    return [t for t in report.stages[0].trials if t.state == DONE]


def _confirmation(report: Report) -> Figure | None:
    """Errors over seeds with intervals: one row a setting, each seed a dot."""
    confirmed = list(report.confirmed)
    if not confirmed:
        return None
    figure, axes = _figure(1.1 + 0.45 * len(confirmed))
    for row, c in enumerate(confirmed):
        colour = _GREY if c.setting == 0 else _BLUE
        seeds = list(c.scores.values())
        axes.plot(seeds, [row] * len(seeds), "o", color=colour, alpha=0.35, markersize=5)
        if not math.isnan(c.score.low):
            axes.plot([c.score.low, c.score.high], [row, row], color=colour, linewidth=2)
        axes.plot(c.score.value, row, "D", color=colour, markersize=7)
    axes.set_yticks(range(len(confirmed)), [c.title() for c in confirmed])
    axes.set_ylim(len(confirmed) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    said = "(less is better): mean, 95 % interval over seeds, each seed"
    axes.set_xlabel(f"error, {report.unit} {said}")
    return figure


def _history(report: Report) -> Figure | None:
    done = _done(report)
    if not done:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(3.2)
    numbers, scores = [t.number for t in done], [t.scores[0] for t in done]
    axes.plot(numbers, scores, "o", color=_BLUE, alpha=0.7, label="trial")
    best = np.minimum.accumulate(scores)
    axes.step(numbers, best, where="post", color=_ORANGE, label="best so far")
    papers = next((t.scores[0] for t in done if t.number == 0), None)
    if papers is not None:
        axes.axhline(papers, color=_GREY, linestyle="--", linewidth=1, label="paper's weights")
    axes.set_xlabel("trial")
    axes.set_ylabel(_title(report))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9)
    return figure


def _importance(report: Report) -> Figure | None:
    shares = kept_importances(report.sweep)
    if not shares:
        return None
    rows = sorted(shares.items(), key=lambda item: item[1])
    figure, axes = _figure(0.9 + 0.35 * len(rows))
    bars = axes.barh([key for key, _ in rows], [100 * share for _, share in rows], color=_BLUE)
    axes.bar_label(bars, [f"{share:.0%}" for _, share in rows], padding=4)
    axes.set_xlim(0, 110)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("share of the scores' variance that the setting explains (fANOVA), %")
    return figure


def _parallel_coordinates(report: Report) -> Figure | None:
    """A line a trial through its values, on axes that span the searched ranges."""
    done, space = _done(report), report.sweep.space
    if len(done) < 2:
        return None
    figure, axes = _figure(3.6)
    scores = np.array([t.scores[0] for t in done])
    low, high = float(scores.min()), float(scores.max())
    scale = _colour_scale(low, high)
    colours = scale.to_rgba(scores)
    last = len(space)
    for i in np.argsort(-scores):  # the best on top
        trial = done[i]
        heights = [_height(d, trial.values.get(d.key)) for d in space]
        score = trial.scores[0]
        heights.append((score - low) / (high - low) if high > low else 0.5)
        best = trial.best
        axes.plot(
            range(last + 1),
            heights,
            color=colours[i],
            alpha=1.0 if best else 0.6,
            linewidth=2.5 if best else 1.2,
            linestyle="--" if trial.number == 0 else "-",
        )
    names = [*short_names(space), _title(report)]
    for x, d in enumerate(space):
        for height, text in _ticks(d):
            axes.text(x - 0.02, height, text, ha="right", va="center", fontsize=8, color="#444")
    for height, value in ((0.0, low), (1.0, high)):
        axes.text(last + 0.02, height, f"{value:.2f}", ha="left", va="center", fontsize=8)
    for x in range(last + 1):
        axes.axvline(x, color="#999", linewidth=0.8)
    axes.set_xticks(range(last + 1), names)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlim(-0.3, last + 0.25)
    axes.set_ylim(-0.12, 1.12)
    figure.colorbar(scale, ax=axes, label=_title(report), shrink=0.8, pad=0.02)
    return figure


def _pareto_front(report: Report) -> Figure | None:
    objectives = report.sweep.config.objectives
    done = _done(report)
    if len(objectives) < 2 or not done:
        return None
    figure, axes = _figure(4.0)
    for best, colour, label in ((False, _GREY, "trial"), (True, _ORANGE, "on the Pareto front")):
        points = [t.scores for t in done if t.best == best]
        if points:
            axes.plot(*np.array(points).T, "o", color=colour, label=label)
    axes.set_xlabel(f"{titles(objectives)[0]} (less is better)")
    axes.set_ylabel(f"{titles(objectives)[1]} (less is better)")
    axes.legend(frameon=False, fontsize=9)
    return figure


def _title(report: Report) -> str:
    first = report.sweep.config.objectives[0]
    return f"{first} error, {UNITS[first]}"


def _colour_scale(low: float, high: float) -> ScalarMappable:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(low, high if high > low else low + 1), "viridis")


def _height(dimension: Dimension, value: object) -> float:
    """Where a value stands in its searched range, 0…1; the paper's may lie outside."""
    if dimension.kind == "choice":
        return dimension.choices.index(value) / (len(dimension.choices) - 1)
    number, low, high = float(value), dimension.low, dimension.high  # type: ignore[arg-type]
    if dimension.kind == "log":
        number, low, high = math.log(number), math.log(low), math.log(high)
    return min(1.08, max(-0.08, (number - low) / (high - low)))


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    if dimension.kind == "choice":
        return [(_height(dimension, c), shown_value(c)) for c in dimension.choices]
    middle = (
        math.sqrt(dimension.low * dimension.high)
        if dimension.kind == "log"
        else (dimension.low + dimension.high) / 2
    )
    values: Sequence[float] = (dimension.low, middle, dimension.high)
    return [(_height(dimension, v), f"{v:.3g}") for v in values]
