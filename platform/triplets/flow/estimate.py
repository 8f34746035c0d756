"""3D flow of one window: static points are separated, the others tracked, lifted and aligned.

N frames of the window, G = 20 grid points a side, K = 7 steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.config import TrackConfig
from dynaflip.platform.triplets.flow.dragged_points import dragged_along
from dynaflip.platform.triplets.flow.image_motion import explained_by_parallax
from dynaflip.platform.triplets.flow.learned_tracker import (
    flow_in_3d,
    track_windows,
    tracks_windows,
)
from dynaflip.platform.triplets.flow.lifting import at_steps, lift_tracks
from dynaflip.platform.triplets.flow.rigid_smoothing import outvoted, smooth_rigidly
from dynaflip.platform.triplets.flow.static_points import (
    StaticPoints,
    compare_with_static_scene,
    pin_static_points,
    static_explains_better,
)
from dynaflip.platform.triplets.flow.surface_tracking import track_surfaces
from dynaflip.platform.triplets.flow.tracking import track_points, tracker_images
from dynaflip.platform.triplets.flow.window import RGBDWindow
from dynaflip.platform.triplets.schema import GRID


@dataclass(frozen=True)
class Flow:
    """``origin_m`` (G, G, 3) and ``displacement_m`` (K, G, G, 3) in camera frame t;
    ``visible`` (K, G, G) bool; ``origin_px`` (G, G, 2) and ``tracks_px`` (K, G, G, 2)
    in the tracked image, camera motion included; ``misfit`` (G, G) in [0, 1]: how badly the
    surface patch around a tracked point fits its worst frame, NaN for other points."""

    origin_m: Floats
    displacement_m: Floats
    visible: np.ndarray
    origin_px: Floats
    tracks_px: Floats
    misfit: Floats


@dataclass(frozen=True)
class Tracks3D:
    """Lifted tracks: ``xyz_m`` (N, P, 3) in the first camera's frame, ``tracks_px`` (N, P, 2) and
    ``visible`` (N, P) bool."""

    xyz_m: Floats
    tracks_px: Floats
    visible: np.ndarray


def flow_of_window(
    window: RGBDWindow,
    times_s: Doubles,
    origin_px: Floats,
    config: PreprocessConfig,
    tracker: Any = None,
) -> Flow:
    """Estimate the 3D flow of a window.

    Args:
        window: N frames with depth and cameras, where they are known.
        times_s: (N,) of the frames; the first is t, the last t + window.
        origin_px: (G, G, 2) the points on frame t.
        config: settings.
        tracker: the tracker of whole windows, or its answers; None: loaded where it is named.
    """
    points_px = origin_px.reshape(-1, 2)
    shape = (len(window.frames), *origin_px.shape[:2])
    static = _static_points(window, points_px, config)
    moves = np.ones(len(points_px), bool) if static is None else ~static.is_static()
    tracks = _tracked(window, points_px, moves, config, tracker)
    aligned, misfit = np.zeros(len(points_px), bool), np.full(len(points_px), np.nan, np.float32)
    if static is not None:
        if window.depth_m is not None and config.rgbd_alignment.enabled and moves.any():
            tracks, moves, aligned, misfit = _aligned(
                window, points_px, moves, tracks, static, config
            )
        tracks = _without_dragged(tracks, window, points_px, moves, static.depth_noise, config)
        tracks = _pinned(tracks, static, moves, shape)
    xyz_m, visible = tracks.xyz_m.reshape(*shape, 3), tracks.visible.reshape(shape)
    moving = moves.reshape(shape[1:])
    if config.rigid_smoothing.enabled:
        # Without the static test every point is tracked, and none can be outvoted.
        wrong = outvoted(xyz_m[0], moving, visible[0], config.rigid_smoothing)
        if window.depth_m is None and config.dragged_points.enabled:
            wrong &= ~moving  # on a plane all are neighbours: colour tells which belong together
        visible = visible & ~wrong
    steps_m, steps_visible = at_steps(xyz_m, visible, times_s)
    steps_px, _ = at_steps(tracks.tracks_px.reshape(*shape, 2), visible, times_s)
    displacement_m = np.where(visible[0][..., None], steps_m - xyz_m[0], np.float32(0))
    if config.rigid_smoothing.enabled:
        # Aligned surface patches need no smoothing by their neighbours.
        alone = steps_visible & moving & ~aligned.reshape(shape[1:])
        displacement_m = smooth_rigidly(xyz_m[0], displacement_m, alone, config.rigid_smoothing)
    return Flow(
        xyz_m[0].astype(np.float32),
        displacement_m.astype(np.float32),
        steps_visible,
        origin_px,
        steps_px,
        misfit.reshape(shape[1:]),
    )


def _static_points(
    window: RGBDWindow, points_px: Floats, config: PreprocessConfig
) -> StaticPoints | None:
    """The static test of the points, or None where it is off or impossible."""
    # Without depth the plane moves wrongly under a moving camera: there is nothing to compare.
    if not config.static_points.enabled or (window.depth_m is None and window.poses is not None):
        return None
    return compare_with_static_scene(
        window, points_px, config.static_points, config.lifting.search_px
    )


def _aligned(
    window: RGBDWindow,
    points_px: Floats,
    moves: np.ndarray,
    tracks: Tracks3D,
    static: StaticPoints,
    config: PreprocessConfig,
) -> tuple[Tracks3D, np.ndarray, np.ndarray, Floats]:
    """Align the surface patches of moving points: tracks, (P,) moves, (P,) aligned, (P,) misfit."""
    found = track_surfaces(
        window, points_px, moves, tracks.xyz_m, tracks.visible, config, static.depth_noise
    )
    fits = found.in_sight & (found.misfit <= config.rgbd_alignment.max_misfit)
    tracks = Tracks3D(
        np.where(found.known[:, None], found.xyz_m, tracks.xyz_m),
        np.where(found.known[:, None], found.tracks_px, tracks.tracks_px),
        np.where(found.known, fits, tracks.visible),
    )
    static_after_all = static_explains_better(
        window,
        static,
        tracks.xyz_m,
        tracks.tracks_px,
        config.static_points,
        config.lifting.search_px,
    )
    known = found.known & ~static_after_all
    misfit = np.where(known, found.misfit.max(0), np.nan).astype(np.float32)
    return tracks, moves & ~static_after_all, found.known, misfit


def _without_dragged(
    tracks: Tracks3D,
    window: RGBDWindow,
    points_px: Floats,
    moves: np.ndarray,
    depth_noise: float,
    config: PreprocessConfig,
) -> Tracks3D:
    """Tracks without trust in points that something drags along, or that parallax explains."""
    lost = dragged_along(window, points_px, moves, depth_noise, config)
    if window.background is not None:
        end_px, inlier_px = tracks.tracks_px[-1], config.camera.inlier_px
        lost |= moves & explained_by_parallax(window.background, points_px, end_px, inlier_px)
    return replace(tracks, visible=tracks.visible & ~lost)


def _pinned(
    tracks: Tracks3D, static: StaticPoints, moves: np.ndarray, shape: tuple[int, ...]
) -> Tracks3D:
    """Tracks with static points at their own position; ``shape`` is (N, G, G)."""
    xyz_m, visible = pin_static_points(
        tracks.xyz_m.reshape(*shape, 3), tracks.visible.reshape(shape), static, ~moves
    )
    static_px = static.static_px.astype(np.float32)
    return Tracks3D(xyz_m, np.where(moves[:, None], tracks.tracks_px, static_px), visible)


def _tracked(
    window: RGBDWindow,
    points_px: Floats,
    follow: np.ndarray,
    config: PreprocessConfig,
    tracker: Any,
) -> Tracks3D:
    """Tracks of the points to follow; the others stay at their pixel."""
    tracks_px = np.repeat(points_px[None], len(window.frames), axis=0)
    trusted = np.ones(tracks_px.shape[:2], dtype=bool)
    if follow.any():
        tracks_px[:, follow], misses_px = _track(window, points_px, follow, config.track, tracker)
        trusted[:, follow] = np.isfinite(misses_px)
    grid = (len(window.frames), GRID, GRID)
    # Without depth the background's motion is taken out here, in the image.
    steady_px, intrinsics_px = tracks_px, window.intrinsics_px
    if window.background is not None:
        steady_px = window.background.all_back(tracks_px)
        intrinsics_px = np.repeat(intrinsics_px[:1], len(tracks_px), axis=0)
    xyz_m, visible = lift_tracks(
        steady_px.reshape(*grid, 2),
        trusted.reshape(grid),
        window.depth_m,
        intrinsics_px,
        window.poses,
        config.lifting,
    )
    points = len(points_px)
    return Tracks3D(xyz_m.reshape(-1, points, 3), tracks_px, visible.reshape(-1, points))


def _track(
    window: RGBDWindow, points_px: Floats, follow: np.ndarray, config: TrackConfig, tracker: Any
) -> tuple[Floats, np.ndarray]:
    """(N, F, 2) tracks of the F points to follow, and (N, F) their misses in pixels."""
    if tracks_windows(config.tracker):
        # It looks at points together, so it is given all: more of them hold it better.
        tracks_px, misses_px = track_windows(window.frames, points_px, config.tracker, tracker)
        return tracks_px[:, follow], misses_px[:, follow]
    images = tracker_images(window.frames, window.depth_m if config.use_depth else None)
    return track_points(images, points_px[follow], config)


def flow_source(config: PreprocessConfig) -> str:
    """Value of the column ``flow_source``, such as ``lk+aligned``."""
    if config.flow_source != "tracked":
        return config.flow_source
    if flow_in_3d(config):
        return config.track.tracker
    aligned = (
        config.rgbd_alignment.enabled and config.static_points.enabled and config.depth != "plane"
    )
    return config.track.tracker + ("+aligned" if aligned else "")
