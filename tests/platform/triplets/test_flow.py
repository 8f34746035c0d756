"""RGB-D alignment, fitted cameras, filters, the motion-focused grid and learned trackers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rgbd_windows import HEIGHT, INTRINSICS_PX, STEP_M, WIDTH, egg, wall
from triplet_recordings import moving_square

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected, WindowRejected
from dynaflip.platform.triplets.config import FilterConfig, PreprocessConfig
from dynaflip.platform.triplets.filters import check_flow, check_images, sharpness
from dynaflip.platform.triplets.flow.camera_motion import compensate_camera, fit_camera
from dynaflip.platform.triplets.flow.config import AlignmentConfig, CameraConfig, TrackConfig
from dynaflip.platform.triplets.flow.estimate import Flow, flow_of_window
from dynaflip.platform.triplets.flow.grid import grid_on_first_frame
from dynaflip.platform.triplets.flow.learned_tracker import track_windows
from dynaflip.platform.triplets.flow.tracking import grid_px
from dynaflip.platform.triplets.flow.window import RGBDWindow
from dynaflip.platform.triplets.models.depth import align_depth, answer_of
from dynaflip.platform.triplets.models.loading import digests_of_models


def end_errors(config: PreprocessConfig) -> tuple[np.ndarray, float]:
    """Errors in metres of the egg's grid points that are kept, and their share."""
    flow = flow_of_window(egg(), np.arange(8) / 30, grid_px(HEIGHT, WIDTH), config)
    on_egg = flow.origin_m[..., 2] < 1.55
    error_m = np.linalg.norm(flow.displacement_m[-1] - [7 * STEP_M, 0, 0], axis=-1)
    kept = flow.visible[-1][on_egg]
    return error_m[on_egg][kept], float(kept.mean())


def test_rgbd_alignment_tracks_shape_where_colour_slides() -> None:
    aligned_m, kept = end_errors(PreprocessConfig())
    alone_m, _ = end_errors(PreprocessConfig(rgbd_alignment=AlignmentConfig(enabled=False)))
    assert kept > 0.6
    assert np.median(aligned_m) < 0.002
    assert not len(alone_m) or np.median(aligned_m) < 0.5 * np.median(alone_m)


def test_a_hidden_camera_motion_is_found() -> None:
    fit = fit_camera(wall(), PreprocessConfig())
    assert fit is not None
    expected_m = 0.02 * np.arange(6)
    np.testing.assert_allclose(fit.poses[:, 0, 3], expected_m, atol=0.003)
    np.testing.assert_allclose(fit.poses[:, 1:3, 3], 0, atol=0.003)
    cosine = (np.trace(fit.poses[:, :3, :3], axis1=1, axis2=2) - 1) / 2
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.3
    # The square, a sixteenth of the image, and its edges do not agree.
    assert 0.7 < fit.inlier_share < 0.99


def test_a_static_camera_is_recognised() -> None:
    fit = fit_camera(wall(shift_m=0.0), PreprocessConfig())
    assert fit is not None
    np.testing.assert_array_equal(fit.poses, np.tile(np.eye(4), (6, 1, 1)))


def test_where_no_camera_fits_the_setting_decides() -> None:
    window = wall()
    noise = np.random.default_rng(0).integers(0, 255, window.frames.shape, dtype=np.uint8)
    window = replace(window, frames=noise)
    with pytest.raises(WindowRejected, match="no motion of the camera"):
        compensate_camera(window, PreprocessConfig())
    keep = PreprocessConfig(camera=CameraConfig(on_failure="uncompensated"))
    kept, camera = compensate_camera(window, keep)
    assert kept.poses is None
    assert camera.kind == "failed"
    assert camera.inlier_share is not None
    assert camera.inlier_share < 0.4


def test_the_origin_of_camera_motion_is_recorded() -> None:
    poses = np.tile(np.eye(4), (6, 1, 1))
    known = replace(wall(), poses=poses)
    assert compensate_camera(known, PreprocessConfig())[1].kind == "pose"
    assert compensate_camera(wall(), PreprocessConfig())[1].kind == "fit"
    assert compensate_camera(wall(shift_m=0.0), PreprocessConfig())[1].kind == "static"
    flat = replace(wall(), depth_m=None)
    assert compensate_camera(flat, PreprocessConfig())[1].kind == "image"
    with pytest.raises(WindowRejected, match="no pose recorded"):
        compensate_camera(wall(), PreprocessConfig(camera=CameraConfig(motion="recorded")))
    assert (
        compensate_camera(known, PreprocessConfig(camera=CameraConfig(motion="none")))[0].poses
        is None
    )


