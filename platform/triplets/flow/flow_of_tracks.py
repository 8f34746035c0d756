"""Flow from a 3D tracker's tracks: scale, cameras, and points in the camera frame of frame t.

A 3D tracker's word stands: static points, surfaces and neighbours correct 2D tracks only. What
was recorded comes first, though. Recorded intrinsics put points on their rays, recorded depth
brings a relative scale to metres (or contradicts a metric one), and recorded poses, where points
are in metres, say how the camera moved; else the tracker's do, else a rigid fit to the tracks.

N frames of a window, P points, G = 20 grid points a side, K = 7 steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected, Doubles, Floats, WindowRejected
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.camera_motion import CameraKnown, rigid_fit
from dynaflip.platform.triplets.flow.config import CameraConfig
from dynaflip.platform.triplets.flow.estimate import Flow
from dynaflip.platform.triplets.flow.lifting import (
    assumed_intrinsics_px,
    at_steps,
    back_project,
    move_points,
    project,
    sample_depth_m,
)
from dynaflip.platform.triplets.flow.tracker_3d import STAGE, WindowToTrack, WindowTracks3D
from dynaflip.platform.triplets.flow.tracker_3d_checks import checked, pose_contradiction, typed
from dynaflip.platform.triplets.models.depth_checks import FURTHEST_SCENE_M, NEAREST_SCENE_M

# Two statements about depth or focal length contradict each other beyond this share.
_AGREES = 0.1
_MIN_COMPARED = 12  # points with recorded depth
# The camera counts as static where its motion would move the image by no more (median).
_STILL_PX = 0.25
_REFINEMENTS = 6


@dataclass(frozen=True)
class TrackedWindow:
    """The part of a triplet that tells of a window that was tracked in 3D.

    ``median_depth`` of the points on frame t, in metres where ``depth_scale`` (as in the schema)
    is not relative; ``intrinsics_px`` (N, 4) of the tracked image, and ``focal_kind`` where they
    are from.
    """

    flow: Flow
    camera: CameraKnown
    median_depth: float
    depth_scale: str
    intrinsics_px: Doubles
    focal_kind: str


def check_settings(config: PreprocessConfig) -> None:
    """Refuse settings that a 3D tracker leaves without effect.

    Raises:
        UserError: the first of them.
    """
    name = config.track.tracker
    if any((source.depth or config.depth) == "plane" for source in config.all_sources()):
        raise UserError(
            f"depth: plane contradicts track.tracker {name}, which finds depth itself: leave it at "
            f"auto, or name a model whose depth the tracker is given"
        )
    same = PreprocessConfig()
    unused = ("static_points", "dragged_points", "rgbd_alignment", "rigid_smoothing")
    changed = [section for section in unused if getattr(config, section) != getattr(same, section)]
    of_track = ("use_depth", "lk_window_px", "lk_levels", "max_backward_error_px")
    changed += [
        f"track.{f}" for f in of_track if getattr(config.track, f) != getattr(same.track, f)
    ]
    if config.lifting.max_depth_jump != same.lifting.max_depth_jump:
        changed.append("lifting.max_depth_jump")
    if changed:
        raise UserError(
            f"{changed[0]}: has no effect with track.tracker {name}, whose 3D tracks are taken as "
            f"they are; leave it at its default"
        )


def flow_of_tracks(
    tracks: WindowTracks3D,
    window: WindowToTrack,
    scale: str,
    recorded_m: Floats | None,
    origin_px: Floats,
    config: PreprocessConfig,
) -> TrackedWindow:
    """Turn a 3D tracker's tracks into the flow of a window.

    Args:
        tracks: as the tracker gave them.
        window: what it was given.
        scale: of the tracker, metric or relative.
        recorded_m: (N, H, W) recorded depth of the tracked image (the first frame is looked at),
            or None.
        origin_px: (G, G, 2) the points on frame t: ``window.points_px`` as a grid.
        config: settings.

    Raises:
        ClipRejected: a mistake of the adapter, or a contradiction with what was recorded.
        WindowRejected: the window's tracks are no use, or no camera motion fits.
    """
    name = config.track.tracker
    height, width = window.frames.shape[1:3]
    tracks = typed(tracks, window, name)
    used_px, kind = _intrinsics(tracks, window)
    tracks = checked(tracks, window, used_px, name)
    if kind == "recorded" and tracks.intrinsics_px is not None:
        assert window.intrinsics_px is not None
        tracks = _on_recorded_rays(tracks, window.intrinsics_px, name)
        used_px = window.intrinsics_px
    factor, depth_scale = _scale(tracks, window, scale, recorded_m, config)
    tracks = _scaled(tracks, factor)
    poses, camera = _camera(tracks, window, used_px, depth_scale, config)
    tracks_px = np.stack([project(p, k) for p, k in zip(tracks.points_cam_m, used_px, strict=True)])
    inside = ((tracks_px >= 0) & (tracks_px < (width, height))).all(-1)
    # A point that frame t does not show has no origin, and so no flow.
    visible = tracks.visible & inside & tracks.visible[0]
    flow = _flow(tracks, visible, tracks_px, poses, window, origin_px)
    median = float(np.median(tracks.points_cam_m[0][tracks.visible[0], 2]))
    return TrackedWindow(flow, camera, median, depth_scale, used_px, kind)


def _intrinsics(tracks: WindowTracks3D, window: WindowToTrack) -> tuple[Doubles, str]:
    """(N, 4) intrinsics that the points were made with, and the column ``focal_kind``."""
    count, height, width = window.frames.shape[:3]
    if tracks.intrinsics_px is not None:
        return tracks.intrinsics_px, "estimated" if window.intrinsics_px is None else "recorded"
    if window.intrinsics_px is not None:
        return window.intrinsics_px, "recorded"
    return np.tile(assumed_intrinsics_px(height, width), (count, 1)), "assumed"


def _on_recorded_rays(tracks: WindowTracks3D, recorded_px: Doubles, name: str) -> WindowTracks3D:
    """Points at their pixel and depth, by the recorded focal length in place of the tracker's."""
    assert tracks.intrinsics_px is not None
    given, wanted = tracks.intrinsics_px[0, 0], recorded_px[0, 0]
    if abs(given / wanted - 1) > _AGREES:
        raise ClipRejected(
            STAGE,
            f"{name} says that the focal length is {given:.4g} px, the recording says "
            f"{wanted:.4g} px (of the tracked image)",
        )
    points = [
        back_project(project(xyz, of), xyz[:, 2], to)
        for xyz, of, to in zip(tracks.points_cam_m, tracks.intrinsics_px, recorded_px, strict=True)
    ]
    return replace(tracks, points_cam_m=np.stack(points), intrinsics_px=recorded_px)


