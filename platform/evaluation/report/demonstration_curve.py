"""Success by number of demonstrations: a table, the gains at each number, and a curve.

At each number all encoders have the same demonstrations and meet the same initial states, so gains
are paired; fewer demonstrations are the first of more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import EXPERT, RANDOM_POLICY, TRAINED
from dynaflip.platform.evaluation.report.html_page import ReportImage, png_of
from dynaflip.platform.evaluation.report.rollout_tables import GIVEN, percent, points
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.results import (
    IN_DISTRIBUTION,
    OUT_OF_DISTRIBUTION,
    Comparison,
    compare_encoders,
    groups,
    metric_name,
    successes,
)

_COLOURS = ("#1b7f79", "#d08a2e", "#5b6fb5", "#9a9a9a", "#b3476b", "#6a9a3c", "#444444")
_GROUPS = (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION)

# Group of conditions → number of demonstrations → encoder → its success and the gain over it.
Curve = dict[str, dict[int, dict[str, Comparison]]]


def curve_of(
    config: RolloutConfig,
    names: list[str],
    table: pl.DataFrame,
    measure: str,
    *,
    proprioception: bool,
) -> Curve:
    """Every encoder at every number of demonstrations; empty where there is one number.

    Args:
        config: what was evaluated.
        names: of the encoders; policies without one learn from nothing and are left out.
        table: a row per episode.
        measure: column of the values.
        proprioception: of the policies.
    """
    curve: Curve = {}
    if not config.fewer_demonstrations:
        return curve
    encoders = [name for name in names if name not in (EXPERT, RANDOM_POLICY)]
    for number in (*sorted(config.fewer_demonstrations), config.demonstrations):
        by_name = {
            name: successes(
                table,
                name,
                proprioception=proprioception,
                measure=measure,
                demonstrations=number,
            )
            for name in encoders
        }
        for group, conditions in groups(by_name[TRAINED].conditions).items():
            if group in _GROUPS:
                compared = compare_encoders(by_name, TRAINED, conditions)
                curve.setdefault(group, {})[number] = compared
    return curve


def curve_sections(
    config: RolloutConfig, names: list[str], table: pl.DataFrame, measure: str, unit: str
) -> tuple[list[Section], dict[str, float]]:
    """Tables of the curves, and their metrics (``…/ENCODER/5_demonstrations``).

    Args:
        config, names, table, measure: as of :func:`curve_of`.
        unit: what the values are, for the title: ``Success %``.
    """
    sections: list[Section] = []
    metrics: dict[str, float] = {}
    for given in config.proprioception:
        curve = curve_of(config, names, table, measure, proprioception=given)
        for group, by_number in curve.items():
            heads = [f"{number} demonstrations" for number in by_number]
            rates = Section(
                f"{unit} by number of demonstrations, {group} ({GIVEN[given]})", [], ("", *heads)
            )
            gains = Section(
                f"Trained - this, points, by number of demonstrations, {group} ({GIVEN[given]})",
                [],
                ("", *heads),
            )
            for name in next(iter(by_number.values())):
                row = [compared[name] for compared in by_number.values()]
                rates.rows.append([name, *(percent(one.rate) for one in row)])
                shown = [
                    f"{points(one.difference)} ({one.difference.verdict()})"
                    for one in row
                    if one.difference is not None
                ]
                if shown:
                    gains.rows.append([name, *shown])
                key = f"{metric_name(measure, given, group)}/{name.replace(' ', '_')}"
                for number, one in zip(by_number, row, strict=True):
                    metrics[f"{key}/{number}_demonstrations"] = one.rate.value
            sections += [rates, gains] if gains.rows else [rates]
    return sections, metrics


def curve_images(
    config: RolloutConfig, names: list[str], table: pl.DataFrame, measure: str, unit: str
) -> list[ReportImage]:
    """The figure; nothing where there is one number.

    Args:
        config, names, table, measure, unit: as of :func:`curve_sections`.
    """
    curve = curve_of(config, names, table, measure, proprioception=config.proprioception[0])
    if not curve:
        return []
    caption = f"{unit} by number of demonstrations: higher is better; lines are 95 % intervals."
    drawn = png_of(_drawn(curve, unit))
    return [ReportImage("demonstrations.png", caption, drawn, "By number of demonstrations")]


def _drawn(curve: Curve, unit: str) -> Any:
    """A panel a group of conditions, a line an encoder, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(curve), 4.0), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(curve), sharey=True))
    for panel, (group, by_number) in zip(panels, curve.items(), strict=True):
        numbers = np.array(list(by_number))
        for index, name in enumerate(next(iter(by_number.values()))):
            rates = [compared[name].rate for compared in by_number.values()]
            heights = np.array([100 * rate.value for rate in rates])
            spread = np.array([[r.value - r.low, r.high - r.value] for r in rates]).T * 100
            # Apart by a little, so that intervals do not hide each other.
            panel.errorbar(
                numbers * (1 + 0.02 * index),
                heights,
                yerr=spread.clip(min=0),
                marker="o",
                capsize=3,
                color=_COLOURS[index % len(_COLOURS)],
                label=name,
            )
        panel.set_xscale("log")
        panel.set_xticks(numbers, [str(number) for number in numbers])
        panel.minorticks_off()
        panel.set_xlabel("demonstrations per task")
        panel.set_title(group, fontsize=10)
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(unit)
    panels[0].legend(fontsize=8)
    return figure
