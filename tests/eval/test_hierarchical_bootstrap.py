"""Intervals of success: right on average, paired, and never sure from nothing."""

from __future__ import annotations

import numpy as np
import pytest

from dynaflip.eval.intervals.hierarchical_bootstrap import paired_success, success_rate

SHAPE = (3, 5, 2, 20)  # seeds, tasks, conditions, episodes


@pytest.mark.parametrize("seeds", [3, 8])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds: int) -> None:
    rng = np.random.default_rng(0)
    covered = 0
    trials = 150
    for trial in range(trials):
        # Seeds differ (what one more pretraining would change), states differ, tasks are fixed.
        base = np.linspace(0.3, 0.7, SHAPE[1])[None, :, None, None]
        rates = base + rng.normal(0, 0.08, (seeds, 1, 1, 1)) + rng.normal(0, 0.1, (1, 5, 1, 20))
        found = success_rate(
            rng.random((seeds, 5, 2, 20)) < rates.clip(0, 1), seed=trial, resamples=800
        )
        covered += found.low <= 0.5 <= found.high
    assert covered / trials > 0.9


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    alike = (rng.random(SHAPE) < 0.5).astype(float)
    differ = alike.copy()
    differ[0], differ[2] = 0.0, 1.0
    calm, wild = success_rate(alike), success_rate(differ)
    assert wild.high - wild.low > 3 * (calm.high - calm.low)


def test_pairs_on_the_same_states_are_told_apart_where_means_are_not() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random((1, *SHAPE[1:2], 1, SHAPE[3])) < 0.5  # states that nobody solves
    before = np.broadcast_to(~hard, SHAPE).astype(float)
    after = before.copy()
    after[:, :, :, ::10] = 1.0
    difference = paired_success(after, before)
    assert difference.verdict() == "better"
    assert paired_success(before, after).verdict() == "worse"
    assert paired_success(before, before + 0.0).verdict() == "not distinguishable"
    assert success_rate(after).low < success_rate(before).high  # unpaired they overlap


def test_all_alike_is_not_certain() -> None:
    none = success_rate(np.zeros((1, 1, 1, 20)))
    assert none.low == 0
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 20))
    every = success_rate(np.ones((2, 1, 1, 20)))
    assert every.high == 1
    assert every.low == pytest.approx(0.025 ** (1 / 20))
    assert paired_success(np.ones((1, 1, 1, 2)), np.zeros((1, 1, 1, 2))).verdict() != "better"


def test_tasks_that_differ_but_are_each_constant_are_not_certain_either() -> None:
    after, before = np.zeros((1, 5, 1, 2)), np.zeros((1, 5, 1, 2))
    after[:, 0] = 1.0
    found = paired_success(after, before)
    assert found.low < 0 < found.high
    once = success_rate(np.eye(5)[None, :, :1, None])  # one state of each task
    assert once.high > once.low


def test_resampled_tasks_widen_the_interval_when_tasks_differ() -> None:
    values = np.zeros((2, 5, 1, 20))
    values[:, :2] = 1.0
    values[:, 2, :, ::2] = 1.0
    fixed, sampled = success_rate(values), success_rate(values, resample_tasks=True)
    assert sampled.high - sampled.low > 2 * (fixed.high - fixed.low)


def test_equal_input_gives_equal_intervals_and_bad_input_a_reason() -> None:
    values = (np.random.default_rng(3).random(SHAPE) < 0.4).astype(float)
    assert success_rate(values) == success_rate(values)
    with pytest.raises(ValueError, match=r"\(S, T, C, E\)"):
        success_rate(values[0])
    values[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="result is missing"):
        success_rate(values)
    with pytest.raises(ValueError, match="pairs must match"):
        paired_success(np.zeros((1, 2, 1, 3)), np.zeros((1, 2, 1, 4)))


def test_draws_that_cancel_in_every_mean_have_an_interval_all_the_same() -> None:
    rate = success_rate(np.array([[0.0, 1.0], [1.0, 0.0]])[:, None, None, :])
    assert rate.value == 0.5
    assert 0 <= rate.low < 0.5 < rate.high <= 1
