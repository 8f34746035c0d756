"""Sampling, tracking, lifting and stillness against cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from triplet_recordings import moving_square, textured

from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow import lifting, rigid_smoothing, static_points
from dynaflip.platform.triplets.flow.config import LiftingConfig, RigidSmoothingConfig, TrackConfig
from dynaflip.platform.triplets.flow.estimate import flow_of_window
from dynaflip.platform.triplets.flow.tracking import (
    grid_px,
    thin_frames,
    track_points,
    tracker_images,
)
from dynaflip.platform.triplets.flow.window import RGBDWindow
from dynaflip.platform.triplets.windows import draw_r3m, sample_transitions, segments

SAMPLE = {"draws": 3, "flow_window_s": 0.5, "min_window_s": 0.1, "seed": 0}


def test_five_frames_follow_r3ms_rule() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        drawn = draw_r3m(100, rng)
        assert drawn[0] < 10 <= 90 <= drawn[-1]
        assert list(drawn) == sorted(set(drawn))
    assert draw_r3m(5, rng) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(("frames", "words"), [(1, "one frame"), (4, "4 frames")])
def test_too_few_frames_are_rejected(frames: int, words: str) -> None:
    with pytest.raises(ClipRejected, match=words):
        sample_transitions(np.arange(frames) / 30, "clip", **SAMPLE)


def test_a_number_of_segments_without_segments_is_refused() -> None:
    assert PreprocessConfig(segment_s=0)
    with pytest.raises(ValueError, match="max_segments has no effect with segment_s 0"):
        PreprocessConfig(segment_s=0, max_segments=3)


def test_windows_are_the_shorter_of_gap_and_setting() -> None:
    times_s = np.arange(300) / 30
    found = sample_transitions(times_s, "clip", **SAMPLE)
    assert 8 <= len(found) <= 12
    for t in found:
        window_s = times_s[t.end] - times_s[t.start]
        gap_s = times_s[t.r3m_next] - times_s[t.start]
        assert window_s == pytest.approx(min(gap_s, 0.5), abs=1e-6)
        assert window_s >= 0.1 - 1e-6


def test_the_same_images_and_flow_come_once() -> None:
    times_s = np.arange(30) / 30
    every = [sample_transitions(times_s, f"clip {n}", **SAMPLE) for n in range(50)]
    pairs = [[(t.start, t.end) for t in found] for found in every]
    assert all(len(set(of_clip)) == len(of_clip) for of_clip in pairs)
    # R3M's next frame makes another image pair of the same flow.
    r3m = [sample_transitions(times_s, f"clip {n}", **SAMPLE, image_pair="r3m") for n in range(50)]
    assert all({(t.start, t.end) for t in f} == set(p) for f, p in zip(r3m, pairs, strict=True))
    assert sum(map(len, r3m)) > sum(map(len, every))
    assert all(len({(t.start, t.r3m_next) for t in found}) == len(found) for found in r3m)


def test_sampling_depends_on_content_and_seed_alone() -> None:
    times_s = np.arange(200) / 30
    first = sample_transitions(times_s, "clip", **SAMPLE)
    assert first == sample_transitions(times_s, "clip", **SAMPLE)
    assert first != sample_transitions(times_s, "another", **SAMPLE)
    assert first != sample_transitions(times_s, "clip", **{**SAMPLE, "seed": 1})


def test_a_clip_without_a_long_enough_transition_is_rejected() -> None:
    with pytest.raises(ClipRejected, match="no transition"):
        sample_transitions(np.arange(8) / 240, "clip", **SAMPLE)


def test_a_frame_rate_too_low_for_the_window_is_reported() -> None:
    with pytest.raises(ClipRejected, match=r"0\.5 s holds fewer than three frames.*flow_window_s"):
        sample_transitions(np.arange(30) / 3, "clip", **SAMPLE)
    assert sample_transitions(np.arange(30) / 3, "clip", **{**SAMPLE, "flow_window_s": 0.7})


def test_long_clips_give_windows_by_their_length_and_short_ones_stay_as_they_were() -> None:
    by_length = {**SAMPLE, "segment_s": 20.0, "max_segments": 4}
    short_s = np.arange(39 * 15) / 15
    assert sample_transitions(short_s, "clip", **by_length) == sample_transitions(
        short_s, "clip", **SAMPLE
    )
    for seconds, count in ((41, 2), (61, 3), (79, 3), (81, 4), (600, 4)):
        times_s = np.arange(seconds * 15) / 15
        spans = segments(times_s, 20.0, 4)
        assert len(spans) == count
        assert sum(frames for _, frames in spans) == len(times_s)
        found = sample_transitions(times_s, "clip", **by_length)
        draws = {t.draw: t.r3m for t in found}
        assert len(draws) == 3 * count
        for draw, r3m in draws.items():  # R3M's rule within the draw's own segment
            first, frames = spans[draw // 3]
            assert 0 <= r3m[0] - first < frames / 10 < frames * 0.89 < r3m[-1] - first < frames


def test_a_segment_without_five_frames_gives_none() -> None:
    uneven_s = np.concatenate([np.arange(300) / 15, [25, 35, 45, 60]])
    assert len(segments(uneven_s, 20.0, 10)) == 1
    found = sample_transitions(uneven_s, "clip", **SAMPLE, segment_s=20.0, max_segments=10)
    assert max(t.r3m[-1] for t in found) < 300


def test_steps_far_from_every_frame_are_interpolated() -> None:
    five_hz, ten_hz = np.arange(3) / 5, np.arange(6) / 10
    marks = [lifting.measured_steps(times_s, 0.5, 0.5) for times_s in (five_hz, ten_hz)]
    assert marks[0].tolist() == [False, False, True, True, False, False, True]
    assert marks[1].tolist() == [True, False, True, True, False, True, True]
    assert not lifting.measured_steps(ten_hz, 0.5, 0.25)[0]  # 29 ms from a frame
    # From 14 Hz every step of every window is measured, thinned or not.
    for rate_hz in (14, 15, 24, 30, 50, 60, 80):
        for frames in range(3, rate_hz // 2 + 2):
            times_s = np.round(np.arange(frames) / rate_hz, 6)
            kept = times_s[thin_frames(times_s, 0.024)]
            assert lifting.measured_steps(kept, 0.5, 0.5).all(), (rate_hz, frames)
    # The last step is at a frame, whatever the share.
    assert lifting.measured_steps(five_hz, 0.5, 0.0).tolist() == [False] * 6 + [True]


def test_a_lattice_of_many_points_is_compared_in_parts() -> None:
    """OpenCV's remap takes no more than 32,766 rows."""
    frame = textured(120, 160, 3)
    points = np.random.default_rng(0).uniform(0, 120, (40_000, 2)).astype(np.float32)
    found = static_points._colour_patches(frame, points, 1)
    assert found.shape == (40_000, 9, 3)
    np.testing.assert_array_equal(found[-5:], static_points._colour_patches(frame, points[-5:], 1))


