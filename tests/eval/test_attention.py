"""What a fitted read-out reads is drawn where it is, and its shares follow the masks."""

from __future__ import annotations

import numpy as np
import pytest
from test_readouts import Cells, blobs, demonstrations

from dynaflip.eval.envs.registry import environment
from dynaflip.eval.metrics.attention import Reading, moments_of, reading_of
from dynaflip.eval.perturbations import sample
from dynaflip.eval.policies.encoder_policy import EncoderPolicy
from dynaflip.eval.policies.registry import head_settings, policy_head
from dynaflip.eval.rollout import EpisodeStart


def fitted(readout: str) -> EncoderPolicy:
    """Cloned from demonstrations whose actions are the place of a bright cell."""
    shown = demonstrations(readout)
    settings = head_settings("behaviour_cloning", {"hidden_dim": 32, "layers": 1, "steps": 250})
    head = policy_head("behaviour_cloning").fit(shown, settings, use_proprioception=False, seed=0)
    reader = shown.reader.eval()
    return EncoderPolicy(Cells().eval(), head, use_proprioception=False, reader=reader)


def bright(images: np.ndarray) -> np.ndarray:
    """(B, H, W) bool: the cell whose place is the action."""
    return images[..., 0] > 100


def test_a_fitted_query_attends_to_what_the_actions_follow() -> None:
    images = blobs(12)[0]
    reading = reading_of(fitted("attentive"), images)
    assert reading.heat.shape == images.shape[:3]
    assert reading.heat.sum((1, 2)) == pytest.approx(1, abs=1e-5)
    on_object = reading.share(bright(images))
    assert on_object.mean() > 2 / 16, "no more than twice its share of the area"
    everywhere = reading.share(np.ones_like(bright(images)))
    assert everywhere == pytest.approx(1, abs=1e-5)
    assert reading.drawn(0, images[0]).shape == (32, 32, 3)


def test_fitted_positions_move_with_the_cell_and_are_drawn_as_points() -> None:
    images, places = blobs(12)
    reading = reading_of(fitted("spatial_softmax"), images)
    assert reading.points_px.shape == (12, 4 * 2, 2)
    # A soft maximum lies between the cell and the middle, and moves with the cell.
    for axis in range(2):
        follows = [
            abs(np.corrcoef(reading.points_px[:, i, axis], places[:, axis])[0, 1]) for i in range(8)
        ]
        assert max(follows) > 0.8
    assert (reading.points_px >= 0).all()
    assert (reading.points_px <= 16).all()
    drawn = reading.drawn(0, images[0])
    coloured = np.ptp(drawn.astype(int), axis=2) > 100
    assert coloured.any()
    assert not np.ptp(drawn[~coloured].astype(int), axis=1).min()


def test_shares_are_those_of_a_hand_computation() -> None:
    masks = np.zeros((1, 4, 8), bool)
    masks[0, :2, :2] = True
    points = np.float32([[[0.5, 0.5], [7.9, 3.9], [8.0, 4.0], [1.9, 1.9]]])
    assert Reading(points_px=points).share(masks).tolist() == [0.5]
    heat = np.zeros((1, 4, 8), np.float32)
    heat[0, 0, 0], heat[0, 3, 7] = 0.25, 0.75
    assert Reading(heat=heat).share(masks).tolist() == [0.25]
    pooled = EncoderPolicy(Cells(), None, use_proprioception=False)
    assert reading_of(pooled, blobs(2)[0]) is None


def test_a_cell_of_any_grid_has_its_weight_spread_over_its_pixels() -> None:
    from dynaflip.eval.metrics.attention import _spread
    from dynaflip.eval.policies.readouts.grid import TokenGrid

    grids = [TokenGrid(1, 2, 5), TokenGrid(2, 3, 7)]
    weights = np.float32([[0.4, 0, 0, 0, 0, 0, 0, 0.6]])
    heat = _spread(weights, grids, 10, 14)[0]
    assert heat[:, :7].sum() == pytest.approx(0.4)
    np.testing.assert_allclose(heat[:5, :7], 0.4 / 70, rtol=1e-5)
    assert heat[5:, 9:].sum() == pytest.approx(0.6)
    assert heat[:5, 7:].sum() == 0


def test_moments_are_the_same_under_every_condition() -> None:
    fog = "class:outside_environment:FOG"
    scene = environment("class:outside_environment:ENVIRONMENT").open(
        "reach", height_px=32, width_px=32
    )
    seeds = (1, 2)
    clean = tuple(EpisodeStart(seed, {}) for seed in seeds)
    foggy = tuple(EpisodeStart(seed, sample("dev", seed, (fog,), 5)) for seed in seeds)
    moments = moments_of(scene, {"none": clean, "fog": foggy})
    assert moments.conditions == ("none", "none", "fog", "fog")
    assert moments.robot is None
    one, two, foggy_one, _ = moments.images
    assert (one != two).any()
    np.testing.assert_array_equal(bright(one[None]), bright(foggy_one[None]) & bright(one[None]))
    assert foggy_one.mean() > one.mean() + 10
    np.testing.assert_array_equal(moments_of(scene, {"none": clean}).images[0], one)
    with pytest.raises(AssertionError):
        moments_of(scene, {"none": clean, "fog": foggy[::-1]})
