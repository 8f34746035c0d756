"""Tables, figure and notes of the suite ``offline``: action error of policies on held-out episodes.

Legend of shapes: S policies, C conditions, E held-out episodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.intervals.cluster_bootstrap import Interval, cluster_mean
from dynaflip.eval.intervals.hierarchical_bootstrap import Rate
from dynaflip.eval.intervals.holm import family_verdicts
from dynaflip.eval.intervals.ranking import probability_best
from dynaflip.eval.metrics.action_scale import explained_share
from dynaflip.eval.plots import Gain, condition_name, gain_figure, gain_words
from dynaflip.platform.evaluation.encoders_under_test import NO_IMAGE, TRAINED
from dynaflip.platform.evaluation.report.gains import main_baseline
from dynaflip.platform.evaluation.report.html_page import ReportImage, png_of
from dynaflip.platform.evaluation.report.tables import Section
from dynaflip.platform.evaluation.report.verdict import (
    ACTION_ERROR,
    alone,
    counted,
    finding_of,
    sentence,
    spoken,
    subject_name,
)
from dynaflip.platform.evaluation.results import IN_DISTRIBUTION, OUT_OF_DISTRIBUTION, TOGETHER
from dynaflip.platform.evaluation.results_table import SCHEMA

CLEAR, UNCLEAR, UNKNOWN = ("better", "worse"), "not distinguishable", "one episode"
# Titles of the groups of conditions, whose names in metrics are those of the other suites.
TITLES = {
    IN_DISTRIBUTION: "held-out episodes as they were recorded",
    OUT_OF_DISTRIBUTION: "perturbed, mean over single factors",
    TOGETHER: "all perturbations at once",
}
# Groups in the verdict's sentence.
WHERE = {IN_DISTRIBUTION: "held-out episodes as recorded", OUT_OF_DISTRIBUTION: "perturbed images"}
COLUMNS = (
    "", "action error, sigma", "variance explained, %", f"this - {TRAINED}, sigma",
    "verdict", "verdict, Holm", "best of all, %",
)  # fmt: skip
_FEW = 5  # held-out episodes, below which a note says so
_COLOURS = ("#1b7f79", "#d08a2e", "#5b6fb5", "#9a9a9a", "#b3476b", "#6a9a3c", "#444444")
Pair = tuple[str, int]  # (factor, level)


def groups_of(table: pl.DataFrame) -> dict[str, list[Pair]]:
    """Conditions by group, in the order of the table; empty groups are left out."""
    found = list(table.select("factor", "level").unique(maintain_order=True).iter_rows())
    by_name = {
        IN_DISTRIBUTION: [one for one in found if one[0] == UNPERTURBED],
        OUT_OF_DISTRIBUTION: [one for one in found if one[0] not in (UNPERTURBED, ALL_FACTORS)],
        TOGETHER: [one for one in found if one[0] == ALL_FACTORS],
    }
    return {name: chosen for name, chosen in by_name.items() if chosen}


@dataclass(frozen=True)
class Compared:
    """An encoder's policies on a group of conditions."""

    error: Interval  # sigma
    explained: float  # share
    gap: Interval | None  # its error less the trained one's; None for that one itself

    def verdict(self) -> str:
        """Of the encoder under test beside this one."""
        return "-" if self.gap is None else verdict_of_gap(self.gap)


def verdict_of_gap(gap: Interval) -> str:
    """Of an encoder, by how much higher another one's error is."""
    if not np.isfinite(gap.low):
        return UNKNOWN
    return CLEAR[0] if gap.low > 0 else CLEAR[1] if gap.high < 0 else UNCLEAR


def by_episode(table: pl.DataFrame, encoder: str, conditions: list[Pair]) -> np.ndarray:
    """Errors (S, C, E) of an encoder's policies, in the order of the conditions."""
    own = table.filter(pl.col("encoder") == encoder)
    shape = (own["seed"].n_unique(), -1)
    parts = []
    for factor, level in conditions:
        rows = own.filter((pl.col("factor") == factor) & (pl.col("level") == level))
        parts.append(rows.sort("seed", "episode")["action_error"].to_numpy().reshape(shape))
    return np.stack(parts, axis=1)


