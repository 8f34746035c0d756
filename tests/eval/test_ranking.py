"""Ranks, ties and probabilities of an ablation, on successes with a known order."""

from __future__ import annotations

import numpy as np
import pytest

from dynaflip.eval.intervals.ranking import rank_variants

RATES = {"full": 0.8, "no_cosine": 0.78, "pairwise": 0.5, "no_negatives": 0.1}


def successes(episodes: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Bernoulli successes (3 seeds, 2 tasks, 2 conditions, E) that share their luck."""
    luck = np.random.default_rng(seed).random((3, 2, 2, episodes))
    return {variant: (luck < rate).astype(float) for variant, rate in RATES.items()}


def test_clear_differences_are_ranked_and_unclear_ones_tied() -> None:
    found = rank_variants(successes(8))
    assert [place.variant for place in found.places] == list(RATES)
    assert [place.rank for place in found.places] == [1, 1, 3, 4]
    for place in found.places:
        assert place.low <= place.value <= place.high
    assert found.probability_last("no_negatives", list(RATES)) == 1.0
    assert found.probability_last("full", list(RATES)) == 0.0


def test_spearman_takes_ties_as_ties() -> None:
    found = rank_variants(successes(8))
    tied = found.spearman(RATES)
    assert 0.9 < tied < 1.0  # two of four are tied here and not there
    assert found.spearman({variant: -rate for variant, rate in RATES.items()}) == pytest.approx(
        -tied
    )
    same = rank_variants({variant: np.zeros((3, 2, 2, 8)) for variant in RATES})
    assert same.spearman(RATES) == 0.0
    assert {place.rank for place in same.places} == {1}


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        variants = {"one": (rng.random((5, 1, 1, 60)) < 0.4).astype(float)}
        place = rank_variants(variants, resamples=500).places[0]
        covered += place.low <= 0.4 <= place.high
    assert covered >= 51  # 95 % of 60 is 57; five seeds make the interval a little short


def test_a_missing_result_is_refused() -> None:
    variants = successes(4)
    variants["full"] = variants["full"].copy()
    variants["full"][0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        rank_variants(variants)
