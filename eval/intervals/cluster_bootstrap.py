"""Intervals for measurements that come in clusters (the frames of an episode).

Frames of one episode resemble each other, so episodes are resampled, not frames.
The percentile bootstrap is too narrow when clusters are few; the quantiles are
therefore widened as in Hesterberg (2015), "What teachers should know about the
bootstrap", section 3.6 ("expanded percentile"), which reduces to Student's
interval for a mean. No quantile reaches beyond what was seen, which with fewer than six
clusters covers too little: there it is Student's interval of the ratio of sums itself.
All draws are seeded: equal input gives equal intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

RESAMPLES = 2000
LEVEL = 0.95
_FEWEST_TO_RESAMPLE = 6


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, in the unit of the values it was made from."""

    value: float
    low: float
    high: float
    clusters: int  # independent units behind it, e.g. episodes


def cluster_mean(
    values: np.ndarray,
    clusters: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Mean over all values, with a bootstrap interval over clusters.

    Args:
        values: (N,) measurements, finite.
        clusters: (N,) label of the cluster of each value (episode, recording).
        seed: seeds the resampling.
        resamples: bootstrap draws.
        level: coverage aimed at, in (0, 1).

    Returns:
        The interval; its bounds are NaN when fewer than two clusters are given,
        and its value too when there are no values at all.
    """
    values = np.asarray(values, dtype=np.float64)
    clusters = np.asarray(clusters)
    if values.ndim != 1 or values.shape != clusters.shape:
        raise ValueError(
            f"values and clusters must be (N,) alike, got {values.shape} and {clusters.shape}"
        )
    if values.size and not np.isfinite(values).all():
        raise ValueError("values hold NaN or infinity")
    if values.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    _, index = np.unique(clusters, return_inverse=True)
    counts = np.bincount(index).astype(np.float64)
    sums = np.bincount(index, weights=values)
    return cluster_ratio(sums, counts, seed=seed, resamples=resamples, level=level)


def cluster_ratio(
    numerators: np.ndarray,
    denominators: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Ratio of two sums over clusters, with a bootstrap interval over clusters.

    Args:
        numerators: (R,) of each cluster.
        denominators: (R,) of each cluster, at least 0 and not all 0.
        seed, resamples, level: as in :func:`cluster_mean`.

    Returns:
        The interval; its bounds are NaN for fewer than two clusters.
    """
    sums, counts = (np.asarray(v, dtype=np.float64) for v in (numerators, denominators))
    if sums.ndim != 1 or sums.shape != counts.shape or not sums.size:
        raise ValueError(f"a ratio needs (R,) and (R,), got {sums.shape} and {counts.shape}")
    if not (counts >= 0).all() or not counts.sum() > 0 or not np.isfinite(sums).all():
        raise ValueError("denominators must be at least 0 and not all 0, numerators finite")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    estimate = float(sums.sum() / counts.sum())
    number = len(counts)
    if number < 2:
        return Interval(estimate, float("nan"), float("nan"), number)
    if number < _FEWEST_TO_RESAMPLE:
        residuals = sums - estimate * counts
        error = np.sqrt(number / (number - 1) * (residuals**2).sum()) / counts.sum()
        half = float(special.stdtrit(number - 1, (1 + level) / 2) * error)
        return Interval(estimate, estimate - half, estimate + half, number)
    drawn = np.random.default_rng(seed).integers(0, number, size=(resamples, number))
    means = sums[drawn].sum(axis=1) / np.maximum(counts[drawn].sum(axis=1), 1e-300)
    tail = _expanded_tail(number, level)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), number)


def paired_difference(
    after: np.ndarray,
    before: np.ndarray,
    clusters: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Interval:
    """Mean of ``after − before`` on the same items, with its interval over clusters.

    Args:
        after, before: (N,) measurements of the same items in the same order.
        clusters: (N,) cluster of each item.
        seed, resamples, level: as in :func:`cluster_mean`.
    """
    after = np.asarray(after, dtype=np.float64)
    before = np.asarray(before, dtype=np.float64)
    if after.shape != before.shape:
        raise ValueError(f"pairs must match, got {after.shape} and {before.shape}")
    return cluster_mean(after - before, clusters, seed=seed, resamples=resamples, level=level)


def _expanded_tail(number: int, level: float) -> float:
    """Tail probability to read off the bootstrap so that few clusters still cover.

    The bootstrap of a mean has standard error too small by √((n−1)/n) and normal
    instead of Student tails; both are put right by one wider tail.
    """
    student = special.stdtrit(number - 1, (1 - level) / 2)
    return float(special.ndtr(np.sqrt(number / (number - 1)) * student))
