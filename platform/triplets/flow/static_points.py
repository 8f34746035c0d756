"""Static points: a test against the static scene, made before the tracker is trusted.

A tracker drags plain background along with whatever passes in front of it, and
such points pass the forward-backward check. But a static point can be predicted: at its
own pixel (moved by the camera's motion, where that is known) later frames must show the
same colours at the same depth. Measured on simulated
clips, this takes the share of truly moving points among those that seem to move
from a half to four fifths.

N frames of the window, P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats, Frames
from dynaflip.platform.triplets.flow.config import StaticPointsConfig
from dynaflip.platform.triplets.flow.lifting import (
    back_project,
    move_points,
    project,
    sample_depth_m,
)
from dynaflip.platform.triplets.flow.window import RGBDWindow

# Nearer than expected by this share: something stands in front.
_HIDDEN_SHARE = 0.03
# Depth may miss by this many standard deviations of its noise, and noise is at most so much.
_NOISE_WIDTHS = 3.0
_MOST_NOISE = 0.03
# Two positions closer than this cannot be distinguished by their colours.
_APART_PX = 1.0
# OpenCV's remap makes no image of more rows than a short integer counts.
_MOST_ROWS = 32_000


@dataclass(frozen=True)
class StaticPoints:
    """Result of the static test.

    ``same`` (N, P): the frame shows the point where it would be if static. ``hidden`` (N, P):
    it is occluded there, or outside the image. ``static_px`` (N, P, 2): where it would be,
    moved by the camera alone. ``depth_noise``: standard deviation of static depth from frame
    to frame, as a share of it (0 without depth). ``misfit`` (N, P) in [0, 2]: how badly the
    frame agrees there, by colour and depth. ``beyond`` (N, P): measured over expected depth
    there, minus 1.
    """

    same: np.ndarray
    hidden: np.ndarray
    static_px: Doubles
    depth_noise: float
    misfit: np.ndarray
    beyond: np.ndarray

    def is_static(self) -> np.ndarray:
        """(P,) bool: every frame agrees with the static scene or hides the point.

        The frames before and after an occlusion count as hidden too: the occluder's edge is
        then within the point's patch.
        """
        around = self.hidden.copy()
        around[1:] |= self.hidden[:-1]
        around[:-1] |= self.hidden[1:]
        return (self.same | around).all(0)


def compare_with_static_scene(
    window: RGBDWindow,
    origin_px: Floats,
    config: StaticPointsConfig,
    search_px: int,
    depth_noise: float | None = None,
) -> StaticPoints:
    """Compare each frame with what it would show if every point were static.

    Args:
        window: N frames; without depth colours alone decide.
        origin_px: (P, 2) x, y in the first frame, pixel centres at +0.5.
        config: tolerances; that of depth is widened to the depth's noise.
        search_px: radius in which depth is looked for at edges.
        depth_noise: as of :class:`StaticPoints`, where it is known; None estimates it.
    """
    frames, depth_m = window.frames, window.depth_m
    count, (height, width) = len(frames), frames.shape[1:3]
    points = origin_px.astype(np.float64)
    if depth_m is None:
        z_m = np.ones(len(points))
    else:
        z_m = sample_depth_m(depth_m[0], points, None, search_px)
    known = np.isfinite(z_m)
    world_m = back_project(points, np.where(known, z_m, 1.0), window.intrinsics_px[0])
    reference = _colour_patches(frames[0], points, config.patch_radius_px)
    same = np.zeros((count, len(points)), dtype=bool)
    hidden = np.zeros_like(same)
    beyond = np.zeros(same.shape)
    change = np.zeros(same.shape)  # of colour
    static_px = np.repeat(points[None], count, axis=0)
    same[0] = known
    most = config.max_colour_difference * (1.0 if depth_m is not None else config.without_depth)
    for n in range(1, count):
        expected_m = (
            move_points(world_m, window.from_first(n)) if window.poses is not None else world_m
        )
        at_px = project(expected_m, window.intrinsics_px[n])
        if window.background is not None:
            at_px = window.background.moved(points, n)
        static_px[n] = at_px
        inside = ((at_px >= 0) & (at_px < (width, height))).all(1) & (expected_m[:, 2] > 0)
        patches = _colour_patches(frames[n], at_px, config.patch_radius_px)
        change[n] = np.abs(patches - reference).mean(axis=(1, 2))
        same[n] = known & inside & (change[n] <= most)
        hidden[n] = known & ~inside
        if depth_m is not None:
            found_m = sample_depth_m(depth_m[n], at_px, expected_m[:, 2], search_px)
            beyond[n] = np.where(known & inside, found_m / expected_m[:, 2] - 1, np.nan)
    if depth_m is None:
        return StaticPoints(same, hidden, static_px, 0.0, _robust(change / most), beyond)
    noise = _noise(beyond[1:]) if depth_noise is None else depth_noise
    with np.errstate(invalid="ignore"):
        scale = max(config.max_depth_difference, _NOISE_WIDTHS * noise)
        same &= np.abs(beyond) <= scale
        hidden |= beyond < -max(_HIDDEN_SHARE, _NOISE_WIDTHS * noise)
    misfit = _robust(change / most) + _robust(beyond / scale)
    return StaticPoints(same, hidden, static_px, noise, misfit, beyond)


def static_explains_better(
    window: RGBDWindow,
    static: StaticPoints,
    xyz_m: Floats,
    tracks_px: Floats,
    config: StaticPointsConfig,
    search_px: int,
) -> np.ndarray:
    """(P,) bool: the static scene explains a point better than its estimated motion.

    Ground that something slides over at a small distance is not recognised as occluded, and
    is then carried along. But until it is occluded, frames show it static.

    Args:
        window: N frames with depth.
        static: static test of the points.
        xyz_m: (N, P, 3) estimated, in the first camera's frame.
        tracks_px: (N, P, 2) estimated.
        config: tolerances.
        search_px: radius in which depth is looked for at edges.
    """
    assert window.depth_m is not None
    reference = _colour_patches(window.frames[0], tracks_px[0], config.patch_radius_px)
    scale = max(config.max_depth_difference, _NOISE_WIDTHS * static.depth_noise)
    more = np.zeros(static.same.shape)
    for n in range(1, len(window.frames)):
        patches = _colour_patches(window.frames[n], tracks_px[n], config.patch_radius_px)
        change = np.abs(patches - reference).mean(axis=(1, 2)) / config.max_colour_difference
        expected_m = move_points(xyz_m[n].astype(np.float64), window.from_first(n))[:, 2]
        found_m = sample_depth_m(
            window.depth_m[n], tracks_px[n].astype(np.float64), expected_m, search_px
        )
        with np.errstate(divide="ignore"):
            moved = _robust(change) + _robust((found_m / expected_m - 1) / scale)
        more[n] = moved - static.misfit[n]
    apart = np.linalg.norm(tracks_px - static.static_px, axis=-1) >= _APART_PX
    with np.errstate(invalid="ignore"):
        # Where the point is occluded, the static scene cannot be judged.
        judged = apart & (static.beyond >= -scale) & np.isfinite(more)
    mean = np.where(judged, more, 0).sum(0) / np.maximum(judged.sum(0), 1)
    return mean > config.min_static_gain


def _robust(share: np.ndarray) -> np.ndarray:
    """Misfit in [0, 1] of a difference in units of its tolerance; 1 where it is unknown."""
    known = np.where(np.isfinite(share), share, 0.0)
    return np.where(np.isfinite(share), known**2 / (1 + known**2), 1.0)


def _noise(beyond: np.ndarray) -> float:
    """Standard deviation of static depth, from the quarter of the points that changes least.

    It is right as long as a quarter of the image is static.
    """
    size = np.abs(beyond[np.isfinite(beyond)])
    if not size.size:
        return 0.0
    # A quarter of a normal distribution lies within 0.319 standard deviations.
    return min(float(np.percentile(size, 25)) / 0.319, _MOST_NOISE)


def pin_static_points(
    xyz_m: Floats, visible: np.ndarray, static: StaticPoints, resting: np.ndarray
) -> tuple[Floats, np.ndarray]:
    """Pin static points to their position, and hide points that an occluder may have dragged.

    A tracked point whose static position is occluded may have been dragged along by the
    occluder: it is invisible while that is so.

    Args:
        xyz_m: (N, G, G, 3) in the camera frame of the first frame.
        visible: (N, G, G).
        static: static test of the same points.
        resting: (P,) bool: which points are static.

    Returns:
        xyz and visibility of the same shapes.
    """
    shape = visible.shape
    rests = resting.reshape(shape[1:])
    same, hidden = static.same.reshape(shape), static.hidden.reshape(shape)
    xyz_m = np.where(rests[..., None], xyz_m[:1], xyz_m)
    return xyz_m, np.where(rests, same, visible & ~hidden)


def _colour_patches(frame: Frames, points_px: np.ndarray, radius_px: int) -> Floats:
    """(P, side², 3) colours about sub-pixel points, the border repeated."""
    reach = np.arange(-radius_px, radius_px + 1)
    dx, dy = np.meshgrid(reach, reach)
    x = (points_px[:, :1] - 0.5 + dx.ravel()).astype(np.float32)
    y = (points_px[:, 1:] - 0.5 + dy.ravel()).astype(np.float32)
    border = cv2.BORDER_REPLICATE
    if not len(x):  # an image too small for points of this kind
        return np.zeros((*x.shape, 3), np.float32)
    parts = [
        cv2.remap(
            frame, x[n : n + _MOST_ROWS], y[n : n + _MOST_ROWS], cv2.INTER_LINEAR, None, border
        )
        for n in range(0, len(x), _MOST_ROWS)
    ]
    return np.concatenate(parts).astype(np.float32)
