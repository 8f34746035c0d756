"""3D trackers: models that follow points in 3D, and often find depth and cameras themselves.

SpatialTrackerV2, TAPIP3D, VGGT and Depth Anything 3 have this form; docs/extending.md shows what
each returns and how it is converted. None comes with this package: a user's own is named by
``track.tracker``, as an entry point in the group ``dynaflip.tracker_3d`` or as
``class:MODULE:NAME`` with ``dimensions = 3``.

N frames of a window, P points. Cameras have OpenCV's axes (x right, y down, z forward); pixel
centres are at +0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected, Doubles, Floats, Frames
from dynaflip.platform.triplets.flow.lifting import back_project, sample_depth_m
from dynaflip.platform.triplets.user_models import asked

SCALES = ("metric", "relative")
STAGE = "tracker"  # of rejections for a mistake of the tracker or its adapter


@dataclass(frozen=True)
class WindowToTrack:
    """Input of a 3D tracker: a window's images, the points to follow, and what was recorded.

    ``frames`` (N, H, W, 3) uint8 RGB; ``points_px`` (P, 2) float32 x, y on the first frame;
    ``times_s`` (N,) ascending. What is not recorded is None: ``depth_m`` (N, H, W) z-depth, NaN
    where there is none, infinite beyond the sensor's range (of the model that ``depth`` names,
    where it names one: then ``depth_scale`` says whether it is in metres); ``intrinsics_px``
    (N, 4) fx, fy, cx, cy of these frames; ``poses`` (N, 4, 4) camera to world in metres.
    """

    frames: Frames
    points_px: Floats
    times_s: Doubles
    depth_m: Floats | None = None
    depth_scale: str = "metric"
    intrinsics_px: Doubles | None = None
    poses: Doubles | None = None


@dataclass(frozen=True)
class WindowTracks3D:
    """Output of a 3D tracker.

    ``points_cam_m`` (N, P, 3) XYZ of each point in the camera *of each frame*: metres, or any one
    scale for the window where the tracker's ``scale`` is relative; ``visible`` (N, P) bool;
    ``poses`` (N, 4, 4) camera to world in the scale of the points (any world), or None;
    ``intrinsics_px`` (N, 4) fx, fy, cx, cy of the window's frames (not of an image that the model
    resized them to), or None where the recorded ones were used.
    """

    points_cam_m: np.ndarray
    visible: np.ndarray
    poses: Doubles | None = None
    intrinsics_px: Doubles | None = None


class Tracker3D(Protocol):
    """A 3D tracker. Made without arguments, or with ARGUMENT for ``NAME:ARGUMENT``.

    ``dimensions`` is 3, on the class. ``scale`` is ``metric`` (metres) or ``relative`` (one
    unknown scale for each window; recorded depth, where there is some, brings it to metres).

    It is made once in each Ray actor, which has a GPU where the cluster has one. A static method
    ``check(argument)``, where there is one, raises UserError before work begins. A method
    ``track_batch(windows) -> list[WindowTracks3D]``, where there is one, is given several windows
    at once; they may differ in number of frames and in size.
    """

    dimensions: int
    scale: str

    def __call__(self, window: WindowToTrack, /) -> WindowTracks3D:
        """Track a window's points; what is returned is checked (:mod:`.tracker_3d_checks`)."""


def check_scale(tracker: Any, name: str) -> None:
    """Refuse a tracker that does not say what its numbers mean.

    Raises:
        UserError: with the values that ``scale`` may have.
    """
    scale = getattr(tracker, "scale", None)
    if scale not in SCALES:
        raise UserError(
            f"track.tracker: {name} has scale {scale!r}; a 3D tracker states whether its points "
            f"are in metres: scale = {' or '.join(map(repr, SCALES))}"
        )


def track_3d(tracker: Any, name: str, windows: Sequence[WindowToTrack]) -> list[WindowTracks3D]:
    """Ask a 3D tracker for the tracks of windows, in batch where it takes batches.

    Raises:
        ClipRejected: it failed, or gave something else than tracks.
    """
    batch = getattr(tracker, "track_batch", None)
    made: object = asked(
        STAGE, name, lambda: batch(list(windows)) if batch else [tracker(w) for w in windows]
    )
    if not isinstance(made, list) or len(made) != len(windows):
        given = f"{len(made)} results" if isinstance(made, list) else f"a {type(made).__name__}"
        raise ClipRejected(
            STAGE,
            f"{name}.track_batch gave {given} where a list of {len(windows)} WindowTracks3D is due",
        )
    for one in made:
        if not isinstance(one, WindowTracks3D):
            raise ClipRejected(STAGE, f"{name} gave a {type(one).__name__}, not a WindowTracks3D")
    return made


def points_from_depth(
    tracks_px: np.ndarray, depth: np.ndarray, intrinsics_px: np.ndarray, *, search_px: int = 1
) -> tuple[Floats, np.ndarray]:
    """Lift 2D tracks by depth maps, for models that give pixels and depth, such as VGGT's.

    Args:
        tracks_px: (N, P, 2) x, y, pixel centres at +0.5.
        depth: (N, H, W) z-depth of any scale in the same images, NaN where there is none.
        intrinsics_px: (N, 4) fx, fy, cx, cy of the same images.
        search_px: radius in which depth is looked for at edges.

    Returns:
        (N, P, 3) points in the camera of each frame, NaN without depth, and (N, P) bool: the
        track is inside the image and on depth.
    """
    height, width = depth.shape[1:]
    points = np.full((*tracks_px.shape[:2], 3), np.nan)
    expected = None
    for n, at_px in enumerate(np.asarray(tracks_px, np.float64)):
        inside = np.isfinite(at_px).all(-1) & ((at_px >= 0) & (at_px <= (width, height))).all(-1)
        safe_px = np.where(inside[:, None], at_px, 0.0)
        z = sample_depth_m(np.asarray(depth[n]), safe_px, expected, search_px)
        known = inside & np.isfinite(z) & (z > 0)
        points[n, known] = back_project(safe_px, z, intrinsics_px[n])[known]
        # A point is looked for at the depth where it was last.
        last = z if expected is None else expected
        expected = np.where(known, z, last)
    return points.astype(np.float32), np.isfinite(points[..., 2])
