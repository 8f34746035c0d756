"""Points that a tracker drags along beside a moving object.

Where an object passes, the static test sees a change (it is occluded, or a shadow falls on it),
and a tracker whose window holds the object's edge and little else takes the point along. What
gives such a point away is what it belongs to: the plain ground around it, of the same colour,
rests. A point of a moving object has an object around it that moves. So a point counts as
dragged where too little of its look-alike surroundings moves, unless it is a corner, which holds
the tracker by itself.

P points, L points of a lattice.
"""

from __future__ import annotations

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats, Frames
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.static_points import compare_with_static_scene
from dynaflip.platform.triplets.flow.window import RGBDWindow

_SPACING_PX = 4  # of the lattice
_BLOCK = 5  # side of the surroundings that make a corner, pixels
# OpenCV sums slopes over the block in units of 4 · block · 255 / 8 grey levels.
_CORNER_UNIT = (4 * _BLOCK * 255 / 8) ** 2 / _BLOCK**2


def dragged_along(
    window: RGBDWindow,
    origin_px: Floats,
    moves: np.ndarray,
    depth_noise: float,
    config: PreprocessConfig,
) -> np.ndarray:
    """(P,) bool: points that seem to move while what looks like them around them rests.

    Args:
        window: N frames.
        origin_px: (P, 2) in the first frame.
        moves: (P,) bool: which seem to move; only they are judged.
        depth_noise: as of the static test.
        config: settings ``dragged_points``, ``static_points`` and ``lifting``.
    """
    settings, out = config.dragged_points, np.zeros(len(origin_px), bool)
    which = np.flatnonzero(moves)
    if not settings.enabled or not len(which):
        return out
    frame = window.frames[0]
    points_px = origin_px[which]
    lattice_px = _lattice(frame.shape)
    apart_px = np.linalg.norm(points_px[:, None] - lattice_px, axis=-1)
    near = apart_px <= settings.radius_px
    some = near.any(0)
    lattice_px, near = lattice_px[some], near[:, some]
    blurred = cv2.GaussianBlur(frame, (3, 3), 0)
    own, other = (_at(blurred, at).astype(np.float32) for at in (points_px, lattice_px))
    alike = near & (np.abs(own[:, None] - other).mean(-1) <= settings.colour_difference)
    static = compare_with_static_scene(
        window, lattice_px, config.static_points, config.lifting.search_px, depth_noise
    )
    moving = (alike & ~static.is_static()).sum(1) / np.maximum(alike.sum(1), 1)
    judged = alike.any(1) & (corner_strength(frame, points_px) < settings.corner)
    out[which] = judged & (moving < settings.min_moving_share)
    return out


def corner_strength(frame: Frames, points_px: np.ndarray) -> Doubles:
    """(P,) smaller eigenvalue of the mean outer product of slopes, grey² per pixel²."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return _at(corner_strengths(grey), points_px).astype(np.float64)


def corner_strengths(grey: np.ndarray) -> Floats:
    """(H, W) as :func:`corner_strength` of each pixel of (H, W) uint8."""
    strength = cv2.cornerMinEigenVal(grey, _BLOCK, ksize=3) * _CORNER_UNIT
    return np.asarray(strength, np.float32)


def _lattice(shape: tuple[int, ...]) -> Floats:
    """(L, 2) x, y, pixel centres at +0.5."""
    first = _SPACING_PX // 2
    rows, columns = np.mgrid[first : shape[0] : _SPACING_PX, first : shape[1] : _SPACING_PX]
    return np.stack([columns.ravel(), rows.ravel()], -1).astype(np.float32) + np.float32(0.5)


def _at(image: np.ndarray, points_px: np.ndarray) -> np.ndarray:
    """(P, …) values of the pixels that the points lie in."""
    height, width = image.shape[:2]
    columns = points_px[:, 0].astype(int).clip(0, width - 1)
    rows = points_px[:, 1].astype(int).clip(0, height - 1)
    return image[rows, columns]
