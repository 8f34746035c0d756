"""Cluster bootstrap: closed forms and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dynaflip.eval.intervals.cluster_bootstrap import cluster_mean, paired_difference


def test_value_is_the_plain_mean_and_draws_are_seeded() -> None:
    values = np.array([1.0, 2.0, 3.0, 10.0])
    clusters = np.array(["a", "a", "b", "c"])
    first = cluster_mean(values, clusters, seed=3)
    assert first.value == 4.0
    assert first.clusters == 3
    assert first == cluster_mean(values, clusters, seed=3)
    many = np.random.default_rng(0).normal(size=30)
    assert cluster_mean(many, np.arange(30), seed=3) != cluster_mean(many, np.arange(30), seed=4)


def test_one_value_a_cluster_gives_students_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, 2.0, size=20)
    interval = cluster_mean(values, np.arange(20), resamples=40_000)
    half = stats.t.ppf(0.975, 19) * values.std(ddof=1) / np.sqrt(20)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_repeating_a_value_within_its_cluster_adds_no_certainty() -> None:
    values = np.random.default_rng(1).normal(size=12)
    once = cluster_mean(values, np.arange(12))
    often = cluster_mean(np.repeat(values, 30), np.repeat(np.arange(12), 30))
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_coverage_with_ten_clusters_of_correlated_values() -> None:
    rng = np.random.default_rng(2)
    trials, covered, clusters = 400, 0, np.repeat(np.arange(10), 5)
    for trial in range(trials):
        values = rng.normal(size=10)[clusters] + 0.5 * rng.normal(size=50)
        interval = cluster_mean(values, clusters, seed=trial, resamples=400)
        covered += interval.low <= 0.0 <= interval.high
    # 95 % ± three binomial standard errors, and a little for the bootstrap's approximation.
    assert 0.91 <= covered / trials <= 0.985


@pytest.mark.parametrize("number", [2, 3, 5])
def test_coverage_with_few_clusters(number: int) -> None:
    """The percentile bootstrap's would be 50, 77 and 93 %."""
    rng = np.random.default_rng(number)
    trials, covered = 1000, 0
    for _ in range(trials):
        values = np.repeat(rng.normal(size=number), 4)
        interval = cluster_mean(values, np.repeat(np.arange(number), 4))
        covered += interval.low <= 0.0 <= interval.high
    assert 0.93 <= covered / trials <= 0.97


def test_paired_difference_cancels_what_is_common() -> None:
    rng = np.random.default_rng(3)
    hardness = rng.normal(scale=100.0, size=40)
    clusters = np.repeat(np.arange(8), 5)
    after = hardness - 1 + 0.1 * rng.normal(size=40)
    interval = paired_difference(after, hardness, clusters)
    assert -1.2 < interval.low < interval.value < interval.high < -0.8


def test_few_or_no_clusters_give_no_bounds() -> None:
    one = cluster_mean(np.array([1.0, 3.0]), np.array([7, 7]))
    assert one.value == 2.0
    assert np.isnan(one.low)
    assert np.isnan(one.high)
    none = cluster_mean(np.array([]), np.array([]))
    assert np.isnan(none.value)
    assert none.clusters == 0


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="alike"):
        cluster_mean(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="NaN"):
        cluster_mean(np.array([np.nan]), np.zeros(1))
    with pytest.raises(ValueError, match="level"):
        cluster_mean(np.zeros(2), np.arange(2), level=1.0)
    with pytest.raises(ValueError, match="pairs"):
        paired_difference(np.zeros(3), np.zeros(2), np.zeros(3))