def _scale(
    tracks: WindowTracks3D,
    window: WindowToTrack,
    scale: str,
    recorded_m: Floats | None,
    config: PreprocessConfig,
) -> tuple[float, str]:
    """The factor on the points, and the column ``depth_scale``."""
    name, seen = config.track.tracker, tracks.visible[0]
    z = tracks.points_cam_m[0, :, 2]
    median = float(np.median(z[seen]))
    if scale == "metric" and not NEAREST_SCENE_M <= median <= FURTHEST_SCENE_M:
        raise ClipRejected(
            STAGE,
            f"{name} says that its points are in metres, but their median depth is {median:.4g}",
        )
    if recorded_m is None:
        return 1.0, scale
    points_px = window.points_px.astype(np.float64)
    there_m = sample_depth_m(recorded_m[0], points_px, None, config.lifting.search_px)
    both = seen & np.isfinite(there_m) & (there_m > 0)
    if both.sum() < _MIN_COMPARED:
        return 1.0, scale
    ratio = float(np.median(there_m[both] / z[both]))
    if scale == "metric":
        if abs(ratio - 1) > _AGREES:
            raise ClipRejected(
                STAGE,
                f"{name} says that its points are in metres, but their median depth is "
                f"{np.median(z[both]):.4g} m where the recording has "
                f"{np.median(there_m[both]):.4g} m (with scale = 'relative' recorded depth gives "
                f"the scale)",
            )
        return 1.0, scale
    agreeing = (np.abs(z[both] * ratio / there_m[both] - 1) < _AGREES).mean()
    if config.align_depth and agreeing >= 0.5:
        return ratio, "aligned"
    return 1.0, scale