def test_a_recorded_pose_is_taken_where_depth_is_in_metres() -> None:
    """Metres of a camera beside depth of another scale would move a wall that rests."""
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, 0, 3] = 0.02 * np.arange(6)
    config = PreprocessConfig()
    recorded = CameraConfig(motion="recorded")
    for scale in ("metric", "aligned"):
        window, camera = compensate_camera(replace(wall(), poses=poses, depth_scale=scale), config)
        assert camera.kind == "pose"
        assert window.poses is poses
    flat = replace(wall(), poses=poses, depth_m=None, depth_scale="relative")
    window, camera = compensate_camera(flat, config)
    assert (window.poses, camera.kind) == (None, "image")
    with pytest.raises(WindowRejected, match="the recorded pose is in metres"):
        compensate_camera(flat, replace(config, camera=recorded))
    # A model's depth, half as large as the truth: so is the motion that is fitted with it.
    small = replace(wall(), poses=poses, depth_scale="relative")
    small = replace(small, depth_m=small.depth_m / 2)
    window, camera = compensate_camera(small, config)
    assert camera.kind == "fit"
    assert window.poses is not None
    np.testing.assert_allclose(window.poses[:, 0, 3], 0.01 * np.arange(6), atol=0.0015)
    flow = flow_of_window(window, np.arange(6) / 30, grid_px(HEIGHT, WIDTH), config)
    rests = flow.visible[-1] & (flow.origin_m[..., 2] > 0.9)
    assert np.median(np.linalg.norm(flow.displacement_m[-1], axis=-1)[rests]) < 0.002
    exact = replace(config, flow_source="simulator")
    assert compensate_camera(flat, exact)[1].kind == "pose"


def test_cuts_and_blur_are_rejected_and_motion_is_not() -> None:
    config = FilterConfig()
    frames = moving_square(12, step_px=4.0)
    check_images(frames, config)
    cut = np.concatenate([frames[:6], 255 - frames[6:]])
    with pytest.raises(WindowRejected, match="shot cut"):
        check_images(cut, config)
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 12) for frame in frames])
    assert sharpness(soft[0]) < 0.02 * sharpness(frames[0])
    with pytest.raises(WindowRejected, match="blurred"):
        check_images(soft, config)


def test_windows_without_motion_or_with_lost_points_are_rejected() -> None:
    grid = np.zeros((20, 20, 3), np.float32)
    seen = np.ones((7, 20, 20), bool)
    flow = Flow(grid, np.zeros((7, 20, 20, 3)), seen, grid[..., :2], seen[..., None], grid[..., 0])
    check_flow(flow, 0.02, FilterConfig())
    with pytest.raises(WindowRejected, match="no motion"):
        check_flow(flow, 0.0, FilterConfig())
    with pytest.raises(WindowRejected, match="too few trusted"):
        check_flow(replace(flow, visible=~seen), 0.02, FilterConfig())


def test_the_motion_grid_is_denser_where_things_move() -> None:
    frames = moving_square(8, step_px=2.0)
    window = RGBDWindow(frames, None, np.tile(INTRINSICS_PX, (8, 1)), None)
    even, dense = (
        grid_on_first_frame(window, PreprocessConfig(grid=g)) for g in ("uniform", "motion")
    )

    def on_square(grid: np.ndarray) -> int:
        x, y = grid[..., 0], grid[..., 1]
        return int(((x > 20) & (x < 82) & (y > 36) & (y < 84)).sum())

    assert on_square(dense) > 1.5 * on_square(even)
    assert dense.shape == (20, 20, 2)
    assert (np.diff(dense[0, :, 0]) > 0).all()
    assert (np.diff(dense[:, 0, 1]) > 0).all()
    assert dense.min() > 0
    assert dense[..., 0].max() < WIDTH
    rest = replace(window, frames=np.repeat(frames[:1], 8, 0))
    np.testing.assert_array_equal(grid_on_first_frame(rest, PreprocessConfig(grid="motion")), even)


