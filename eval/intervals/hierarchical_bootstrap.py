"""Success rates of policies with honest intervals.

The unit of chance is twofold: which pretraining seed an encoder was trained with, and
which initial states its policy met. Both are resampled (hierarchical bootstrap, Davison and
Hinkley 1997, section 3.8; Agarwal et al. 2021, arXiv 2108.13264, for why single best runs
mislead); tasks and perturbations are fixed unless asked. Of n units n − 1 are drawn (Rao and
Wu 1988), which makes the bootstrap's variance of a mean unbiased at one level: with three seeds
drawing three would understate their part by a third. What seeds and states do together is counted
with both: intervals are up to 1.7 times too wide where seeds agree, and about right where they do
not (simulated: LOG.md, 2026-11-25). The interval is the bootstrap's standard error times Student's
quantile: percentiles of three seeds cannot reach beyond the three. Its degrees of freedom are
Satterthwaite's (1946), so few seeds widen it as far as they matter.

Legend of shapes: S seeds, T tasks, C conditions, E episodes (initial states), R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Rate:
    """A mean (of successes, or of paired differences) with its 95 % interval."""

    value: float
    low: float
    high: float
    seeds: int
    episodes: int  # values behind it
    error: float = 0.0  # standard error of the mean; 0 where no chance at all was seen
    freedom: float = float("inf")  # degrees of freedom of the error
    states: int = 1  # different initial states behind it

    def p_value(self) -> float:
        """Of no difference, two-sided: below 0.05 exactly where the interval holds no 0."""
        if self.error > 0:
            return float(2 * stats.t.sf(abs(self.value) / self.error, self.freedom))
        # The probability at which Clopper and Pearson's bound on unseen states reaches 0.
        return min(1.0, 2 * (1 - abs(self.value) / 2) ** self.states)

    def verdict(self) -> str:
        """For a paired difference: ``better``, ``worse`` or ``not distinguishable``."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "not distinguishable"


def success_rate(
    success: np.ndarray, *, resample_tasks: bool = False, seed: int = 0, resamples: int = RESAMPLES
) -> Rate:
    """Mean success with its interval by hierarchical bootstrap.

    Episode e of a task is the same initial state under every seed and condition, so its
    values are resampled together.

    Args:
        success: (S, T, C, E) of 0 and 1 (or differences of them), finite.
        resample_tasks: treat the tasks as a sample of tasks too.
        seed: seeds the resampling: equal input gives equal intervals.
        resamples: bootstrap draws, R.

    Raises:
        ValueError: another number of dimensions, nothing in it, or values not finite.
    """
    return _hierarchical(success, 0.0, resample_tasks, seed, resamples)


def _hierarchical(
    success: np.ndarray, lowest: float, resample_tasks: bool, seed: int, resamples: int
) -> Rate:
    """:func:`success_rate` of values in [``lowest``, 1]."""
    draws = resampled_means(success, resample_tasks=resample_tasks, seed=seed, resamples=resamples)
    by_state = np.asarray(success, np.float64).mean(axis=2)  # (S, T, E)
    seeds, tasks, episodes = by_state.shape
    error, freedom = 0.0, float("inf")
    if draws.std() > 1e-9:
        freedom = satterthwaite(variance_parts(by_state, resample_tasks=resample_tasks))
        error = float(draws.std(ddof=1))
        spread = error * stats.t.ppf((1 + LEVEL) / 2, freedom)
    else:
        # No chance at all to be seen. Clopper and Pearson's bound for n of n initial states
        # bounds how many others may yet have been missed.
        missed = 1 - ((1 - LEVEL) / 2) ** (1 / (tasks * episodes))
        spread = missed * (1 - lowest)
    value = float(by_state.mean())
    low, high = max(value - spread, lowest), min(value + spread, 1.0)
    count = int(np.size(success))
    return Rate(value, float(low), float(high), seeds, count, error, freedom, tasks * episodes)


def resampled_means(
    success: np.ndarray, *, resample_tasks: bool = False, seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """(R,) means of resampled seeds and initial states (and tasks).

    Equal shapes and seeds draw the same units, so the draws of two variants are pairs. Arguments
    and errors as of :func:`success_rate`.
    """
    values = np.asarray(success, np.float64)
    if values.ndim != 4 or values.size == 0:
        raise ValueError(f"success must be (S, T, C, E) and hold something, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("success holds NaN or infinity, which is not finite: a result is missing")
    by_state = values.mean(axis=2)  # (S, T, E)
    seeds, tasks, episodes = by_state.shape
    rng = np.random.default_rng(seed)

    def draw(number: int, *shape: int) -> np.ndarray:
        """Units of a level, n − 1 of n; a single one stands for itself."""
        return rng.integers(0, number, size=(resamples, *shape, max(number - 1, 1)))

    chosen_seeds = draw(seeds)  # (R, S')
    width = chosen_seeds.shape[1]
    if resample_tasks and tasks > 1:
        chosen_tasks = draw(tasks)
    else:
        chosen_tasks = np.broadcast_to(np.arange(tasks), (resamples, tasks))
    # Initial states are drawn once a task: policies of all seeds met the same ones.
    chosen_episodes = draw(episodes, chosen_tasks.shape[1])  # (R, T', E')
    means = np.zeros(resamples)
    for column in range(width):
        picked = by_state[
            chosen_seeds[:, column, None, None], chosen_tasks[:, :, None], chosen_episodes
        ]
        means += picked.mean(axis=(1, 2)) / width
    return means


def variance_parts(
    by_state: np.ndarray, *, resample_tasks: bool = False
) -> list[tuple[float, float]]:
    """The parts of the mean's variance with their degrees of freedom: seeds, tasks, states.

    A part with a single unit is left out: its variance cannot be measured.

    Args:
        by_state: (S, T, E).
        resample_tasks: whether tasks are a part too.
    """
    seeds, tasks, episodes = by_state.shape
    parts = []
    if seeds > 1:
        parts.append((by_state.mean(axis=(1, 2)).var(ddof=1) / seeds, seeds - 1))
    if resample_tasks and tasks > 1:
        parts.append((by_state.mean(axis=(0, 2)).var(ddof=1) / tasks, tasks - 1))
    if episodes > 1:
        within = by_state.mean(axis=0).var(axis=1, ddof=1).sum() / (tasks**2 * episodes)
        parts.append((within, tasks * (episodes - 1)))
    return parts


def satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances: (Σ V)² / Σ V²/f.

    Args:
        parts: variances with their degrees of freedom, at least one.
    """
    total = sum(variance for variance, _ in parts)
    if total == 0:  # the means of seeds and of states are alike, and the values are not
        return min(freedom for _, freedom in parts)
    return total**2 / sum(variance**2 / freedom for variance, freedom in parts)


def paired_success(
    after: np.ndarray,
    before: np.ndarray,
    *,
    resample_tasks: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Rate:
    """Mean of ``after − before`` on the same initial states, seed by seed.

    Args:
        after, before: (S, T, C, E) alike; a single seed is set beside every seed of the other.
        resample_tasks, seed, resamples: as in :func:`success_rate`.
    """
    after, before = np.asarray(after, np.float64), np.asarray(before, np.float64)
    if after.shape[1:] != before.shape[1:]:
        raise ValueError(f"pairs must match, got {after.shape} and {before.shape}")
    if after.shape[0] != before.shape[0] and 1 not in (after.shape[0], before.shape[0]):
        raise ValueError(f"seeds must match, got {after.shape[0]} and {before.shape[0]}")
    return _hierarchical(after - before, -1.0, resample_tasks, seed, resamples)