def _scaled(tracks: WindowTracks3D, factor: float) -> WindowTracks3D:
    poses = tracks.poses
    if poses is not None:
        poses = poses.copy()
        poses[:, :3, 3] *= factor
    return replace(tracks, points_cam_m=tracks.points_cam_m * factor, poses=poses)


def _camera(
    tracks: WindowTracks3D,
    window: WindowToTrack,
    used_px: Doubles,
    depth_scale: str,
    config: PreprocessConfig,
) -> tuple[Doubles, CameraKnown]:
    """(N, 4, 4) camera n to the first camera, and where that is from."""
    still = np.tile(np.eye(4), (len(window.frames), 1, 1))
    motion, in_metres = config.camera.motion, depth_scale != "relative"
    if motion == "none":
        return still, CameraKnown("none")
    if motion == "recorded" and (window.poses is None or not in_metres):
        why = (
            "no pose recorded" if window.poses is None else "the points' scale is relative"
        ) + " (camera.motion=recorded)"
        raise WindowRejected("camera", why)
    if motion != "fitted" and window.poses is not None and in_metres:
        said = pose_contradiction(tracks, window.poses)
        if said:
            raise WindowRejected(
                "camera", f"the recorded poses contradict {config.track.tracker}'s tracks: {said}"
            )
        return np.linalg.inv(window.poses[0]) @ window.poses, CameraKnown("pose")
    if motion != "fitted" and tracks.poses is not None:
        return np.linalg.inv(tracks.poses[0]) @ tracks.poses, CameraKnown("tracker")
    poses, share = fit_to_tracks(tracks, used_px, config.camera)
    if share < config.camera.min_inlier_share:
        if config.camera.on_failure == "reject":
            raise WindowRejected("camera", "no motion of the camera fits (camera.min_inlier_share)")
        return still, CameraKnown("failed", share)
    moved = bool(np.abs(poses - still).max() > 0)
    return poses, CameraKnown("fit" if moved else "static", share)


def fit_to_tracks(
    tracks: WindowTracks3D, intrinsics_px: Doubles, config: CameraConfig
) -> tuple[Doubles, float]:
    """The camera's motion as the rigid motion that fits ``min_inlier_share`` of the points best.

    Triples of points are tried (least quantile of squares, after Rousseeuw 1984), and refined.

    Args:
        tracks: checked.
        intrinsics_px: (N, 4) of the tracked image.
        config: tolerances and trials.

    Returns:
        (N, 4, 4) camera n to the first camera (all the identity, where it stood still), and the
        smallest share over frames of the visible points that agree; 0 where a frame has fewer
        than three.
    """
    count = len(tracks.points_cam_m)
    poses, least = np.tile(np.eye(4), (count, 1, 1)), 1.0
    rng = np.random.default_rng(0)  # the same window gives the same motion
    first = tracks.points_cam_m[0]
    for n in range(1, count):
        both = np.flatnonzero(tracks.visible[0] & tracks.visible[n])
        if len(both) < 3:
            return poses, 0.0
        before, after = first[both], tracks.points_cam_m[n, both]
        triples = rng.integers(0, len(both), (config.trials, 3))
        trials = rigid_fit(before[triples], after[triples], np.ones(triples.shape))
        trials = np.concatenate([np.eye(4)[None], trials])
        misses = np.stack([_misses(one, before, after, intrinsics_px[n], config) for one in trials])
        # Not by the number of inliers: what moves by less than the tolerance would be one, too,
        # and a motion between its own and the camera's would win.
        chosen = np.quantile(misses, max(config.min_inlier_share, 0.2), axis=1).argmin()
        found, inliers = trials[chosen], misses[chosen] <= 1
        for _ in range(_REFINEMENTS):
            if inliers.sum() < 3:
                return poses, 0.0
            # The median inlier sets the scale beyond which the others pull less.
            off = np.linalg.norm(move_points(before, found) - after, axis=-1) / after[:, 2]
            weights = inliers / (1 + (off / (1.5 * np.median(off[inliers]) + 1e-9)) ** 2) ** 2
            found = rigid_fit(before[None], after[None], weights[None])[0]
            inliers = _misses(found, before, after, intrinsics_px[n], config) <= 1
        least = min(least, float(inliers.mean()))
        poses[n] = np.linalg.inv(found)
    return _snapped(poses, tracks, intrinsics_px), least