def test_the_grid_lies_at_cell_centres() -> None:
    grid = grid_px(100, 200)
    assert grid.shape == (20, 20, 2)
    np.testing.assert_allclose(grid[0, 0], [5, 2.5])
    np.testing.assert_allclose(grid[-1, -1], [195, 97.5])
    np.testing.assert_allclose(grid[3, 7], [75, 17.5])  # [row, column] holds x, y


def test_frames_are_thinned_with_both_ends_kept() -> None:
    times_s = np.arange(41) / 80
    assert thin_frames(times_s, 0.0) == list(range(41))
    kept = thin_frames(times_s, 0.025)
    assert kept[0] == 0
    assert kept[-1] == 40
    assert min(np.diff(times_s[kept])) >= 0.024


@pytest.mark.parametrize("tracker", ["lk", "dis"])
def test_a_shift_is_tracked_to_a_fraction_of_a_pixel(tracker: str) -> None:
    big = textured(160, 260, 3)
    frames = np.stack([big[20:140, 60 - 2 * n : 220 - 2 * n] for n in range(8)])
    points = grid_px(120, 160).reshape(-1, 2)
    config = TrackConfig(tracker=tracker)
    tracks, misses = track_points(tracker_images(frames, None), points, config)
    trusted = np.isfinite(misses)
    inside = points[:, 0] < 135
    assert trusted[-1][inside].mean() > 0.95
    moved = tracks[-1] - points
    assert np.median(np.abs(moved[trusted[-1]] - [14, 0])) < 0.1
    # What leaves the image is lost.
    assert not trusted[-1][points[:, 0] > 150].any()


