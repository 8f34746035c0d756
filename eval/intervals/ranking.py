"""Variants of an ablation in order of success, and how certain the order is.

Both the pretraining seed and the initial states of episodes are resampled, for all variants
alike, so that differences between variants stay paired (see :mod:`.hierarchical_bootstrap`).

Legend of shapes: S seeds, T tasks, C conditions, E episodes, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats

from dynaflip.eval.intervals.hierarchical_bootstrap import (
    RESAMPLES,
    paired_success,
    resampled_means,
    success_rate,
)


@dataclass(frozen=True)
class RankedVariant:
    """A variant's mean success, its 95 % interval, and its rank; equal ranks are ties."""

    variant: str
    value: float
    low: float
    high: float
    rank: int


@dataclass(frozen=True)
class Ranking:
    """The variants, best first, and what is asked of their order."""

    places: list[RankedVariant]
    draws: dict[str, np.ndarray]  # variant to its (R,) resampled means

    def probability_last(self, variant: str, among: list[str]) -> float:
        """Share of the resamples in which a variant is the worst of some."""
        others = np.stack([self.draws[name] for name in among if name != variant])
        return float((self.draws[variant] < others.min(0)).mean())

    def spearman(self, reference: Mapping[str, float]) -> float:
        """Rank correlation with another order of variants; ties in ours are ties.

        Args:
            reference: variant to a value, higher is better; variants that are missing are left out.
        """
        shared = [place for place in self.places if place.variant in reference]
        ours = [-place.rank for place in shared]
        if len(set(ours)) < 2:
            return 0.0  # one tie: there is no order
        theirs = [reference[place.variant] for place in shared]
        return float(stats.spearmanr(ours, theirs).statistic)


def probability_best(
    success: Mapping[str, np.ndarray], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, float]:
    """Share of the resamples in which each encoder is the best; ties share.

    Seeds and initial states are resampled for all alike, so differences stay paired.

    Args:
        success: name → (S, T, C, E), the same tasks, conditions and episodes for all.
        seed, resamples: of the bootstrap.
    """
    draws = np.stack(
        [resampled_means(one, seed=seed, resamples=resamples) for one in success.values()]
    )
    best = np.isclose(draws, draws.max(axis=0), rtol=0, atol=1e-12)
    shares = (best / best.sum(axis=0)).mean(axis=1)
    return dict(zip(success, shares.tolist(), strict=True))


def rank_variants(
    success: Mapping[str, np.ndarray], *, seed: int = 0, resamples: int = RESAMPLES
) -> Ranking:
    """Order variants by mean success; neighbours whose difference may be 0 are tied.

    Args:
        success: variant to (S, T, C, E), the same tasks, conditions and episodes for all; higher
            is better.
        seed, resamples: of the bootstrap.

    Raises:
        ValueError: variants of different shapes, or values that are not finite.
    """
    if len({np.shape(values) for values in success.values()}) > 1:
        raise ValueError("variants must have the same seeds, tasks, conditions and episodes")
    # The same seed draws the same units for every variant, so that draws stay paired.
    draw = partial(resampled_means, seed=seed, resamples=resamples)
    rate = partial(success_rate, seed=seed, resamples=resamples)
    gain = partial(paired_success, seed=seed, resamples=resamples)
    rates = {name: rate(values) for name, values in success.items()}
    places: list[RankedVariant] = []
    leader, rank = None, 0
    for number, name in enumerate(sorted(rates, key=lambda name: -rates[name].value), 1):
        # Tied with the best of the rank above unless that one is clearly better.
        if leader is None or gain(success[leader], success[name]).low > 0:
            leader, rank = name, number
        places.append(
            RankedVariant(name, rates[name].value, rates[name].low, rates[name].high, rank)
        )
    draws = {name: draw(values) for name, values in success.items()}
    return Ranking(places, draws)
