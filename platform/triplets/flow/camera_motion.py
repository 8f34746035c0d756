"""Camera motion: recorded, or from images and depth, or (without depth) from images alone.

Points all over the image are tracked and lifted; the rigid motion that most of them share
from the first frame to each later one is the camera's, because most of a scene is static.
RANSAC over three points (Fischler and Bolles 1981) finds it, and RGB-D alignment of the
whole image as one patch (rgbd_alignment.py) refines it. The share of points that agree is
stored with the triplet. Without depth the background's motion in the image is taken out
(image_motion.py).

L lattice points, N frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats, WindowRejected
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.config import CameraConfig
from dynaflip.platform.triplets.flow.image_motion import fit_background
from dynaflip.platform.triplets.flow.lifting import (
    back_project,
    move_points,
    project,
    sample_depth_m,
)
from dynaflip.platform.triplets.flow.rgbd_alignment import (
    Motion,
    SurfacePatches,
    View,
    agreeing,
    refine,
)
from dynaflip.platform.triplets.flow.surface_tracking import best_of, grey_levels, view_of
from dynaflip.platform.triplets.flow.tracking import track_points, tracker_images
from dynaflip.platform.triplets.flow.window import RGBDWindow

_LATTICE = 28  # points a side
_MIN_POINTS = 12
_VOTERS = 200  # points that judge the trials of RANSAC
_ITERATIONS = (3, 4)  # on blurred and on sharp images
# The camera counts as static where its motion would move the image by no more (median).
_STILL_PX = 0.25


@dataclass(frozen=True)
class CameraFit:
    """``poses`` (N, 4, 4): camera n to the first camera's frame, metres (identity throughout
    when it is ``static``); ``inlier_share``: of the points in view, the smallest share over
    frames that a frame shows where the camera's motion alone takes them."""

    poses: Doubles
    inlier_share: float
    static: bool = False


@dataclass(frozen=True)
class CameraKnown:
    """``kind`` is the column ``camera_motion`` of the schema; ``inlier_share`` that of a fit."""

    kind: str
    inlier_share: float | None = None


def compensate_camera(
    window: RGBDWindow, config: PreprocessConfig
) -> tuple[RGBDWindow, CameraKnown]:
    """The window with the camera poses that its flow is compensated by, and their origin.

    Recorded poses are in metres: beside depth of another scale they would move the world by a
    wrong amount. A fit has the scale of the depth that it is made from; without depth it is one
    of the background in the image.

    Raises:
        WindowRejected: no recorded pose that fits the depth where one is asked for, or none can
            be fitted.
    """
    motion = config.camera.motion
    if motion == "none":
        return replace(window, poses=None), CameraKnown("none")
    if motion == "recorded" and window.poses is None:
        raise WindowRejected("camera", "no pose recorded (camera.motion=recorded)")
    # The simulator's exact flow is in metres, whatever depth is.
    in_metres = window.in_metres() or config.flow_source == "simulator"
    if motion == "recorded" and not in_metres:
        raise WindowRejected(
            "camera", "the recorded pose is in metres, but depth is not (camera.motion=recorded)"
        )
    if motion != "fitted" and window.poses is not None and in_metres:
        return window, CameraKnown("pose")
    window = replace(window, poses=None)
    if window.depth_m is None:
        return _compensated_in_image(window, config)
    fit = fit_camera(window, config)
    if fit is None or fit.inlier_share < config.camera.min_inlier_share:
        reason = "no motion of the camera fits (camera.min_inlier_share)"
        return _failed(window, fit.inlier_share if fit else 0.0, reason, config.camera)
    kind = "static" if fit.static else "fit"
    return replace(window, poses=fit.poses), CameraKnown(kind, fit.inlier_share)


def _compensated_in_image(
    window: RGBDWindow, config: PreprocessConfig
) -> tuple[RGBDWindow, CameraKnown]:
    fit = fit_background(window.frames, config.track, config.camera)
    if fit.kind == "none":
        if config.camera.motion == "auto":
            return window, CameraKnown("none")
        reason = "too little texture to see the camera's motion (camera.motion=fitted)"
        return _failed(window, 0.0, reason, config.camera)
    if fit.kind == "failed":
        reason = (
            "no motion of the background fits the image (camera.min_inlier_share); "
            "with a model's depth it may (depth)"
        )
        return _failed(window, fit.inlier_share, reason, config.camera)
    return replace(window, background=fit.background), CameraKnown(fit.kind, fit.inlier_share)