def test_lost_points_stay_lost_and_where_they_were() -> None:
    frames = np.stack([textured(120, 160, n) for n in range(5)])  # nothing in common
    points = grid_px(120, 160).reshape(-1, 2)
    tracks, misses = track_points(tracker_images(frames, None), points, TrackConfig())
    trusted = np.isfinite(misses)
    assert trusted[-1].mean() < 0.2
    assert not (trusted[1:] & ~trusted[:-1]).any()
    lost = ~trusted[-1] & ~trusted[1]
    np.testing.assert_array_equal(tracks[-1][lost], points[lost])


def test_back_projection_and_projection_are_inverse() -> None:
    intrinsics = np.array([200.0, 210.0, 80.0, 60.0])
    points = grid_px(120, 160)
    xyz = lifting.back_project(points, np.full((20, 20), 1.7), intrinsics)
    assert xyz[..., 2] == pytest.approx(1.7)
    np.testing.assert_allclose(lifting.project(xyz, intrinsics), points, atol=1e-4)


def test_depth_is_bilinear_on_a_slope_and_never_mixed_at_an_edge() -> None:
    x = np.arange(60) + 0.5
    slope = np.tile((1 + 0.005 * x).astype(np.float32), (40, 1))
    points = np.array([[10.2, 7.7], [33.9, 20.1]])
    found = lifting.sample_depth_m(slope, points, None, 1)
    np.testing.assert_allclose(found, 1 + 0.005 * points[:, 0], atol=1e-5)
    edge = np.where(np.arange(60) < 30, 1.0, 2.0).astype(np.float32) * np.ones((40, 1), np.float32)
    at_edge = np.array([[29.9, 5.0], [30.1, 5.0]])
    np.testing.assert_allclose(lifting.sample_depth_m(edge, at_edge, None, 1), [1, 2])
    # A track half a pixel off keeps the depth it had.
    np.testing.assert_allclose(
        lifting.sample_depth_m(edge, at_edge, np.array([2.0, 1.0]), 1), [2, 1]
    )


def test_nan_depth_is_not_spread() -> None:
    depth = np.ones((20, 20), np.float32)
    depth[5, 5] = np.nan
    points = np.array([[5.9, 5.5], [5.5, 5.5]])
    expected = np.array([1.0, 1.0])
    np.testing.assert_allclose(lifting.sample_depth_m(depth, points, expected, 1), 1.0)
    assert np.isnan(lifting.sample_depth_m(depth, points, None, 1)[1])


def test_the_cameras_motion_is_taken_out() -> None:
    """A still wall seen by a camera that moves right: tracks move, the flow is zero."""
    frames, intrinsics = 5, np.array([160.0, 160.0, 80.0, 60.0])
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 0, 3] = 0.02 * np.arange(frames)
    depth = np.full((frames, 120, 160), 2.0, np.float32)
    grid = grid_px(120, 160)
    tracks = np.stack([grid - [0.02 * n / 2 * 160, 0] for n in range(frames)]).astype(np.float32)
    trusted = np.ones((frames, 20, 20), bool)
    many = np.tile(intrinsics, (frames, 1))
    xyz, good = lifting.lift_tracks(tracks, trusted, depth, many, poses, LiftingConfig())
    assert good.all()
    np.testing.assert_allclose(xyz[-1], xyz[0], atol=1e-5)
    moved, _ = lifting.lift_tracks(tracks, trusted, depth, many, None, LiftingConfig())
    np.testing.assert_allclose((moved[-1] - moved[0])[..., 0], -0.08, atol=1e-5)


def test_motion_in_depth_is_tracked_and_a_jump_is_lost() -> None:
    frames = 6
    depth = np.stack([np.full((40, 40), 1 + 0.02 * n, np.float32) for n in range(frames)])
    tracks = np.tile(grid_px(40, 40), (frames, 1, 1, 1))
    trusted = np.ones((frames, 20, 20), bool)
    many = np.tile([40.0, 40, 20, 20], (frames, 1))
    xyz, good = lifting.lift_tracks(tracks, trusted, depth, many, None, LiftingConfig())
    assert good.all()
    np.testing.assert_allclose(xyz[-1, ..., 2], 1.1, atol=1e-5)
    depth[3:] += 0.5
    xyz, good = lifting.lift_tracks(tracks, trusted, depth, many, None, LiftingConfig())
    assert good[2].all()
    assert not good[3:].any()
    np.testing.assert_allclose(xyz[-1, ..., 2], 1.04, atol=1e-5)


