"""The 3D flow of one window: still points told apart, the others tracked and lifted.

N frames of the window, G = 20 grid points a side, K = 7 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaflip.platform.triplets.clips import Cameras, Doubles, Floats, Frames
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.lift import at_steps, lift_tracks
from dynaflip.platform.triplets.pieces import doubtful, move_rigidly
from dynaflip.platform.triplets.still import compare_with_still, hold_still
from dynaflip.platform.triplets.track import grid_px, track_points, tracker_pictures


@dataclass(frozen=True)
class Flow:
    """``origin_m`` (G, G, 3) and ``displacement_m`` (K, G, G, 3) in camera frame t;
    ``visible`` (K, G, G) bool; ``origin_px`` (G, G, 2) and ``tracks_px`` (K, G, G, 2)
    in the tracked picture, camera motion included."""

    origin_m: Floats
    displacement_m: Floats
    visible: np.ndarray
    origin_px: Floats
    tracks_px: Floats


def flow_of_window(
    frames: Frames,
    times_s: Doubles,
    depth_m: Floats | None,
    cameras: Cameras,
    config: PreprocessConfig,
) -> Flow:
    """Make the flow of a window.

    Args:
        frames: (N, H, W, 3) uint8.
        times_s: (N,) of the frames; the first is t, the last t + window.
        depth_m: (N, H, W) z-depth in metres, or None for the plane z = 1.
        cameras: of the frames, intrinsics for H × W pictures.
        config: settings.
    """
    origin_px = grid_px(*frames.shape[1:3])
    points_px = origin_px.reshape(-1, 2)
    intrinsics_px, poses = cameras.intrinsics_px, cameras.poses
    tracks_px = np.repeat(points_px[None], len(frames), axis=0)
    trusted = np.ones(tracks_px.shape[:2], dtype=bool)
    follow = np.ones(len(points_px), dtype=bool)
    still = None
    # Without depth the plane moves wrongly under a moving camera: nothing to compare with.
    if config.still.enabled and (depth_m is not None or poses is None):
        still = compare_with_still(
            frames, points_px, depth_m, intrinsics_px, poses, config.still, config.lift.search_px
        )
        follow = ~still.rests()
        tracks_px = still.place_px.astype(np.float32)
    if follow.any():
        pictures = tracker_pictures(frames, depth_m if config.track.use_depth else None)
        followed = track_points(pictures, points_px[follow], config.track)
        tracks_px[:, follow], trusted[:, follow] = followed
    shape = (len(frames), *origin_px.shape[:2])
    xyz_m, visible = lift_tracks(
        tracks_px.reshape(*shape, 2),
        trusted.reshape(shape),
        depth_m,
        intrinsics_px,
        poses,
        config.lift,
    )
    if still is not None:
        xyz_m, visible = hold_still(xyz_m, visible, still)
    moves = follow.reshape(shape[1:])
    if config.pieces.enabled:
        # Without the test for stillness everything is followed, and nobody can be outvoted.
        visible = visible & ~doubtful(xyz_m[0], moves, visible[0], config.pieces)
    steps_m, steps_visible = at_steps(xyz_m, visible, times_s)
    steps_px, _ = at_steps(tracks_px.reshape(*shape, 2), visible, times_s)
    displacement_m = np.where(visible[0][..., None], steps_m - xyz_m[0], np.float32(0))
    if config.pieces.enabled:
        displacement_m = move_rigidly(
            xyz_m[0], displacement_m, steps_visible & moves, config.pieces
        )
    return Flow(xyz_m[0], displacement_m, steps_visible, origin_px, steps_px)
