"""An RGB-D window: the frames of one flow window with depth and cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats, Frames


@dataclass(frozen=True)
class RGBDWindow:
    """N frames of a window.

    ``frames`` (N, H, W, 3) uint8; ``depth_m`` (N, H, W) z-depth, NaN where there is none,
    or None: everything lies on the plane z = 1; ``intrinsics_px`` (N, 4) fx, fy, cx, cy;
    ``poses`` (N, 4, 4) camera to world, or None: a static camera; ``depth_scale``
    as in the schema.
    """

    frames: Frames
    depth_m: Floats | None
    intrinsics_px: Doubles
    poses: Doubles | None
    depth_scale: str = "metric"

    def in_metres(self) -> bool:
        """Whether depth is in metres, as recorded poses are."""
        return self.depth_m is not None and self.depth_scale != "relative"

    def from_first(self, n: int) -> Doubles:
        """(4, 4): the first camera's frame to that of camera n."""
        if self.poses is None:
            return np.eye(4)
        return np.linalg.inv(self.poses[n]) @ self.poses[0]