def test_steps_are_linear_between_frames() -> None:
    times_s = np.array([0.0, 0.1, 0.35, 0.5])
    values = np.tile(times_s[:, None, None, None] * 2, (1, 20, 20, 3))
    visible = np.ones((4, 20, 20), bool)
    visible[2:, 0, 0] = False
    steps, seen = lifting.at_steps(values, visible, times_s)
    assert steps.shape == (7, 20, 20, 3)
    np.testing.assert_allclose(steps[:, 5, 5, 0], np.arange(1, 8) / 7, rtol=1e-6)
    np.testing.assert_array_equal(seen[:, 0, 0], [True, False, False, False, False, False, False])


def rotated(origin: np.ndarray, degrees: float, shift: np.ndarray) -> np.ndarray:
    """Displacement of a piece that turns about its middle, in the image's plane."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    middle = origin.reshape(-1, 3).mean(0)
    return (origin - middle) @ turn.T + middle + shift - origin


def test_rigid_smoothing_corrects_outliers_on_a_turning_surface() -> None:
    origin = lifting.back_project(
        grid_px(120, 160), np.ones((20, 20)), np.array([160.0, 160, 80, 60])
    )
    truth = np.tile(rotated(origin, 20, np.array([0.05, 0.0, 0.02])), (7, 1, 1, 1))
    noisy = truth.copy()
    noisy[:, 10, 10] += [0.3, 0.1, 0]
    moving = np.zeros((7, 20, 20), bool)
    moving[:, 7:14, 7:14] = True
    out = rigid_smoothing.smooth_rigidly(origin, noisy, moving, RigidSmoothingConfig())
    np.testing.assert_allclose(out[moving], truth[moving], atol=2e-3)
    np.testing.assert_array_equal(out[~moving], noisy[~moving])
    # A point on a surface of its own keeps its motion.
    origin[10, 10, 2] = 2
    out = rigid_smoothing.smooth_rigidly(origin, noisy, moving, RigidSmoothingConfig())
    np.testing.assert_array_equal(out[:, 10, 10], noisy[:, 10, 10])


def test_a_surface_outvotes_single_points() -> None:
    origin = np.ones((20, 20, 3), np.float32)
    followed = np.zeros((20, 20), bool)
    followed[4, 4] = True
    followed[10:16, 10:16] = True
    followed[12, 12] = False
    doubt = rigid_smoothing.outvoted(
        origin, followed, np.ones_like(followed), RigidSmoothingConfig()
    )
    assert doubt[4, 4]  # moves alone
    assert doubt[12, 12]  # rests alone
    assert not doubt[11:15, 13].any()
    assert not doubt[:8, 8:].any()


def square_flow(with_depth: bool):
    frames = moving_square(12, step_px=2.0)
    depth = np.full((12, 120, 160), 2.0, np.float32)
    for n in range(12):
        depth[n, 36:84, 20 + 2 * n : 68 + 2 * n] = 1.6
    many = np.tile([160.0, 160, 80, 60], (12, 1))
    window = RGBDWindow(frames, depth if with_depth else None, many, None)
    flow = flow_of_window(window, np.arange(12) / 30, grid_px(120, 160), PreprocessConfig())
    x, y = flow.origin_px[..., 0], flow.origin_px[..., 1]
    square = (x > 26) & (x < 62) & (y > 42) & (y < 78)
    ground = (y < 30) | (y > 90) | (x > 100)
    return flow, square, ground


@pytest.mark.parametrize("with_depth", [True, False])
def test_a_square_moves_and_the_ground_is_static(with_depth: bool) -> None:
    flow, square, ground = square_flow(with_depth)
    z = 1.6 if with_depth else 1.0
    expected = 22 / 160 * z
    kept = flow.visible[-1] & square
    assert kept.sum() > 0.8 * square.sum()
    error = np.linalg.norm(flow.displacement_m[-1] - [expected, 0, 0], axis=-1)
    assert np.median(error[kept]) < 0.02 * z
    assert flow.visible[:, ground].mean() > 0.95
    np.testing.assert_array_equal(flow.displacement_m[:, ground], 0)


def test_occluded_ground_is_lost_and_not_dragged() -> None:
    flow, _, _ = square_flow(True)
    x, y = flow.origin_px[..., 0], flow.origin_px[..., 1]
    covered = (x > 76) & (x < 86) & (y > 42) & (y < 78)
    assert not flow.visible[-1][covered].any()
    seen = flow.visible & covered
    assert flow.visible[0][covered].all()
    assert np.abs(flow.displacement_m[seen]).max() < 0.01