class ShiftTracker(torch.nn.Module):
    """Moves every point by two pixels a frame, and loses those that start on the left."""

    def forward(
        self, video: torch.Tensor, queries: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        steps = torch.arange(video.shape[1]).float()[None, :, None]
        at = queries[:, None, :, 1:] + torch.stack([2 * steps, 0 * steps], -1)
        seen = (queries[:, None, :, 1] > 10).expand(1, video.shape[1], queries.shape[1])
        return at, seen


class Broken:
    """Gives nothing for any frame."""

    def __call__(self, frames: np.ndarray, points_px: np.ndarray):
        return np.zeros((0, 1, 2)), np.zeros((0, 1))


class Doubtful:
    """Gives the probability that a point is visible."""

    def __call__(self, frames: np.ndarray, points_px: np.ndarray):
        tracks_px = np.repeat(points_px[None], len(frames), axis=0)
        return tracks_px, np.full(tracks_px.shape[:2], 0.3)


class Larger:
    """Gives pixels of an image of twice the size."""

    def __call__(self, frames: np.ndarray, points_px: np.ndarray):
        tracks_px = np.repeat(2 * points_px[None], len(frames), axis=0)
        return tracks_px, np.ones(tracks_px.shape[:2])


def test_a_torchscript_tracker_takes_the_place_of_the_built_in_one(tmp_path: Path) -> None:
    file = tmp_path / "shift.pt"
    torch.jit.script(ShiftTracker()).save(str(file))
    points = np.array([[5.0, 5.0], [40.0, 30.0], [70.0, 60.0]], np.float32)
    frames = moving_square(6)
    tracks, misses = track_windows(frames, points, f"torchscript:{file}")
    np.testing.assert_allclose(tracks[3, 1:], points[1:] + np.array([6, 0]), atol=1e-4)
    assert np.isinf(misses[:, 0]).all()
    assert (misses[:, 1:] == 0).all()
    config = PreprocessConfig(track=TrackConfig(tracker=f"torchscript:{file}"))
    before = digests_of_models(config)
    torch.jit.script(ShiftTracker().train(False)).save(str(file))
    assert list(before) == [config.track.tracker]
    assert digests_of_models(config) != before, "other weights make other triplets"
    window = RGBDWindow(moving_square(6, step_px=2.0), None, np.tile(INTRINSICS_PX, (6, 1)), None)
    flow = flow_of_window(window, np.arange(6) / 30, grid_px(HEIGHT, WIDTH), config)
    x, y = flow.origin_px[..., 0], flow.origin_px[..., 1]
    square = (x > 26) & (x < 62) & (y > 42) & (y < 78) & flow.visible[-1]
    assert square.sum() > 10
    np.testing.assert_allclose((flow.tracks_px[-1] - flow.origin_px)[square] - [10, 0], 0, atol=0.5)


class OnTape:
    """A tracker whose tracks still have their gradients."""

    def __call__(self, frames: np.ndarray, points: np.ndarray) -> tuple[object, object]:
        tracks = torch.ones((len(frames), len(points), 2), requires_grad=True)
        return tracks, torch.ones(tracks.shape[:2])


def test_unusable_trackers_are_errors(tmp_path: Path) -> None:
    frames, points = moving_square(4), np.full((3, 2), 40.0, np.float32)
    with pytest.raises(UserError, match="there is no file"):
        track_windows(frames, points, f"torchscript:{tmp_path / 'none.pt'}")
    (tmp_path / "text.pt").write_text("not a module")
    with pytest.raises(UserError, match="no TorchScript module"):
        track_windows(frames, points, f"torchscript:{tmp_path / 'text.pt'}")
    with pytest.raises(UserError, match="cannot import"):
        track_windows(frames, points, "class:test_flow:Missing")
    with pytest.raises(ClipRejected, match="for 4 frames and 3 points"):
        track_windows(frames, points, f"class:{__name__}:Broken")
    with pytest.raises(ClipRejected, match=r"visibility from 0\.3 to 0\.3, not bool"):
        track_windows(frames, points, f"class:{__name__}:Doubtful")
    with pytest.raises(ClipRejected, match="100% of the visible tracks do not begin at the point"):
        track_windows(frames, points, f"class:{__name__}:Larger")
    with pytest.raises(ClipRejected, match=r"OnTape failed: RuntimeError at .* requires grad"):
        track_windows(frames, points, f"class:{__name__}:OnTape")


def test_depth_that_numpy_cannot_read_is_a_rejection_of_the_models(tmp_path: Path) -> None:
    class OnTape:
        scale = "metric"

        def __call__(self, frames: np.ndarray) -> torch.Tensor:
            return torch.ones(frames.shape[:3], requires_grad=True)

    with pytest.raises(ClipRejected, match=r"OnTape failed: RuntimeError .*grad") as caught:
        answer_of(OnTape(), moving_square(2))  # type: ignore[arg-type]
    assert caught.value.stage == "depth"


def test_relative_depth_is_aligned_to_metres_where_some_is_recorded() -> None:
    rng = np.random.default_rng(1)
    truth_m = rng.uniform(0.6, 3.0, (4, 40, 50)).astype(np.float32)
    relative = 1 / (2.5 / truth_m + 0.4)
    measured = np.where(rng.random((40, 50)) < 0.3, truth_m[0], np.nan)
    measured[:4] = 5.0  # a reflection
    found = align_depth(relative, measured.astype(np.float32))
    assert found is not None
    np.testing.assert_allclose(found, truth_m, rtol=1e-3)
    assert align_depth(relative, np.full((40, 50), np.nan, np.float32)) is None
    assert align_depth(relative, rng.permuted(truth_m[0], axis=1)) is None
