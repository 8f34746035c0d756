"""Checks of a 3D tracker's output: a wrong adapter is refused, with the reason in one line.

Shapes and types, numbers that are none, the frame that points are in (frame 0 must show them
where they were asked for), rotations, the direction of the poses (the stillest points must stand
still under them) and the scale. ``tracker:`` rejections are an adapter's mistakes, so a job whose
first clips all have one is stopped (:class:`AdapterWatch`).

N frames of a window, P points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected, Doubles, WindowRejected
from dynaflip.platform.triplets.flow.lifting import move_points, project
from dynaflip.platform.triplets.flow.tracker_3d import STAGE, WindowToTrack, WindowTracks3D

# Points without numbers that count as lost; more of them are an adapter's mistake.
_MOST_NAN = 0.1
# Points that miss their own pixel in frame 0: by how much (of the longer side, and at least), and
# how many.
_MISS_SHARE, _MISS_PX, _MOST_MISSES = 0.015, 3.0, 0.1
# A point is asked for because frame 0 shows it: most must be visible there.
_LEAST_VISIBLE = 0.1
_ROTATION_ERROR = 0.01  # half precision is no better
# The share of points that stand still at least, and the camera motions (of the depth) too small
# to tell the direction of poses by.
_STILL, _LEAST_MOTION = 0.2, 0.002
_RATIO = 2.0  # by how much another reading of the poses must be better
_MIN_JUDGED = 8  # points
_DEPTH_WEIGHT = 0.25
_OTHER_AXES = np.diag([1.0, -1.0, -1.0, 1.0])  # y up and z back, as in OpenGL
_FIRST_CLIPS = 8


def checked(
    tracks: WindowTracks3D, window: WindowToTrack, used_px: Doubles, name: str
) -> WindowTracks3D:
    """The tracks, checked: what is not finite is invisible, poses are exact rotations.

    Args:
        tracks: typed.
        window: what the tracker was given.
        used_px: (N, 4) intrinsics that its points were made with.
        name: of the tracker, for the reason.

    Raises:
        ClipRejected: the adapter is wrong, in frame, axes, resolution or order in time.
        WindowRejected: the tracks contradict their own poses, or show nothing.
    """
    tracks = _visible_where_known(tracks, name)
    _check_first_frame(tracks, window, used_px, name)
    if tracks.poses is not None:
        poses = _rotations(tracks.poses, name)
        tracks = replace(tracks, poses=poses)
        said = pose_contradiction(tracks, poses)
        if said:
            raise WindowRejected(STAGE, f"{name}: its poses contradict its tracks: {said}")
    return tracks


def typed(tracks: WindowTracks3D, window: WindowToTrack, name: str) -> WindowTracks3D:
    """The tracks as arrays of the right shapes and types; cameras are finite.

    Raises:
        ClipRejected: something has another shape or type.
    """
    count, points = len(window.frames), len(window.points_px)
    wanted = {
        "points_cam_m": (count, points, 3),
        "visible": (count, points),
        "poses": (count, 4, 4),
        "intrinsics_px": (count, 4),
    }
    arrays: dict[str, np.ndarray | None] = {}
    for field, shape in wanted.items():
        value = getattr(tracks, field)
        if value is None and field in ("poses", "intrinsics_px"):
            arrays[field] = None
            continue
        array = _as_array(value, f"{name} gave {field}")
        if array.shape != shape:
            raise ClipRejected(
                STAGE,
                f"{name} gave {field} of shape {array.shape}, not {shape} "
                f"({count} frames, {points} points)",
            )
        arrays[field] = array
        if field == "visible":
            _check_bool(array, name)
        elif array.dtype.kind not in "fiu":
            raise ClipRejected(STAGE, f"{name} gave {field} of type {array.dtype}, not numbers")
        elif field != "points_cam_m" and not np.isfinite(array).all():
            raise ClipRejected(STAGE, f"{name} gave {field} that are not finite")
    known = {
        field: value.astype(np.float64) for field, value in arrays.items() if value is not None
    }
    visible = np.asarray(arrays["visible"])
    return WindowTracks3D(
        known["points_cam_m"], visible, known.get("poses"), known.get("intrinsics_px")
    )


def _as_array(value: object, what: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # a tensor on a GPU, or with gradients, says so in its own way
        kind = type(value).__name__
        raise ClipRejected(
            STAGE, f"{what} as a {kind} that NumPy cannot read: give it an array"
        ) from error


def _check_bool(visible: np.ndarray, name: str) -> None:
    if visible.dtype != bool:
        low, high = (np.nanmin(visible), np.nanmax(visible)) if visible.size else (0, 0)
        raise ClipRejected(
            STAGE,
            f"{name} gave visibility of type {visible.dtype} from {low:.3g} to {high:.3g}, not "
            f"bool: compare a probability with a threshold first",
        )


def _visible_where_known(tracks: WindowTracks3D, name: str) -> WindowTracks3D:
    """Tracks whose visible points are finite and before the camera."""
    points, visible = tracks.points_cam_m, tracks.visible
    claimed = visible[0].mean()
    if claimed < _LEAST_VISIBLE:
        hint = " (is it occlusion?)" if visible[1:].size and visible[1:].mean() < 0.5 else ""
        raise ClipRejected(
            STAGE,
            f"{name} calls {claimed:.0%} of the points visible in the frame that shows them all"
            f"{hint}",
        )
    finite = np.isfinite(points.sum(-1))
    lost = 1 - finite[visible].mean()
    if lost > _MOST_NAN:
        raise ClipRejected(
            STAGE, f"{name} gave no finite position for {lost:.0%} of the points it calls visible"
        )
    before = finite & (points[..., 2] > 0)
    behind = 1 - before[visible & finite].mean()
    if behind > _MOST_MISSES:
        raise ClipRejected(
            STAGE,
            f"{name} puts {behind:.0%} of the visible points behind the camera: z is forward",
        )
    plain = np.where(finite[..., None], points, 0.0)
    return replace(tracks, points_cam_m=plain, visible=visible & before)


def _check_first_frame(
    tracks: WindowTracks3D, window: WindowToTrack, used_px: Doubles, name: str
) -> None:
    """Frame 0 shows each point at the pixel that it was asked for."""
    height, width = window.frames.shape[1:3]
    most_px = max(_MISS_PX, _MISS_SHARE * max(height, width))
    asked, seen = window.points_px.astype(np.float64), tracks.visible[0]
    if (used_px[:, :2] <= 0).any():
        raise ClipRejected(STAGE, f"{name} gave a focal length of {used_px[:, :2].min():.4g} px")

    def misses(points: Doubles, n: int) -> np.ndarray:
        off_px = np.linalg.norm(project(points, used_px[n]) - asked, axis=-1)
        return off_px > most_px

    first, last = tracks.points_cam_m[0], tracks.points_cam_m[-1]
    off = misses(first, 0) & seen
    share = off.sum() / seen.sum()
    # Where little moves, tracks in reverse order miss in frame 0 only with what moves.
    ends = misses(last, -1) & tracks.visible[-1] & seen
    back = off & ~misses(last, -1) & tracks.visible[-1]
    reverse = back.sum() > max(0.02 * seen.sum(), 3, 2 * (ends & ~off).sum(), 0.7 * off.sum())
    if share <= _MOST_MISSES and not reverse:
        return
    hint = ""
    flipped = first @ _OTHER_AXES[:3, :3]
    if reverse or ends.sum() < 0.5 * off.sum():
        hint = "; the last frame has them there: the frames seem to be in reverse order"
    elif (misses(flipped, 0) & seen).mean() <= _MOST_MISSES:
        hint = "; they would be there with y and z the other way round (OpenCV's axes are wanted)"
    elif tracks.poses is not None and _of_world(first, tracks.poses[0], misses, seen):
        hint = "; they are in the world's frame, and the camera's is wanted"
    elif scale := _image_scale(first, used_px[0], asked, seen, most_px):
        hint = f"; its intrinsics are of an image {scale:.3g} times as large"
    elif focal_px := _focal_px(first, used_px[0], asked, seen, most_px):
        hint = (
            f"; they would be there with a focal length of {focal_px:.4g} px in place of "
            f"{used_px[0, 0]:.4g} px: return intrinsics_px"
        )
    off_px = np.median(np.linalg.norm(project(first, used_px[0]) - asked, axis=-1)[off])
    raise ClipRejected(
        STAGE,
        f"{name}: {share:.0%} of the visible points miss the pixel asked for in frame 0, by "
        f"{off_px:.1f} px in the median of these{hint}",
    )


def _of_world(
    first: Doubles, pose: Doubles, misses: Callable[[Doubles, int], np.ndarray], seen: np.ndarray
) -> bool:
    """True where the points are where they should be once they are moved into the camera."""
    if abs(np.linalg.det(pose[:3, :3])) < 0.5:
        return False
    there = move_points(first, np.linalg.inv(pose))
    return bool((misses(there, 0) & seen).mean() <= _MOST_MISSES)


def _image_scale(
    first: Doubles, used_px: Doubles, asked: Doubles, seen: np.ndarray, most_px: float
) -> float | None:
    """How many times as large the intrinsics' image is, where that explains the misses."""
    at_px = project(first, used_px)[seen]
    scale = float(np.median(at_px / np.maximum(asked[seen], 1e-6)))
    if scale <= 0:
        return None
    off_px = np.linalg.norm(at_px / scale - asked[seen], axis=-1)
    return scale if (off_px > most_px).mean() <= _MOST_MISSES else None


