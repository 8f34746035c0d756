"""Action error in sigma, against a computation by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dynaflip.eval.metrics.action_scale import action_scale, explained_share

# Entry 0 in other units than entry 2; entry 1 is constant.
TRAIN = np.array([[100.0, 5.0, -1.0], [300.0, 5.0, 1.0]])


def test_errors_by_hand() -> None:
    scale = action_scale(TRAIN)
    assert scale.constant() == [1]
    np.testing.assert_allclose(scale.std, [100, 1])
    np.testing.assert_allclose(scale.to_unit(TRAIN), [[-1, -1], [1, 1]])
    recorded = np.array([[200.0, 9.0, 0.0], [300.0, 5.0, 1.0]])
    predicted = np.array([[1.0, 0.0], [1.0, 0.0]])  # 300 and 0
    # Off by one sigma in one of two entries, at both moments.
    np.testing.assert_allclose(scale.errors(predicted, recorded), [np.sqrt(0.5)] * 2)
    np.testing.assert_allclose(scale.errors_of_mean(recorded), [0, 1])
    assert explained_share(np.array([0.5, 0.5]), np.array([1.0, 1.0])) == 0.75
    assert explained_share(np.zeros(2), np.array([0.0, 1.0])) == 1


def test_units_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    train, recorded = rng.normal(size=(50, 4)), rng.normal(size=(20, 4))
    predicted = rng.uniform(-1, 1, (20, 4))
    unit, offset = np.array([1e-3, 1.0, 57.3, 1e4]), np.array([3.0, -2.0, 0.0, 1e5])
    errors = action_scale(train).errors(predicted, recorded)
    other = action_scale(train * unit + offset)
    np.testing.assert_allclose(other.errors(predicted, recorded * unit + offset), errors)
    perfect = other.to_unit(recorded * unit + offset)
    assert other.errors(perfect, recorded * unit + offset).max() < 1e-4


def test_actions_that_never_move_are_refused() -> None:
    with pytest.raises(ValueError, match="all 2 entries"):
        action_scale(np.ones((5, 2)))