def compare(table: pl.DataFrame, conditions: list[Pair]) -> dict[str, Compared]:
    """Every encoder on some conditions, paired with the trained one by episode.

    An episode's value is its mean over moments, conditions and policies; episodes are resampled.
    """
    found = {}
    first = by_episode(table, TRAINED, conditions).mean((0, 1))
    for name in table["encoder"].unique(maintain_order=True):
        values = by_episode(table, name, conditions).mean((0, 1))
        clusters = np.arange(len(values))
        gap = None if name == TRAINED else cluster_mean(values - first, clusters)
        found[name] = Compared(
            cluster_mean(values, clusters), _explained(table, name, conditions), gap
        )
    return found


def comparison_sections(table: pl.DataFrame) -> tuple[list[Section], dict[str, float]]:
    """A table for each group of conditions, and the metrics."""
    sections: list[Section] = []
    metrics: dict[str, float] = {}
    for group, conditions in groups_of(table).items():
        compared = compare(table, conditions)
        episodes = compared[TRAINED].error.clusters
        section = Section(f"Action error, {TITLES[group]}: {episodes} episodes", columns=COLUMNS)
        together = _holm(table, conditions, compared)
        encoders = [name for name in compared if name != NO_IMAGE]
        errors = {name: by_episode(table, name, conditions) for name in encoders}
        best: dict[str, float] = {}
        if episodes > 1:  # of one episode no other can be drawn
            best = probability_best({name: -one[:, None] for name, one in errors.items()})
        for name, one in compared.items():
            gap = "-" if one.gap is None else interval_text(one.gap, sign=True)
            row = [name, interval_text(one.error), f"{100 * one.explained:.1f}", gap, one.verdict()]
            chance = f"{100 * best[name]:.0f}" if name in best else "-"
            section.rows.append([*row, together.get(name, "-"), chance])
            metrics |= _metrics(group, name, one)
        sections.append(section)
    return sections, metrics


def condition_section(table: pl.DataFrame) -> Section:
    """Errors by condition, a column per encoder."""
    names = table["encoder"].unique(maintain_order=True).to_list()
    section = Section("Action error in sigma by condition", columns=("", *names))
    for factor, level in table.select("factor", "level").unique(maintain_order=True).iter_rows():
        compared = compare(table, [(factor, level)])
        label = condition_name(factor) + (f", level {level}" if level else "")
        section.rows.append([label, *(interval_text(compared[name].error) for name in names)])
    return section


def verdict_of(table: pl.DataFrame, encoder: str, data: str, split: str) -> list[str]:
    """The result in sentences: perturbed images first, and the initialisation if it is there.

    Args:
        table: a row per policy, condition and episode.
        encoder: setting of the encoder under test.
        data: name of the data set.
        split: of the perturbations.
    """
    names = [
        n for n in table["encoder"].unique(maintain_order=True) if n not in (TRAINED, NO_IMAGE)
    ]
    main = main_baseline(names, TRAINED)
    found = groups_of(table)
    lines: list[str] = []
    for group in (OUT_OF_DISTRIBUTION, IN_DISTRIBUTION):
        if group not in found:
            continue
        compared = compare(table, found[group])
        together = _holm(table, found[group], compared)
        where = f"on {data}'s {WHERE[group]}" + (f" ({split})" if group != IN_DISTRIBUTION else "")
        policies = table.filter(pl.col("encoder") == TRAINED)["seed"].n_unique()
        design = f"{counted(compared[TRAINED].error.clusters, 'held-out episode')}, "
        design += counted(policies, "policy", "policies")
        for name in sorted(names, key=lambda name: name != main):
            gap = compared[name].gap
            assert gap is not None, "all but the one under test have a gap"
            told = finding_of(
                gap, where=where, subject=subject_name(encoder), other=name, design=design, scale=1
            )
            if len(names) > 1:
                told = replace(told, corrected=together.get(name), comparisons=len(names))
            lines.append(sentence(told, ACTION_ERROR))
        if not names:
            error = interval_text(compared[TRAINED].error)
            told_alone = f"has an action error of {error} sigma"
            lines.append(alone(where, subject_name(encoder), told_alone, design))
    return lines


def figures_of(table: pl.DataFrame) -> list[ReportImage]:
    """Gain by perturbation, and the errors themselves."""
    gains = []
    for label, conditions in gain_rows(table).items():
        for name, one in compare(table, conditions).items():
            if one.gap is not None and name != NO_IMAGE:
                gains.append(Gain(label, spoken(name), one.gap.value, one.gap.low, one.gap.high))
    made = []
    if gains:
        figure = png_of(gain_figure(gains, "sigma of action error", "Gain by perturbation"))
        caption = (
            "The encoder under test beside each other one: right of 0 its action error is lower. "
            "Points are means over held-out episodes, lines their 95 % intervals."
        )
        words = gain_words(gains, "sigma of action error")
        made.append(ReportImage("gains.png", caption, figure, "Gain by perturbation", words))
    errors = png_of(error_figure(table))
    caption = "Action error by condition; lower is better."
    made.append(ReportImage("action_error.png", caption, errors, "Action error by condition"))
    return made