def _failed(
    window: RGBDWindow, inlier_share: float, reason: str, config: CameraConfig
) -> tuple[RGBDWindow, CameraKnown]:
    if config.on_failure == "reject":
        raise WindowRejected("camera", reason)
    return window, CameraKnown("failed", inlier_share)


def fit_camera(window: RGBDWindow, config: PreprocessConfig) -> CameraFit | None:
    """Find the camera's motion over a window; None where too few points hold depth.

    Args:
        window: N frames with depth; its poses are ignored.
        config: settings ``camera``, ``track``, ``rgbd_alignment`` and ``lifting``.
    """
    assert window.depth_m is not None
    window = replace(window, poses=None)
    points_px, whole = _lattice(window, config.lifting.search_px)
    if len(points_px) < _MIN_POINTS:
        return None
    images = tracker_images(window.frames, window.depth_m)
    track = replace(config.track, tracker="lk")
    tracks_px, misses_px = track_points(images, points_px.astype(np.float32), track)
    found = before = Motion.none(1)
    motions, share = [np.eye(4)], 1.0
    for n in range(1, len(window.frames)):
        alive = np.isfinite(misses_px[n])
        starts = [found, found.again(before)]
        before_m, after_m = _lifted(
            window, n, points_px, tracks_px[n], alive, config.lifting.search_px
        )
        if len(before_m) >= _MIN_POINTS:
            trial = _ransac(before_m, after_m, window.intrinsics_px[n], config.camera)
            starts.append(_about_middle(trial, whole))
        view, before = view_of(window, n), found
        found = best_of(whole, starts, view, 0, config.rgbd_alignment)
        for level, iterations in enumerate(_ITERATIONS):
            found = refine(whole, found, view, level, iterations, config.rgbd_alignment)
        motions.append(_matrix(found, whole))
        share = min(share, _inlier_share(whole, found, view, config))
    static = _is_static(whole, motions, window)
    if static:
        motions = [np.eye(4)] * len(motions)
    return CameraFit(np.stack([np.linalg.inv(m) for m in motions]), share, static)


def _lattice(window: RGBDWindow, search_px: int) -> tuple[Doubles, SurfacePatches]:
    """(L, 2) points at pixel centres that have depth, and all of them as one patch."""
    assert window.depth_m is not None
    height, width = window.frames.shape[1:3]
    x = np.floor((np.arange(_LATTICE) + 0.5) / _LATTICE * width)
    y = np.floor((np.arange(_LATTICE) + 0.5) / _LATTICE * height)
    points_px = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2) + 0.5
    z_m = sample_depth_m(window.depth_m[0], points_px, None, search_px)
    usable = np.isfinite(z_m) & (z_m > 0)
    points_px, z_m = points_px[usable], z_m[usable]
    points_m = back_project(points_px, z_m, window.intrinsics_px[0]).astype(np.float32)[None]
    columns, rows = points_px.astype(int).T
    grey = np.stack([level[rows, columns][None] for level in grey_levels(window.frames[0])])
    own = np.ones(points_m.shape[:2], bool)
    return points_px, SurfacePatches(points_m, own, grey, points_m.mean(1))


def _lifted(
    window: RGBDWindow,
    n: int,
    points_px: Doubles,
    tracked_px: Floats,
    alive: np.ndarray,
    search_px: int,
) -> tuple[Doubles, Doubles]:
    """(A, 3) points in the first camera's frame and in that of camera n."""
    assert window.depth_m is not None
    start_px, end_px = points_px[alive], tracked_px[alive].astype(np.float64)
    before_z = sample_depth_m(window.depth_m[0], start_px, None, search_px)
    after_z = sample_depth_m(window.depth_m[n], end_px, None, search_px)
    both = np.isfinite(before_z) & np.isfinite(after_z)
    return (
        back_project(start_px[both], before_z[both], window.intrinsics_px[0]),
        back_project(end_px[both], after_z[both], window.intrinsics_px[n]),
    )


