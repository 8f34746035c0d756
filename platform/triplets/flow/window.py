"""An RGB-D window: the frames of one flow window with depth and cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats, Frames


@dataclass(frozen=True)
class Background:
    """Motion of the background in the image: ``homographies`` (N, 3, 3), pixels of the first
    frame to those of frame n; ``epipole`` (3,), homogeneous, in the last frame: what the
    homography misses of the background lies along lines through it; None: nothing to speak of."""

    homographies: Doubles
    epipole: Doubles | None = None

    def moved(self, points_px: np.ndarray, n: int) -> Doubles:
        """(P, 2) points of the first frame, where the background takes them in frame n."""
        return apply_homography(self.homographies[n], points_px.astype(np.float64))

    def all_back(self, tracks_px: np.ndarray) -> Floats:
        """(N, P, 2) points of each frame, in the first frame's pixels."""
        inverse = np.linalg.inv(self.homographies)
        steady = [
            apply_homography(h, at.astype(np.float64))
            for h, at in zip(inverse, tracks_px, strict=True)
        ]
        return np.stack(steady).astype(np.float32)


def apply_homography(homography: Doubles, points_px: Doubles) -> Doubles:
    """(P, 2) points after a (3, 3) homography."""
    moved = points_px @ homography[:, :2].T + homography[:, 2]
    return moved[:, :2] / moved[:, 2:]


@dataclass(frozen=True)
class RGBDWindow:
    """N frames of a window.

    ``frames`` (N, H, W, 3) uint8; ``depth_m`` (N, H, W) z-depth, NaN where there is none,
    or None: everything lies on the plane z = 1; ``intrinsics_px`` (N, 4) fx, fy, cx, cy;
    ``poses`` (N, 4, 4) camera to world, or None: a static camera; ``depth_scale``
    as in the schema; ``background``: the camera's motion where there is no depth, or None.
    """

    frames: Frames
    depth_m: Floats | None
    intrinsics_px: Doubles
    poses: Doubles | None
    depth_scale: str = "metric"
    background: Background | None = None

    def in_metres(self) -> bool:
        """True where depth is in metres, as recorded poses are."""
        return self.depth_m is not None and self.depth_scale != "relative"

    def from_first(self, n: int) -> Doubles:
        """(4, 4): the first camera's frame to that of camera n."""
        if self.poses is None:
            return np.eye(4)
        return np.linalg.inv(self.poses[n]) @ self.poses[0]