def gain_rows(table: pl.DataFrame) -> dict[str, list[Pair]]:
    """Groups of conditions, then each perturbation over its levels."""
    found = groups_of(table)
    rows = {TITLES[group]: conditions for group, conditions in found.items()}
    for factor, level in found.get(OUT_OF_DISTRIBUTION, []):
        rows.setdefault(condition_name(factor), []).append((factor, level))
    return rows


def error_figure(table: pl.DataFrame) -> Any:
    """Action error by condition with 95 % intervals, a bar per encoder."""
    from matplotlib.figure import Figure

    names = table["encoder"].unique(maintain_order=True).to_list()
    conditions = list(table.select("factor", "level").unique(maintain_order=True).iter_rows())
    figure = Figure(figsize=(max(7.0, 1.3 * len(conditions)), 4.5), layout="constrained")
    panel = figure.subplots()
    width = 0.8 / len(names)
    compared = [compare(table, [one]) for one in conditions]
    for index, name in enumerate(names):
        errors = [one[name].error for one in compared]
        heights = np.array([error.value for error in errors])
        spread = np.array([[e.value - e.low, e.high - e.value] for e in errors]).T
        panel.bar(
            np.arange(len(conditions)) + (index - (len(names) - 1) / 2) * width,
            heights,
            width,
            yerr=np.nan_to_num(spread).clip(min=0),
            color=_COLOURS[index % len(_COLOURS)],
            error_kw={"linewidth": 0.8},
            label=name,
        )
    labels = [condition_name(f) + (f"\nlevel {level}" if level else "") for f, level in conditions]
    panel.set_xticks(np.arange(len(conditions)), labels, rotation=30, ha="right", fontsize=8)
    blind = "training's mean action"
    panel.axhline(_error_of_mean(table), color="black", linewidth=1, linestyle=":", label=blind)
    panel.set_ylabel("action error, sigma (lower is better)")
    panel.legend(fontsize=8, loc="lower right")
    panel.grid(axis="y", alpha=0.3)
    return figure


def offline_results(
    table: pl.DataFrame, weights: dict[str, str], *, proprioception: bool, **about: str
) -> pl.DataFrame:
    """Rows of the tidy table: a policy's error under a condition, with its interval over episodes.

    Args:
        table: a row per policy, condition and episode.
        weights: digest of an encoder → its URI.
        proprioception: whether policies are given any.
        about: ``suite``, ``run``, ``split`` and ``environment``, which is the data set's name.
    """
    rows: list[dict[str, Any]] = []
    keys = ("encoder", "encoder_digest", "seed", "factor", "level")
    for key, episodes in table.group_by(*keys, maintain_order=True):
        name, digest, seed, factor, level = key
        row = {**about, "encoder": name, "weights": weights.get(str(digest)), "digest": digest}
        row |= {"proprioception": proprioception, "seed": seed, "factor": factor, "level": level}
        error = cluster_mean(episodes["action_error"].to_numpy(), np.arange(len(episodes)))
        ends = {"low": _finite(error.low), "high": _finite(error.high), "count": error.clusters}
        row_of = {"metric": "action_error", "unit": "sigma", "value": error.value, **ends}
        rows.append({**row, **row_of})
        share = {"metric": "variance_explained", "unit": "share", "count": error.clusters}
        rows.append({**row, **share, "value": _share(episodes), "chance": 0.0})
    return pl.DataFrame(rows, schema=SCHEMA)


