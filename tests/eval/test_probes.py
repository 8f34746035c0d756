"""Probes on features whose relation to the position is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from dynaflip.eval.metrics.probes import assign_folds, errors_cm, fit_probe


class Frames(NamedTuple):
    features: np.ndarray
    positions_m: np.ndarray
    tasks: np.ndarray
    episodes: np.ndarray


MAP = np.random.default_rng(99).normal(size=(3, 40))


def linear_frames(seed: int, *, noise: float = 0.0, episodes: int = 6) -> Frames:
    """Two tasks, whose features are a linear image of the position plus the task's own look."""
    rng = np.random.default_rng(seed)
    tasks = np.repeat(["drawer", "door"], episodes * 10)
    names = np.repeat([f"{t}{e}" for t in ("drawer", "door") for e in range(episodes)], 10)
    positions_m = rng.normal(scale=0.1, size=(len(tasks), 3)) + np.where(
        tasks[:, None] == "drawer", [0, 0.6, 0.2], [0.3, 0.9, 0.1]
    )
    look = np.where(tasks[:, None] == "drawer", 3.0, -2.0)
    features = positions_m @ MAP + look + noise * rng.normal(size=(len(tasks), 40))
    return Frames(features, positions_m, tasks, names)


def test_recovers_a_linear_relation_on_unseen_episodes() -> None:
    probe, test = fit_probe(*linear_frames(0)), linear_frames(1)
    predicted = probe.predict(test.features, test.tasks)
    assert errors_cm(predicted, test.positions_m).mean() < 0.01
    assert errors_cm(probe.mean(test.tasks), test.positions_m).mean() > 10


@pytest.mark.parametrize("episodes", [2, 30])  # wide (N < D) and tall (N > D)
def test_equals_ridge_with_a_one_hot_of_the_task(episodes: int) -> None:
    frames = linear_frames(2, noise=0.3, episodes=episodes // 2 + 1)
    probe = fit_probe(*frames, penalties=np.array([0.01]), folds=2)
    # The reference: scaled features, and offsets that cost nothing because they are huge.
    hot = (frames.tasks[:, None] == np.unique(frames.tasks)) * 1e6
    scaled = frames.features / probe.scale
    ridge = Ridge(alpha=0.01 * len(scaled), fit_intercept=False, solver="svd")
    ridge.fit(np.hstack([scaled, hot]), frames.positions_m)
    expected = ridge.predict(np.hstack([scaled, hot]))
    np.testing.assert_allclose(probe.predict(frames.features, frames.tasks), expected, atol=1e-6)


def test_uninformative_features_end_at_the_mean() -> None:
    frames, test = linear_frames(3), linear_frames(4)
    rng = np.random.default_rng(5)
    probe = fit_probe(rng.normal(size=frames.features.shape), *frames[1:])
    predicted = probe.predict(rng.normal(size=test.features.shape), test.tasks)
    mean = errors_cm(probe.mean(test.tasks), test.positions_m).mean()
    assert errors_cm(predicted, test.positions_m).mean() == pytest.approx(mean, rel=0.05)
    assert probe.penalty >= 1


def test_only_training_frames_shape_the_probe() -> None:
    train, test = linear_frames(6, noise=0.1), linear_frames(7, noise=0.1)
    probe = fit_probe(*train)
    # Test frames shifted and stretched: a probe that standardised by them would undo that.
    shifted = probe.predict(5 * test.features + 100, test.tasks)
    assert errors_cm(shifted, test.positions_m).mean() > 50
    for task in np.unique(train.tasks):
        own = train.features[train.tasks == task]
        np.testing.assert_allclose(probe.centre[task], own.mean(0))
    # One frame at a time gives what the batch gives: no statistics of the batch are used.
    together = probe.predict(test.features, test.tasks)
    alone = [probe.predict(test.features[i : i + 1], test.tasks[i : i + 1]) for i in range(9)]
    np.testing.assert_allclose(np.concatenate(alone), together[:9])


def test_penalty_is_chosen_across_episodes_not_within_them() -> None:
    """Features that name the episode help within episodes and mislead on new ones."""
    rng = np.random.default_rng(8)
    episodes = np.repeat(np.arange(8), 20)
    tasks = np.full(len(episodes), "drawer")
    place = rng.normal(scale=0.1, size=(8, 3))[episodes]
    positions_m = place + rng.normal(scale=0.001, size=place.shape)
    features = np.eye(8)[episodes] + 0.01 * rng.normal(size=(len(episodes), 8))
    probe = fit_probe(features, positions_m, tasks, episodes, folds=8)
    assert probe.penalty == 1e3


def test_folds_hold_whole_episodes_and_leave_every_task_to_train_on() -> None:
    frames = linear_frames(9, episodes=3)
    fold = assign_folds(frames.tasks, frames.episodes, folds=5)
    for name in np.unique(frames.episodes):
        assert len(np.unique(fold[frames.episodes == name])) == 1
    for held in range(fold.max() + 1):
        assert set(frames.tasks[fold != held]) == {"drawer", "door"}


def test_wrong_input_is_refused() -> None:
    frames = linear_frames(10, episodes=1)
    with pytest.raises(ValueError, match="at least 2"):
        fit_probe(*frames)
    broken = linear_frames(10)
    broken.features[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        fit_probe(*broken)


def test_constant_features_do_not_disturb() -> None:
    frames = linear_frames(11)
    padded = np.hstack([frames.features, np.full((len(frames.features), 2), 7.0)])
    probe = fit_probe(padded, *frames[1:])
    padded[:, -1] = 8.0
    predicted = probe.predict(padded, frames.tasks)
    assert errors_cm(predicted, frames.positions_m).mean() < 0.01