def _misses(
    motion: Doubles, before: Doubles, after: Doubles, intrinsics_px: Doubles, config: CameraConfig
) -> Doubles:
    """(A,) how far a point ends from where the motion takes it, in tolerances (1: an inlier)."""
    moved = move_points(before, motion)
    off_px = np.linalg.norm(project(moved, intrinsics_px) - project(after, intrinsics_px), axis=-1)
    off_depth = np.abs(moved[:, 2] - after[:, 2]) / after[:, 2]
    return np.maximum(off_px / config.inlier_px, off_depth / config.inlier_depth_share)


def _snapped(poses: Doubles, tracks: WindowTracks3D, intrinsics_px: Doubles) -> Doubles:
    """No motion at all where a fit's jitter is all there is."""
    points = tracks.points_cam_m[0][tracks.visible[0]]
    at_px = project(points, intrinsics_px[0])
    for n, pose in enumerate(poses):
        moved_px = project(move_points(points, np.linalg.inv(pose)), intrinsics_px[n])
        if np.median(np.linalg.norm(moved_px - at_px, axis=1)) > _STILL_PX:
            return poses
    return np.tile(np.eye(4), (len(poses), 1, 1))


def _flow(
    tracks: WindowTracks3D,
    visible: np.ndarray,
    tracks_px: Doubles,
    poses: Doubles,
    window: WindowToTrack,
    origin_px: Floats,
) -> Flow:
    """Flow of points (N, P, 3) in the camera of each frame; ``poses`` lead to the first camera."""
    grid = origin_px.shape[:2]
    xyz = np.stack(
        [move_points(p, pose) for p, pose in zip(tracks.points_cam_m, poses, strict=True)]
    )
    # A point that is lost stays where it was.
    known = tracks.points_cam_m[..., 2] > 0
    for n in range(1, len(xyz)):
        xyz[n] = np.where(known[n][:, None], xyz[n], xyz[n - 1])
        tracks_px[n] = np.where(known[n][:, None], tracks_px[n], tracks_px[n - 1])
    shape = (len(xyz), *grid)
    in_sight = visible.reshape(shape)
    steps, steps_visible = at_steps(xyz.reshape(*shape, 3), in_sight, window.times_s)
    steps_px, _ = at_steps(tracks_px.reshape(*shape, 2), in_sight, window.times_s)
    shown = in_sight[0][..., None]
    origin = xyz[0].reshape(*grid, 3)
    zero = np.float32(0)
    return Flow(
        np.where(shown, origin, zero).astype(np.float32),
        np.where(shown, steps - origin, zero).astype(np.float32),
        steps_visible,
        origin_px,
        steps_px,
        np.full(grid, np.nan, np.float32),
    )