def _ransac(
    before_m: Doubles, after_m: Doubles, intrinsics_px: Doubles, config: CameraConfig
) -> Doubles:
    """The (4, 4) rigid motion that most points share."""
    rng = np.random.default_rng(0)  # the same window gives the same motion
    triples = rng.integers(0, len(before_m), (config.trials, 3))
    trials = rigid_fit(before_m[triples], after_m[triples], np.ones(triples.shape))
    some = rng.permutation(len(before_m))[:_VOTERS]
    votes = _agree(trials, before_m[some], after_m[some], intrinsics_px, config)
    found = trials[votes.sum(1).argmax()]
    for _ in range(3):
        inliers = _agree(found[None], before_m, after_m, intrinsics_px, config)
        if inliers.sum() < 3:
            break
        found = rigid_fit(before_m[None], after_m[None], inliers.astype(float))[0]
    return found


def _agree(
    motions: Doubles,
    before_m: Doubles,
    after_m: Doubles,
    intrinsics_px: Doubles,
    config: CameraConfig,
) -> np.ndarray:
    """(T, A) bool: the point ends where the motion takes it, in the image and in depth."""
    moved_m = before_m @ motions[:, :3, :3].transpose(0, 2, 1) + motions[:, None, :3, 3]
    off_px = project(moved_m, intrinsics_px) - project(after_m, intrinsics_px)
    off_depth = np.abs(moved_m[..., 2] - after_m[:, 2])
    return (np.linalg.norm(off_px, axis=-1) <= config.inlier_px) & (
        off_depth <= config.inlier_depth_share * after_m[:, 2]
    )


def rigid_fit(before_m: Doubles, after_m: Doubles, weights: Doubles) -> Doubles:
    """Least squares rigid motions (Kabsch 1976).

    Args:
        before_m, after_m: (T, A, 3).
        weights: (T, A).

    Returns:
        (T, 4, 4).
    """
    total = weights.sum(1)[:, None] + 1e-12
    middle = (before_m * weights[..., None]).sum(1) / total
    middle_after = (after_m * weights[..., None]).sum(1) / total
    a, b = before_m - middle[:, None], after_m - middle_after[:, None]
    u, _, vt = np.linalg.svd(np.matmul((b * weights[..., None]).transpose(0, 2, 1), a))
    u[..., -1] *= np.linalg.det(u @ vt)[:, None]  # a reflection is no motion
    out = np.tile(np.eye(4), (len(before_m), 1, 1))
    out[:, :3, :3] = u @ vt
    out[:, :3, 3] = middle_after - np.einsum("tij,tj->ti", out[:, :3, :3], middle)
    return out


def _inlier_share(
    whole: SurfacePatches, motion: Motion, view: View, config: PreprocessConfig
) -> float:
    share = agreeing(
        whole,
        motion,
        view,
        config.rgbd_alignment,
        grey=config.static_points.max_colour_difference,
        depth_share=config.camera.inlier_depth_share,
    )
    return float(share[0])


def _matrix(motion: Motion, whole: SurfacePatches) -> Doubles:
    """(4, 4) of the whole image's motion."""
    middle = whole.middle_m[0].astype(np.float64)
    out = np.eye(4)
    # Single precision, multiplied often, is no longer quite a rotation.
    u, _, vt = np.linalg.svd(motion.rotation[0].astype(np.float64))
    out[:3, :3] = u @ vt
    out[:3, 3] = middle + motion.shift_m[0] - out[:3, :3] @ middle
    return out


def _about_middle(motion: Doubles, whole: SurfacePatches) -> Motion:
    middle = whole.middle_m[0].astype(np.float64)
    shift_m = motion[:3, :3] @ middle + motion[:3, 3] - middle
    return Motion(motion[:3, :3].astype(np.float32)[None], shift_m.astype(np.float32)[None])


def _is_static(whole: SurfacePatches, motions: list[Doubles], window: RGBDWindow) -> bool:
    """True where the motion found moves the image by no more than a fit's jitter."""
    points_m = whole.points_m[0].astype(np.float64)
    at_px = project(points_m, window.intrinsics_px[0])
    for n, motion in enumerate(motions):
        shift_px = project(move_points(points_m, motion), window.intrinsics_px[n]) - at_px
        if np.median(np.linalg.norm(shift_px, axis=1)) > _STILL_PX:
            return False
    return True
