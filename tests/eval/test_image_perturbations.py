"""Perturbations of recorded images: equal draws, ranges that never meet, pixels that change."""

from __future__ import annotations

import numpy as np
import pytest

from dynaflip.errors import UserError
from dynaflip.eval.image_perturbations import (
    IMAGE_FACTOR_NAMES,
    augmentation_of,
    check_changes_frames,
    draw_values,
    image_factor,
    perturb,
    strength_rows,
)
from dynaflip.eval.perturbations import LEVELS, PRETRAIN_MAX_MAGNITUDE, Factor

FRAMES = [0, 4, 9]


def images() -> np.ndarray:
    """(3, 32, 48, 3) of smooth noise."""
    coarse = np.random.default_rng(0).integers(40, 200, (3, 8, 12, 3))
    return coarse.repeat(4, 1).repeat(4, 2).astype(np.uint8)


@pytest.mark.parametrize("name", IMAGE_FACTOR_NAMES)
def test_each_changes_pixels_equally_for_equal_draws(name: str) -> None:
    plain = images()
    values = draw_values("dev", "episode", [name], 3)
    assert values == draw_values("dev", "episode", [name], 3)
    assert values != draw_values("dev", "another", [name], 3)
    seen = perturb(plain, values, FRAMES)
    assert seen.shape == plain.shape
    assert seen.dtype == np.uint8
    assert (seen != plain).mean() > 0.02
    np.testing.assert_array_equal(plain, images())  # a copy
    # A frame's pixels do not depend on the frames beside it.
    np.testing.assert_array_equal(perturb(plain[1:2], values, FRAMES[1:2]), seen[1:2])


def test_strength_grows_with_the_level_and_splits_never_meet() -> None:
    for name in IMAGE_FACTOR_NAMES:
        drawn: dict[str, list[float]] = {"dev": [], "test": []}
        strengths = []
        for level in LEVELS:
            for split, found in drawn.items():
                several = [draw_values(split, str(n), [name], level)[name] for n in range(20)]
                found += [value["u"] for value in several]
            amount = image_factor(name).amount(several[0])
            strengths.append(next(iter(amount.values())))
        assert strengths == sorted(strengths)
        assert strengths[0] < strengths[-1]
        assert min(*drawn["dev"], *drawn["test"]) > PRETRAIN_MAX_MAGNITUDE
        assert not {round(u, 2) for u in drawn["dev"]} & {round(u, 2) for u in drawn["test"]}


def test_by_hand() -> None:
    plain = images()
    brighter = perturb(plain, {"light": {"u": np.log(1.2), "sign": 1}}, FRAMES)
    np.testing.assert_array_equal(brighter, np.rint(plain * np.float32(1.2)).clip(0, 255))
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    np.testing.assert_array_equal(perturb(grey, {"blur": {"u": 0.6}}, [0]), grey)
    # A window of grey is grey, and a rectangle of half the sides covers a quarter.
    window = {"crop": {"u": 0.6, "x": 1.0, "y": 0.0}}
    np.testing.assert_array_equal(perturb(grey, window, [0]), grey)
    covered = {"occlusion": {"u": 1.0, "x": 0.0, "y": 1.0, "hue": 0.0, "tone": 0.9}}
    assert (perturb(grey, covered, [0]) != grey).any(-1).mean() == 0.25
    # A crop at the left edge of a ramp shows its left part alone.
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None], (1, 50, 100, 3)).copy()
    cut = perturb(ramp, {"crop": {"u": 1.0, "x": 0.0, "y": 0.0}}, [0])[0, 25, :, 0].astype(float)
    assert abs(cut[0] - 0) <= 1
    assert abs(cut[-1] - 64.5) <= 1
    noisy = perturb(np.repeat(grey, 2, 0), {"noise": {"u": 0.5, "seed": 3}}, [0, 1])
    assert noisy.astype(float).std() == pytest.approx(20, rel=0.05)
    assert (noisy[0] != noisy[1]).any()
    other_camera = perturb(grey, {"noise": {"u": 0.5, "seed": 3}}, [0], camera=1)
    assert (other_camera[0] != noisy[0]).any()


def idle(view: object, value: object, amount: object) -> None:
    """Changes nothing."""


IDLE = Factor(amount=lambda value: {"u": value["u"]}, change=idle)
WEAK = f"class:{__name__}:IDLE"


def test_one_that_changes_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="changes no pixel"):
        check_changes_frames(WEAK)
    for name in IMAGE_FACTOR_NAMES:
        check_changes_frames(name)


def test_ranges_are_told_beside_those_of_pretraining() -> None:
    settings = {"jitter_brightness": 0.4, "crop_min_share": 0.8, "patches": 3}
    assert augmentation_of("light", settings) == "x 0.60 to 1.40"
    assert augmentation_of("crop", settings) == "side 80 to 100 %"
    assert augmentation_of("occlusion", settings) == "up to 3 patches"
    assert augmentation_of("noise", settings) == "none"
    ((name, level, dev, test, said),) = strength_rows(["light"], [3])
    assert (name, level, said) == ("light", "3", "unknown")
    assert dev == "gain 1.9 to 1.99"
    assert test == "gain 2.01 to 2.12"
