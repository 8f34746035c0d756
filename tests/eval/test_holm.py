"""Holm's correction, power and the probability of being best, beside references by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dynaflip.eval.intervals.hierarchical_bootstrap import Rate, paired_success, success_rate
from dynaflip.eval.intervals.holm import adjusted, family_verdicts
from dynaflip.eval.intervals.power import design_of, power_line
from dynaflip.eval.intervals.ranking import probability_best


def test_adjusted_p_values_are_those_by_hand() -> None:
    # Smallest first: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04 raised to the one before it.
    assert adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjusted([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    assert adjusted([0.9, 0.9]) == [1.0, 1.0]
    assert adjusted([0.03]) == [0.03]
    assert adjusted([]) == []
    for wrong in ([1.2], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match="must lie in"):
            adjusted(wrong)


def test_what_is_rejected_is_what_the_step_down_procedure_rejects() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        p_values = rng.random(rng.integers(1, 8)) ** 4
        rejected = np.zeros(len(p_values), bool)
        for rank, place in enumerate(np.argsort(p_values)):
            if p_values[place] > 0.05 / (len(p_values) - rank):
                break
            rejected[place] = True
        np.testing.assert_array_equal(np.array(adjusted(p_values)) <= 0.05, rejected)


def test_p_values_agree_with_intervals_and_a_family_is_harder_than_one() -> None:
    rng = np.random.default_rng(1)
    before = (rng.random((3, 2, 1, 20)) < 0.4).astype(float)
    for gain in (0.0, 0.1, 0.2, 0.3, 0.5):
        after = (rng.random(before.shape) < 0.4 + gain).astype(float)
        one = paired_success(after, before)
        assert (one.p_value() < 0.05) == (one.verdict() != "not distinguishable")
    # No chance to be seen: the bound on states that were not met decides, as the interval does.
    for states in (3, 8, 200):
        sure = paired_success(np.ones((2, 1, 1, states)), np.zeros((2, 1, 1, states)))
        assert (sure.p_value() < 0.05) == (sure.low > 0)
    close = Rate(0.1, 0.001, 0.199, 3, 60, error=0.1 / 2.1)  # p = 0.036
    clear = Rate(-0.3, -0.4, -0.2, 3, 60, error=0.05)
    assert family_verdicts({"a": close}) == {"a": "better"}
    assert family_verdicts({"a": close, "b": close, "c": clear}) == {
        "a": "not distinguishable", "b": "not distinguishable", "c": "worse",
    }  # fmt: skip


def test_power_is_that_of_a_t_test_where_states_are_all_that_varies() -> None:
    difference = np.random.default_rng(2).normal(0.1, 0.5, (1, 1, 1, 40))
    design = design_of(difference)
    error = difference.std(ddof=1) / np.sqrt(40)
    expected = (stats.t.ppf(0.975, 39) + stats.t.ppf(0.8, 39)) * error
    assert design.detectable() == pytest.approx(expected)
    # Four times the states halve it, but for a few degrees of freedom.
    assert design.detectable(episodes=160) == pytest.approx(expected / 2, rel=0.02)
    assert design.sizes_for(expected / 1.9) == (1, 160)
    line = power_line(difference)
    assert line is not None
    assert line.startswith("1 policy and 40 initial states a task tell ")
    assert "another pretraining" in line


def test_a_design_finds_the_difference_it_names_four_times_of_five() -> None:
    rng = np.random.default_rng(3)

    def draw(gain: float) -> np.ndarray:
        seeds = rng.normal(0, 0.05, (6, 1, 1, 1))
        return gain + seeds + rng.normal(0, 0.4, (1, 1, 1, 60)) + np.zeros((6, 1, 1, 60))

    named = float(np.mean([design_of(draw(0)).detectable() for _ in range(50)]))
    found = [success_rate(draw(named), resamples=300).low > 0 for _ in range(150)]
    assert 0.7 < np.mean(found) < 0.9
    seeds, episodes = design_of(draw(0)).sizes_for(named / 2) or (0, 0)
    assert seeds * episodes > 6 * 60


def test_what_never_varies_has_no_power_line() -> None:
    assert power_line(np.zeros((2, 1, 1, 5))) is None


def test_the_probability_of_being_best() -> None:
    rng = np.random.default_rng(4)
    worse = (rng.random((3, 1, 1, 40)) < 0.2).astype(float)
    better = (rng.random((3, 1, 1, 40)) < 0.9).astype(float)
    assert probability_best({"a": worse, "b": better}) == {"a": 0.0, "b": 1.0}
    assert probability_best({"a": worse, "b": worse}) == {"a": 0.5, "b": 0.5}
    shares = probability_best({"a": better, "b": np.roll(better, 1, axis=3), "c": worse})
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["c"] == 0


def test_a_design_that_tells_nothing_apart_says_so_and_what_20_points_take() -> None:
    difference = np.array([1.0, -1.0, 1.0]).reshape(1, 1, 1, 3)
    line = power_line(difference)
    assert line is not None
    assert line.startswith("1 policy and 3 initial states a task tell no difference apart")
    assert "; 20 points take " in line