def _focal_px(
    first: Doubles, used_px: Doubles, asked: Doubles, seen: np.ndarray, most_px: float
) -> float | None:
    """The focal length that the points were made with, where that explains the misses."""
    at_px, wanted_px = (pixels[seen] - used_px[2:] for pixels in (project(first, used_px), asked))
    ratio = float((at_px * wanted_px).sum() / max((wanted_px * wanted_px).sum(), 1e-9))
    if ratio <= 0:
        return None
    off_px = np.linalg.norm(at_px / ratio - wanted_px, axis=-1)
    return float(used_px[0]) / ratio if (off_px > most_px).mean() <= _MOST_MISSES else None


def _rotations(poses: Doubles, name: str) -> Doubles:
    """(N, 4, 4) poses with exact rotations."""
    turned = poses[:, :3, :3]
    error = np.abs(turned @ turned.transpose(0, 2, 1) - np.eye(3)).max()
    below = np.abs(poses[:, 3] - [0, 0, 0, 1]).max()
    if error > _ROTATION_ERROR or below > _ROTATION_ERROR or (np.linalg.det(turned) < 0).any():
        what = (
            f"rows of the rotation are off by {error:.2g} from length 1 and right angles"
            if error > _ROTATION_ERROR
            else "the last row is not 0 0 0 1"
            if below > _ROTATION_ERROR
            else "one mirrors"
        )
        raise ClipRejected(STAGE, f"{name} gave poses that are no rigid motion: {what}")
    u, _, vt = np.linalg.svd(turned)
    out = np.tile(np.eye(4), (len(poses), 1, 1))
    out[:, :3, :3], out[:, :3, 3] = u @ vt, poses[:, :3, 3]
    return out


