"""Hand-held videos without depth: the background's motion is removed, or said to remain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from shaken_videos import HEIGHT, STEP_PX, WIDTH, boxes_at_depths, hand, shaken_square

from dynaflip.platform.triplets.clips import WindowRejected
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.camera_motion import compensate_camera
from dynaflip.platform.triplets.flow.config import CameraConfig
from dynaflip.platform.triplets.flow.estimate import flow_of_window
from dynaflip.platform.triplets.flow.image_motion import fit_background
from dynaflip.platform.triplets.flow.tracking import grid_px
from dynaflip.platform.triplets.flow.window import apply_homography

CONFIG = PreprocessConfig()
KEEP = CameraConfig(on_failure="uncompensated")
STILL = np.tile(np.eye(3), (12, 1, 1))
FOCAL_PX = float(max(HEIGHT, WIDTH))


def flow_px(window, config=CONFIG):
    """Displacement in pixels of the first frame (G, G, 2), trust (G, G), and the kind."""
    window, camera = compensate_camera(window, config)
    times_s = np.arange(len(window.frames)) / 30
    flow = flow_of_window(window, times_s, grid_px(HEIGHT, WIDTH), config)
    return flow.displacement_m[-1, ..., :2] * FOCAL_PX, flow.visible[-1], camera


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_static_ground_rests_and_what_moves_keeps_its_own_motion(noise: float) -> None:
    shaken = shaken_square(noise=noise)
    grid = grid_px(HEIGHT, WIDTH)
    moved = apply_homography(shaken.homographies[-1], grid.reshape(-1, 2).astype(float))
    assert np.linalg.norm(moved - grid.reshape(-1, 2), axis=1).min() > 3  # there is a motion
    found, seen, camera = flow_px(shaken.window())
    assert camera.kind == "image"
    assert camera.inlier_share is not None
    assert 0.6 < camera.inlier_share <= 1
    length = np.linalg.norm(found, axis=-1)
    # The square's own edge on the right is where the ground is covered.
    ground = seen & ~shaken.on_square(grid, -30)
    assert ground.mean() > 0.5
    assert np.percentile(length[ground], 95) < 0.1
    assert np.percentile(length[ground], 99) < 1
    square = shaken.on_square(grid, 8) & seen
    assert square.sum() >= 6
    np.testing.assert_allclose(np.median(found[square], 0), [STEP_PX * 11, 0], atol=1.5)
    # Without it, the ground moves as much as the camera.
    plain, seen, camera = flow_px(
        shaken.window(), replace(CONFIG, camera=CameraConfig(motion="none"))
    )
    assert camera.kind == "none"
    assert np.median(np.linalg.norm(plain, axis=-1)[seen]) > 3


@pytest.mark.parametrize("side_px", [40, 132])
def test_a_static_camera_stays_static_however_large_the_object(side_px: int) -> None:
    step_px = 2.0 if side_px < 100 else 0.5
    shaken = shaken_square(homographies=STILL, side_px=side_px, noise=2.0, step_px=step_px)
    window, camera = compensate_camera(shaken.window(), CONFIG)
    assert camera.kind == "static"
    assert window.background is None
    assert camera.inlier_share is not None
    found, seen, _ = flow_px(shaken.window())
    ground = seen & ~shaken.on_square(grid_px(HEIGHT, WIDTH), -30)
    assert np.abs(found[ground]).max(initial=0) == 0


def test_an_object_that_covers_most_of_the_view_is_not_taken_for_the_ground() -> None:
    shaken = shaken_square(side_px=152, step_px=0.7)
    with pytest.raises(WindowRejected, match="no motion of the background fits"):
        compensate_camera(shaken.window(), CONFIG)
    window, camera = compensate_camera(shaken.window(), replace(CONFIG, camera=KEEP))
    assert camera.kind == "failed"
    assert window.background is None


def test_noise_has_no_motion_and_plain_images_say_nothing() -> None:
    shaken = shaken_square(4)
    noise = np.random.default_rng(0).integers(0, 255, shaken.frames.shape, dtype=np.uint8)
    window = replace(shaken.window(), frames=noise)
    assert fit_background(noise, CONFIG.track, CONFIG.camera).kind in ("failed", "none")
    plain = replace(window, frames=np.full_like(noise, 130))
    plain.frames[:, 60:90, 60:90] = shaken.frames[:, 60:90, 60:90]
    assert compensate_camera(plain, CONFIG)[1].kind == "none"
    fitted = CameraConfig(motion="fitted")
    with pytest.raises(WindowRejected, match="too little texture"):
        compensate_camera(plain, replace(CONFIG, camera=fitted))
    kept = replace(fitted, on_failure="uncompensated")
    assert compensate_camera(plain, replace(CONFIG, camera=kept))[1].kind == "failed"


def test_parallax_is_named_and_what_it_explains_is_not_trusted() -> None:
    window, camera = compensate_camera(boxes_at_depths(), CONFIG)
    assert camera.kind == "image+parallax"
    assert window.background is not None
    assert window.background.epipole is not None
    found, seen, _ = flow_px(boxes_at_depths())
    length = np.linalg.norm(found, axis=-1)
    # Boxes go 3 to 12 px further than the wall; of the points that are trusted, next to none.
    assert (length[seen] > 2).mean() < 0.05
    assert seen.mean() > 0.15


def test_a_pose_without_depth_makes_way_for_a_fit() -> None:
    shaken = shaken_square()
    poses = np.tile(np.eye(4), (12, 1, 1))
    window, camera = compensate_camera(replace(shaken.window(), poses=poses), CONFIG)
    assert (camera.kind, window.poses) == ("image", None)
    recorded = replace(CONFIG, camera=CameraConfig(motion="recorded"))
    with pytest.raises(WindowRejected, match="in metres"):
        compensate_camera(replace(shaken.window(), poses=poses), recorded)


def test_the_fit_is_as_exact_as_the_corners_allow() -> None:
    shaken = shaken_square(homographies=hand(12, turn_deg=2.5, shift_px=8.0, seed=9))
    fit = fit_background(shaken.frames, CONFIG.track, CONFIG.camera)
    assert fit.background is not None
    points = grid_px(HEIGHT, WIDTH).reshape(-1, 2)
    for n, truth in enumerate(shaken.homographies):
        off = fit.background.moved(points, n) - apply_homography(truth, points.astype(float))
        assert np.abs(off).max() < 0.4
