"""Arms of an ablation in order, and how sure the order is.

Both the pretraining seed and the initial states of episodes are resampled, for all arms
alike, so that differences between arms stay paired (see :mod:`.success_statistics`).

Legend of shapes: A arms, S seeds, T tasks, C conditions, E episodes, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Place:
    """An arm's mean success, its 95 % interval, and its rank; arms of one rank are tied."""

    arm: str
    value: float
    low: float
    high: float
    rank: int


@dataclass(frozen=True)
class Ranking:
    """The arms, best first, and what is asked of their order."""

    places: list[Place]
    draws: dict[str, np.ndarray]  # arm to its (R,) resampled means

    def probability_last(self, arm: str, among: list[str]) -> float:
        """Share of the resamples in which an arm is the worst of some."""
        others = np.stack([self.draws[name] for name in among if name != arm])
        return float((self.draws[arm] < others.min(0)).mean())

    def spearman(self, reference: Mapping[str, float]) -> float:
        """Rank correlation with another order of arms; ties in ours are ties.

        Args:
            reference: arm to a value, higher is better; arms that are missing are left out.
        """
        shared = [place for place in self.places if place.arm in reference]
        ours = [-place.rank for place in shared]
        if len(set(ours)) < 2:
            return 0.0  # one tie: the order says nothing
        theirs = [reference[place.arm] for place in shared]
        return float(stats.spearmanr(ours, theirs).statistic)


def rank_arms(
    success: Mapping[str, np.ndarray], *, seed: int = 0, resamples: int = RESAMPLES
) -> Ranking:
    """Order arms by mean success; neighbours whose difference may be 0 are tied.

    Args:
        success: arm to (S, T, C, E), the same tasks, conditions and episodes for all; higher
            is better.
        seed, resamples: of the bootstrap.

    Raises:
        ValueError: arms of different shapes, or values that are not finite.
    """
    names = list(success)
    values = np.stack([np.asarray(success[name], np.float64).mean(axis=2) for name in names])
    if values.ndim != 4 or not np.isfinite(values).all():
        raise ValueError(f"success must be (S, T, C, E) and finite, got {values.shape[1:]}")
    _, seeds, tasks, episodes = values.shape
    rng = np.random.default_rng(seed)

    def draw(number: int, *shape: int) -> np.ndarray:
        """n − 1 of n units (Rao & Wu 1988); a single one stands for itself."""
        return rng.integers(0, number, size=(resamples, *shape, max(number - 1, 1)))

    chosen_seeds, chosen_episodes = draw(seeds), draw(episodes, tasks)
    every_task = np.arange(tasks)[None, :, None]
    drawn = np.zeros((len(names), resamples))
    for column in chosen_seeds.T:
        picked = values[:, column[:, None, None], every_task, chosen_episodes]
        drawn += picked.mean(axis=(2, 3)) / chosen_seeds.shape[1]
    draws = dict(zip(names, drawn, strict=True))
    means = dict(zip(names, values.mean(axis=(1, 2, 3)), strict=True))
    places: list[Place] = []
    leader, rank = None, 0
    for number, name in enumerate(sorted(names, key=lambda name: -means[name]), 1):
        low, high = _interval(draws[name])
        # Tied with the best of the rank above unless that one is clearly better.
        if leader is None or _interval(draws[leader] - draws[name])[0] > 0:
            leader, rank = name, number
        places.append(Place(name, float(means[name]), low, high, rank))
    return Ranking(places, draws)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