def notes_of(table: pl.DataFrame) -> list[str]:
    """How to read the tables."""
    notes = [
        "Action error is the root mean square over the entries of an action, each in units of its "
        "standard deviation (sigma) over the training episodes, averaged over moments; lower is "
        f"better. Always doing training's mean action has {_error_of_mean(table):.2f} sigma on "
        "these episodes, and explains 0 % of the variance. It is no success: nothing was rolled "
        "out, and states that a policy reaches by its own errors are never shown.",
        "Intervals are 95 %, by bootstrap over held-out episodes; an episode's value is its mean "
        "over moments and policies, and differences are paired. They leave out how much other "
        "training episodes or policies would differ. Verdicts are about the encoder under test "
        "beside the row's: better means that its error is lower.",
        "Holm's correction keeps the chance of any false verdict among the comparisons of a table "
        "at 5 %. Best of all is the share of the resamples of policies and episodes in which an "
        f"encoder has the lowest error. {NO_IMAGE.capitalize()} is no encoder, and in neither.",
    ]
    if (episodes := table.select("recording", "episode").n_unique()) < _FEW:
        notes.append(
            f"note: {episodes} held-out episode{'s' * (episodes > 1)}: too few to tell encoders "
            "apart but by large gaps; record more, or set a larger --heldout_share if pretraining "
            "has not seen this data set"
        )
    if NO_IMAGE in table["encoder"].unique():
        notes.append(
            f"The policies {NO_IMAGE} are given all but the image (proprioception, and the task "
            "where there are several): what an encoder does not gain over them, its images do not "
            "tell."
        )
        compared = compare(table, [(UNPERTURBED, 0)])
        gap = compared[NO_IMAGE].gap
        if gap is not None and not gap.low > 0:
            with_image, without = (
                interval_text(compared[name].error) for name in (TRAINED, NO_IMAGE)
            )
            notes.append(
                f"note: with the image the error of {TRAINED} is not clearly lower than without "
                f"({with_image} and {without} sigma as "
                "recorded): these episodes are too few, or their actions can be guessed from "
                "proprioception; more training episodes, or --proprioception '[]', tell encoders "
                "apart"
            )
    return notes


def _explained(table: pl.DataFrame, encoder: str, conditions: list[Pair]) -> float:
    wanted = pl.DataFrame(conditions, schema=["factor", "level"], orient="row")
    own = table.filter(pl.col("encoder") == encoder)
    return _share(own.join(wanted.cast({"level": pl.Int64}), on=["factor", "level"]))


def _share(rows: pl.DataFrame) -> float:
    squared, of_mean = (rows[name].to_numpy() for name in ("squared", "squared_of_mean"))
    return explained_share(np.sqrt(squared), np.sqrt(of_mean))


def _error_of_mean(table: pl.DataFrame) -> float:
    rows = table.filter(pl.col("factor") == UNPERTURBED)
    return float(rows["error_of_mean"].to_numpy().mean())


def _holm(
    table: pl.DataFrame, conditions: list[Pair], compared: dict[str, Compared]
) -> dict[str, str]:
    """Verdicts on the encoder under test that hold together."""
    first = by_episode(table, TRAINED, conditions).mean((0, 1))
    gaps = {}
    for name, one in compared.items():
        if one.gap is not None and name != NO_IMAGE:
            values = by_episode(table, name, conditions).mean((0, 1)) - first
            gaps[name] = values, one.gap
    return verdicts_together(gaps)


def verdicts_together(gaps: dict[str, tuple[np.ndarray, Interval]]) -> dict[str, str]:
    """Verdicts with Holm's correction; one is given only where the interval's own says the same.

    Args:
        gaps: name of a comparison → the gap in error of each episode, (E,), and their mean's
            interval. Those of a single episode get none.
    """
    rates = {}
    for name, (values, gap) in gaps.items():
        if gap.clusters < 2:
            continue
        error = float(values.std(ddof=1) / np.sqrt(len(values)))
        rates[name] = Rate(
            gap.value, gap.low, gap.high, 1, len(values), error, len(values) - 1, len(values)
        )
    verdicts = family_verdicts(rates) if rates else {}
    return {n: v if v == verdict_of_gap(gaps[n][1]) else UNCLEAR for n, v in verdicts.items()}


def _metrics(group: str, name: str, one: Compared) -> dict[str, float]:
    place = f"{group}/{name}".replace(" ", "_")
    intervals = {f"action_error/{place}": one.error}
    if one.gap is not None:
        intervals[f"action_error/{place}/this_minus_trained"] = one.gap
    metrics = {f"variance_explained/{place}": one.explained}
    for key, interval in intervals.items():
        metrics[key] = interval.value
        if np.isfinite(interval.low):
            metrics |= {f"{key}/low": interval.low, f"{key}/high": interval.high}
    return metrics


def interval_text(interval: Interval, *, sign: bool = False) -> str:
    """Value and interval to three decimals; the value alone where there is no interval."""
    form = "+.3f" if sign else ".3f"
    if not np.isfinite(interval.low):
        return f"{interval.value:{form}}"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
