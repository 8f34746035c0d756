"""Points beside a moving object are not dragged along, and points of the object stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rgbd_windows import HEIGHT, INTRINSICS_PX, WIDTH
from triplet_recordings import textured

from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.config import DraggedPointsConfig
from dynaflip.platform.triplets.flow.dragged_points import corner_strength, dragged_along
from dynaflip.platform.triplets.flow.tracking import grid_px
from dynaflip.platform.triplets.flow.window import RGBDWindow

CONFIG = PreprocessConfig()
FRAMES, STEP_PX, TOP, LEFT, SIDE = 8, 4, 40, 30, 44
POINTS_PX = grid_px(HEIGHT, WIDTH).reshape(-1, 2)
PLAIN = np.array((150, 150, 140), np.uint8)


def on_box(frame: int = 0, reach_px: float = 0.0) -> np.ndarray:
    x, y = (POINTS_PX - (LEFT + STEP_PX * frame, TOP)).T
    return ((x > -reach_px) & (x < SIDE + reach_px)) & ((y > -reach_px) & (y < SIDE + reach_px))


def box_on_plain_ground(*, depth: bool) -> RGBDWindow:
    """A textured box goes right over ground of one colour, which its shadow darkens ahead."""
    frames = np.tile(PLAIN, (FRAMES, HEIGHT, WIDTH, 1))
    depth_m = np.full((FRAMES, HEIGHT, WIDTH), 2.0, np.float32)
    for n in range(FRAMES):
        x = LEFT + STEP_PX * n
        frames[n, TOP - 10 : TOP + SIDE + 10, x : x + SIDE + 10] -= 25
        frames[n, TOP : TOP + SIDE, x : x + SIDE] = textured(SIDE, SIDE, 3) // 2
        depth_m[n, TOP : TOP + SIDE, x : x + SIDE] = 1.7
    return RGBDWindow(
        frames, depth_m if depth else None, np.tile(INTRINSICS_PX, (FRAMES, 1)), None, "metric"
    )


@pytest.mark.parametrize("depth", [True, False], ids=["depth", "plane"])
def test_ground_beside_an_object_is_dropped_and_the_object_stays(depth: bool) -> None:
    window = box_on_plain_ground(depth=depth)
    ground = on_box(reach_px=30) & ~on_box(reach_px=12) & ~on_box(FRAMES - 1, 12)
    moves = on_box(reach_px=-2) | ground
    assert ground.sum() > 15
    dragged = dragged_along(window, POINTS_PX, moves, 0.0, CONFIG)
    assert dragged[ground].mean() > 0.8
    assert not dragged[on_box(reach_px=-2)].any()
    assert not dragged[~moves].any()


def change(**values) -> PreprocessConfig:
    return replace(CONFIG, dragged_points=DraggedPointsConfig(**values))


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (change(enabled=False), False),
        (change(min_moving_share=0.0), False),
        (change(corner=0.0), False),
        (change(radius_px=2), False),
        (change(colour_difference=255.0, radius_px=60), True),
    ],
    ids=["enabled", "min_moving_share", "corner", "radius_px", "colour_difference"],
)
def test_each_setting_does_something(config: PreprocessConfig, more: bool) -> None:
    window = box_on_plain_ground(depth=False)
    moves = on_box(reach_px=30)
    usual = dragged_along(window, POINTS_PX, moves, 0.0, CONFIG)
    found = dragged_along(window, POINTS_PX, moves, 0.0, config)
    assert (found.sum() > usual.sum()) if more else (found.sum() < usual.sum())


def test_a_corner_is_strong_and_an_edge_or_noise_is_not() -> None:
    frame = np.full((40, 60, 3), 100, np.uint8)
    frame[20:, 30:] = 200
    corner, edge, plain = corner_strength(
        frame, np.array([[30.5, 20.5], [30.5, 33.5], [10.5, 10.5]])
    )
    assert corner > 60
    assert edge < 1
    assert plain == 0
    noise = np.random.default_rng(0).normal(100, 2, frame.shape).astype(np.uint8)
    assert corner_strength(noise, np.array([[30.5, 20.5]]))[0] < 4