def pose_contradiction(tracks: WindowTracks3D, poses: Doubles) -> str:
    """Reason why poses are not of the cameras that saw the tracks; empty where they can be.

    The stillest fifth of the points must stand still in the world. Where it moves with the
    poses, and not under another reading of them (as world-to-camera, with OpenGL's axes, or
    under none, because the points were given in one frame), that reading is meant.

    Args:
        tracks: checked.
        poses: (N, 4, 4) camera to world in the scale of the points; the tracker's or recorded.
    """
    inverse = np.linalg.inv(poses)
    as_given = inverse[:1] @ poses  # camera n to the first camera
    swapped = poses[:1] @ inverse
    still = np.tile(np.eye(4), (len(poses), 1, 1))
    readings = {
        "as world-to-camera (give camera-to-world)": swapped,
        "with y and z the other way round (OpenCV's axes are wanted)": _flipped(as_given),
        "as world-to-camera with y and z the other way round": _flipped(swapped),
        "to stand still (are the points in the camera of each frame, in the poses' unit?)": still,
    }
    points, seen = tracks.points_cam_m, tracks.visible & tracks.visible[0]
    moved = np.linalg.norm(_apart(_moved(points, as_given), points), axis=-1)
    sizes = np.array(
        [np.median(m[s]) if s.any() else 0.0 for m, s in zip(moved, seen, strict=True)]
    )
    # A frame counts by how far its camera is from the first; in the mean, noise goes away.
    weights = seen * sizes[:, None]
    judged = weights.sum(0) > 0
    if judged.sum() < _MIN_JUDGED:
        return ""
    weights = weights[:, judged] / weights[:, judged].sum(0)

    def rest(motions: Doubles) -> float:
        """Motion of the stillest points, as a share of their depth."""
        off = _apart(_moved(points, motions), points[:1])[:, judged]
        return float(
            np.quantile(np.linalg.norm((off * weights[..., None]).sum(0), axis=-1), _STILL)
        )

    given = rest(as_given)
    words, best = min(((text, rest(one)) for text, one in readings.items()), key=lambda one: one[1])
    size = float((sizes**2).sum() / sizes.sum())
    if size < _LEAST_MOTION or given <= max(_RATIO * best, 0.3 * min(size, 1.0)):
        return ""
    return (
        f"the stillest points move by {given:.2%} of their depth under the poses, and by "
        f"{best:.2%} if the camera is taken {words}"
    )


