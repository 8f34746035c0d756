"""The 3D flow of one window: still points told apart, the others tracked, lifted and aligned.

N frames of the window, G = 20 grid points a side, K = 7 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats
from dynaflip.platform.triplets.config import PreprocessConfig, TrackConfig
from dynaflip.platform.triplets.flow.learned_tracker import is_learned, track_learned
from dynaflip.platform.triplets.flow.lifting import at_steps, lift_tracks
from dynaflip.platform.triplets.flow.rigid_smoothing import doubtful, move_rigidly
from dynaflip.platform.triplets.flow.static_points import compare_with_still, hold_still, stays_put
from dynaflip.platform.triplets.flow.surface_tracking import follow_pieces
from dynaflip.platform.triplets.flow.tracking import track_points, tracker_images
from dynaflip.platform.triplets.flow.window import Shot
from dynaflip.platform.triplets.schema import GRID


@dataclass(frozen=True)
class Flow:
    """``origin_m`` (G, G, 3) and ``displacement_m`` (K, G, G, 3) in camera frame t;
    ``visible`` (K, G, G) bool; ``origin_px`` (G, G, 2) and ``tracks_px`` (K, G, G, 2)
    in the tracked image, camera motion included; ``misfit`` (G, G) in [0, 1]: how badly
    the piece about a followed point fits the frame that it fits worst, NaN for others."""

    origin_m: Floats
    displacement_m: Floats
    visible: np.ndarray
    origin_px: Floats
    tracks_px: Floats
    misfit: Floats


@dataclass(frozen=True)
class Paths:
    """``xyz_m`` (N, P, 3) in the first camera's frame, ``tracks_px`` (N, P, 2), ``visible``
    (N, P) bool."""

    xyz_m: Floats
    tracks_px: Floats
    visible: np.ndarray


def flow_of_window(
    shot: Shot, times_s: Doubles, origin_px: Floats, config: PreprocessConfig
) -> Flow:
    """Make the flow of a window.

    Args:
        shot: N frames with what is known of depth and cameras.
        times_s: (N,) of the frames; the first is t, the last t + window.
        origin_px: (G, G, 2) the points on frame t.
        config: settings.
    """
    points_px = origin_px.reshape(-1, 2)
    follow = np.ones(len(points_px), dtype=bool)
    still = None
    # Without depth the plane moves wrongly under a moving camera: nothing to compare with.
    if config.still.enabled and (shot.depth_m is not None or shot.poses is None):
        still = compare_with_still(shot, points_px, config.still, config.lift.search_px)
        follow = ~still.rests()
    paths = _tracked(shot, points_px, follow, config)
    aligned = np.zeros(len(points_px), dtype=bool)
    misfit = np.full(len(points_px), np.nan, dtype=np.float32)
    if still is not None and shot.depth_m is not None and config.register.enabled and follow.any():
        found = follow_pieces(
            shot, points_px, follow, paths.xyz_m, paths.visible, config, still.depth_noise
        )
        aligned = found.known
        misfit[aligned] = found.misfit.max(0)[aligned]
        fits = found.in_sight & (found.misfit <= config.register.max_misfit)
        paths = Paths(
            np.where(aligned[:, None], found.xyz_m, paths.xyz_m),
            np.where(aligned[:, None], found.tracks_px, paths.tracks_px),
            np.where(aligned, fits, paths.visible),
        )
        held = stays_put(
            shot, still, paths.xyz_m, paths.tracks_px, config.still, config.lift.search_px
        )
        follow &= ~held
        misfit[held] = np.nan
    shape = (len(shot.frames), *origin_px.shape[:2])
    xyz_m, visible = paths.xyz_m.reshape(*shape, 3), paths.visible.reshape(shape)
    tracks_px = paths.tracks_px
    if still is not None:
        xyz_m, visible = hold_still(xyz_m, visible, still, ~follow)
        place_px = still.place_px.astype(np.float32)
        tracks_px = np.where(follow[:, None], tracks_px, place_px)
    moves = follow.reshape(shape[1:])
    if config.pieces.enabled:
        # Without the test for stillness everything is followed, and nobody can be outvoted.
        visible = visible & ~doubtful(xyz_m[0], moves, visible[0], config.pieces)
    steps_m, steps_visible = at_steps(xyz_m, visible, times_s)
    steps_px, _ = at_steps(tracks_px.reshape(*shape, 2), visible, times_s)
    displacement_m = np.where(visible[0][..., None], steps_m - xyz_m[0], np.float32(0))
    if config.pieces.enabled:
        # Pieces that were aligned need no help of their neighbours.
        alone = steps_visible & moves & ~aligned.reshape(shape[1:])
        displacement_m = move_rigidly(xyz_m[0], displacement_m, alone, config.pieces)
    return Flow(
        xyz_m[0].astype(np.float32),
        displacement_m.astype(np.float32),
        steps_visible,
        origin_px,
        steps_px,
        misfit.reshape(shape[1:]),
    )


def _tracked(shot: Shot, points_px: Floats, follow: np.ndarray, config: PreprocessConfig) -> Paths:
    """Where a tracker has the points to follow; the others stay at their pixel."""
    tracks_px = np.repeat(points_px[None], len(shot.frames), axis=0)
    trusted = np.ones(tracks_px.shape[:2], dtype=bool)
    if follow.any():
        tracks_px[:, follow], misses_px = _track(shot, points_px[follow], config.track)
        trusted[:, follow] = np.isfinite(misses_px)
    grid = (len(shot.frames), GRID, GRID)
    xyz_m, visible = lift_tracks(
        tracks_px.reshape(*grid, 2),
        trusted.reshape(grid),
        shot.depth_m,
        shot.intrinsics_px,
        shot.poses,
        config.lift,
    )
    points = len(points_px)
    return Paths(xyz_m.reshape(-1, points, 3), tracks_px, visible.reshape(-1, points))


def _track(shot: Shot, points_px: Floats, config: TrackConfig) -> tuple[Floats, np.ndarray]:
    if is_learned(config.tracker):
        return track_learned(shot.frames, points_px, config.tracker)
    images = tracker_images(shot.frames, shot.depth_m if config.use_depth else None)
    return track_points(images, points_px, config)


def flow_source(config: PreprocessConfig) -> str:
    """What triplets say of where their flow came from, such as ``lk+aligned``."""
    if config.flow_source != "tracked":
        return config.flow_source
    aligned = config.register.enabled and config.still.enabled and config.depth != "plane"
    return config.track.tracker + ("+aligned" if aligned else "")
