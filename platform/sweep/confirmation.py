"""Results of the confirmation: scores over seeds, with intervals.

The best of many noisy trials looks better than it is; training it again with other seeds does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from scipy import special

from dynaflip.eval.intervals.cluster_bootstrap import LEVEL, Interval
from dynaflip.platform.sweep.study import SEARCH, trial_name

PAPER = "paper's weights"


@dataclass(frozen=True)
class Confirmed:
    """One setting, trained with several seeds that had no part in choosing it."""

    setting: int  # number of the search's trial; 0 has the paper's weights
    scores: dict[int, float]  # seed → score
    names: dict[int, str]  # seed → trial
    missing: int  # seeds that failed, or are not trained yet
    score: Interval  # over seeds, Student's
    difference: Interval  # minus the paper's weights, same seeds; negative is better

    def title(self) -> str:
        """Its name for people."""
        return PAPER if self.setting == 0 else trial_name(SEARCH, self.setting)

    def better(self) -> bool:
        """True if it beats the paper's weights beyond noise."""
        return self.setting != 0 and self.difference.high < 0


def confirmed_of(trials: Sequence[FrozenTrial], settings: Sequence[int]) -> list[Confirmed]:
    """Scores over seeds of the chosen settings, best mean first, those with missing seeds last.

    Otherwise a setting with one lucky seed left would win.

    Args:
        trials: of the confirmation.
        settings: numbers of the search's trials, 0 among them.
    """
    scores: dict[int, dict[int, float]] = {setting: {} for setting in settings}
    names: dict[int, dict[int, str]] = {setting: {} for setting in settings}
    queued: dict[int, set[int]] = {setting: set() for setting in settings}
    for trial in trials:
        setting, seed = trial.user_attrs["setting"], trial.user_attrs["seed"]
        if setting not in scores:
            continue
        queued[setting].add(seed)
        if trial.state == TrialState.COMPLETE:
            scores[setting][seed] = trial.values[0]
            names[setting][seed] = trial.user_attrs["name"]
    papers = scores[0]
    found = []
    for setting, by_seed in scores.items():
        shared = sorted(set(by_seed) & set(papers))
        gaps = [by_seed[seed] - papers[seed] for seed in shared]
        found.append(
            Confirmed(
                setting,
                by_seed,
                names[setting],
                len(queued[setting] - set(by_seed)),
                student_interval(list(by_seed.values()), least=0.0),  # an error is not negative
                student_interval(gaps),
            )
        )
    found = [c for c in found if c.scores]
    return sorted(found, key=lambda c: (c.missing > 0, c.score.value))


def student_interval(
    values: Sequence[float], level: float = LEVEL, least: float = -math.inf
) -> Interval:
    """Mean and Student's t interval of independent values; bounds are NaN for fewer than two.

    Args:
        values: the measurements.
        level: coverage.
        least: value that the mean cannot be below; what lies beyond is cut off.
    """
    number = len(values)
    if number == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(np.mean(values))
    if number < 2:
        return Interval(mean, math.nan, math.nan, number)
    t = float(special.stdtrit(number - 1, (1 + level) / 2))
    half = t * float(np.std(values, ddof=1)) / math.sqrt(number)
    return Interval(mean, max(least, mean - half), mean + half, number)


def seed_noise(confirmed: Sequence[Confirmed]) -> tuple[float, int]:
    """Standard deviation between seeds, pooled over settings, with its degrees of freedom."""
    squares, freedom = 0.0, 0
    for c in confirmed:
        values = np.array(list(c.scores.values()))
        squares += float(np.square(values - values.mean()).sum())
        freedom += len(values) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)


def confirmation_table(confirmed: Sequence[Confirmed], unit: str = "cm") -> list[list[str]]:
    """Rows of the table, header first: setting, seeds, mean, difference to the paper's weights."""
    gap = f"minus the paper's weights, {unit} [95 %]"
    rows = [["setting", "seeds", f"error {unit} [95 %]", gap]]
    for c in confirmed:
        gap = "" if c.setting == 0 else shown(c.difference, "+")
        number = len(c.scores)
        seeds = f"{number} of {number + c.missing}" if c.missing else str(number)
        rows.append([c.title(), seeds, shown(c.score), gap])
    return rows


def verdict(confirmed: Sequence[Confirmed], unit: str = "cm") -> str:
    """Sentence on the best setting beside the paper's weights, with the difference's interval."""
    best = confirmed[0]
    if best.setting == 0:
        error = f"{shown(best.score)} {unit}"
        return (
            f"no trial's weights score better than the paper's over seeds: theirs have {error} "
            f"of error, and less is better"
        )
    gap = best.difference
    if not gap.clusters:
        return f"{best.title()} has the least error, and no seed of the paper's to compare with"
    how = "better beyond noise" if best.better() else "not better beyond noise"
    return (
        f"{best.title()} is {how}: its error minus that of the paper's weights is "
        f"{shown(gap, '+')} {unit} over {gap.clusters} seeds, and negative is better"
    )


def shown(interval: Interval, sign: str = "") -> str:
    """A value with its interval; one seed has none."""
    if not interval.clusters:
        return ""
    form = f"{sign}.2f"
    if math.isnan(interval.low):
        return f"{interval.value:{form}} (one seed)"
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"