def _flipped(motions: Doubles) -> Doubles:
    """Motions (N, 4, 4) in cameras whose y points up and z back."""
    return _OTHER_AXES @ motions @ _OTHER_AXES


def _moved(points: Doubles, motions: Doubles) -> Doubles:
    """(N, P, 3) points, each frame's by its (4, 4) motion."""
    return np.stack([move_points(p, one) for p, one in zip(points, motions, strict=True)])


def _apart(points: Doubles, others: Doubles) -> Doubles:
    """(N, P, 3) how far points are from others: across the image and in depth, over the depth.

    Depth counts less: a tracker knows it worse than the direction.
    """
    z, other_z = (
        np.maximum(p[..., 2:], 1e-3 * np.abs(others[..., 2:]) + 1e-9) for p in (points, others)
    )
    across = points[..., :2] / z - others[..., :2] / other_z
    return np.concatenate([across, _DEPTH_WEIGHT * (z - other_z) / other_z], axis=-1)


class AdapterWatch:
    """Ends a job whose first clips were all refused for the tracker.

    One clip may be beyond a tracker; eight without one that is not are its adapter's mistake, and
    thousands more would cost their time for nothing.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = 0
        self.reason = ""

    def see(self, stage: str, reason: str) -> None:
        """Take note of a finished clip: stage and reason of its rejection, or empty.

        Raises:
            UserError: it is the eighth, and all were refused for the tracker.
        """
        if self.seen >= _FIRST_CLIPS:
            return
        if stage != STAGE and f"no window is left: {STAGE}:" not in reason:
            self.seen = _FIRST_CLIPS  # one that the adapter served: it is not at fault
            return
        self.seen += 1
        self.reason = self.reason or reason
        if self.seen == _FIRST_CLIPS:
            raise UserError(
                f"track.tracker: the first {_FIRST_CLIPS} clips were all rejected because of "
                f"{self.name}: its adapter is at fault, not the clips ({self.reason})"
            )
