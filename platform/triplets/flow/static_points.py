"""Which points stand still: the world is tested before the tracker is believed.

A tracker drags plain background along with whatever passes in front of it, and
such points pass the forward-backward check. But a point that stands still can be
predicted: at its own place (moved by the camera's motion, where that is known)
later frames must show the same colours at the depth it has. Measured on simulated
clips, this takes the share of truly moving points among those that seem to move
from a half to four fifths.

N frames of the window, P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats, Frames
from dynaflip.platform.triplets.config import StillConfig
from dynaflip.platform.triplets.flow.lifting import move_points, project, sample_depth_m, unproject
from dynaflip.platform.triplets.flow.window import Shot

# Nearer than expected by this share: something stands in front.
_HIDDEN_SHARE = 0.03
# Depth may miss by this many standard deviations of its noise, and noise is at most so much.
_NOISE_WIDTHS = 3.0
_MOST_NOISE = 0.03
# Two places that are closer than this are not told apart by their colours.
_APART_PX = 1.0
# OpenCV's remap makes no image of more rows than a short integer counts.
_MOST_ROWS = 32_000


@dataclass(frozen=True)
class Stillness:
    """``same`` (N, P): the frame shows the point at its own place. ``hidden`` (N, P):
    something is in front of it, or its place is out of the image. ``place_px``
    (N, P, 2): its own place, moved by the camera. ``depth_noise``: standard deviation of
    the depth of what rests from frame to frame, as a share of it (0 without depth);
    ``misfit`` (N, P) in [0, 2]: how badly the frame shows the point at its own place, by
    colour and by depth; ``beyond`` (N, P): depth found there over the expected, minus 1."""

    same: np.ndarray
    hidden: np.ndarray
    place_px: Doubles
    depth_noise: float
    misfit: np.ndarray
    beyond: np.ndarray

    def rests(self) -> np.ndarray:
        """(P,) bool: nothing but being hidden speaks against standing still.

        A frame before and after it counts too: the edge of what hides the point is
        then within its patch.
        """
        around = self.hidden.copy()
        around[1:] |= self.hidden[:-1]
        around[:-1] |= self.hidden[1:]
        return (self.same | around).all(0)


def compare_with_still(
    shot: Shot,
    origin_px: Floats,
    config: StillConfig,
    search_px: int,
    depth_noise: float | None = None,
) -> Stillness:
    """Compare each frame with what it would show if the point stood still.

    Args:
        shot: N frames; without depth colours alone decide.
        origin_px: (P, 2) x, y in the first frame, pixel centres at +0.5.
        config: tolerances; that of depth is widened to what the depth's noise asks for.
        search_px: radius in which depth is looked for at edges.
        depth_noise: as of :class:`Stillness`, where it is known; None estimates it.
    """
    frames, depth_m = shot.frames, shot.depth_m
    count, (height, width) = len(frames), frames.shape[1:3]
    points = origin_px.astype(np.float64)
    if depth_m is None:
        z_m = np.ones(len(points))
    else:
        z_m = sample_depth_m(depth_m[0], points, None, search_px)
    known = np.isfinite(z_m)
    world_m = unproject(points, np.where(known, z_m, 1.0), shot.intrinsics_px[0])
    reference = _patches(frames[0], points, config.patch_radius_px)
    same = np.zeros((count, len(points)), dtype=bool)
    hidden = np.zeros_like(same)
    beyond = np.zeros(same.shape)
    change = np.zeros(same.shape)  # of colour
    place_px = np.repeat(points[None], count, axis=0)
    same[0] = known
    most = config.max_colour_difference * (1.0 if depth_m is not None else config.without_depth)
    for n in range(1, count):
        place = move_points(world_m, shot.from_first(n)) if shot.poses is not None else world_m
        at_px = place_px[n] = project(place, shot.intrinsics_px[n])
        inside = ((at_px >= 0) & (at_px < (width, height))).all(1) & (place[:, 2] > 0)
        patches = _patches(frames[n], at_px, config.patch_radius_px)
        change[n] = np.abs(patches - reference).mean(axis=(1, 2))
        same[n] = known & inside & (change[n] <= most)
        hidden[n] = known & ~inside
        if depth_m is not None:
            found_m = sample_depth_m(depth_m[n], at_px, place[:, 2], search_px)
            beyond[n] = np.where(known & inside, found_m / place[:, 2] - 1, np.nan)
    if depth_m is None:
        return Stillness(same, hidden, place_px, 0.0, _robust(change / most), beyond)
    noise = _noise(beyond[1:]) if depth_noise is None else depth_noise
    with np.errstate(invalid="ignore"):
        scale = max(config.max_depth_difference, _NOISE_WIDTHS * noise)
        same &= np.abs(beyond) <= scale
        hidden |= beyond < -max(_HIDDEN_SHARE, _NOISE_WIDTHS * noise)
    misfit = _robust(change / most) + _robust(beyond / scale)
    return Stillness(same, hidden, place_px, noise, misfit, beyond)


def stays_put(
    shot: Shot,
    stillness: Stillness,
    xyz_m: Floats,
    tracks_px: Floats,
    config: StillConfig,
    search_px: int,
) -> np.ndarray:
    """(P,) bool: standing still explains a point better than the motion that was found.

    Ground that something slides over, close to it, is not recognised as covered, and is
    then carried along. But until it is covered it is seen to rest.

    Args:
        shot: N frames with depth.
        stillness: of the points.
        xyz_m: (N, P, 3) found, in the first camera's frame.
        tracks_px: (N, P, 2) found.
        config: tolerances.
        search_px: radius in which depth is looked for at edges.
    """
    assert shot.depth_m is not None
    reference = _patches(shot.frames[0], tracks_px[0], config.patch_radius_px)
    scale = max(config.max_depth_difference, _NOISE_WIDTHS * stillness.depth_noise)
    more = np.zeros(stillness.same.shape)
    for n in range(1, len(shot.frames)):
        patches = _patches(shot.frames[n], tracks_px[n], config.patch_radius_px)
        change = np.abs(patches - reference).mean(axis=(1, 2)) / config.max_colour_difference
        expected_m = move_points(xyz_m[n].astype(np.float64), shot.from_first(n))[:, 2]
        found_m = sample_depth_m(
            shot.depth_m[n], tracks_px[n].astype(np.float64), expected_m, search_px
        )
        moved = _robust(change) + _robust((found_m / expected_m - 1) / scale)
        more[n] = moved - stillness.misfit[n]
    apart = np.linalg.norm(tracks_px - stillness.place_px, axis=-1) >= _APART_PX
    with np.errstate(invalid="ignore"):
        # Where something stands in front, standing still cannot be judged.
        judged = apart & (stillness.beyond >= -scale) & np.isfinite(more)
    mean = np.where(judged, more, 0).sum(0) / np.maximum(judged.sum(0), 1)
    return mean > config.min_still_gain


def _robust(share: np.ndarray) -> np.ndarray:
    """Misfit in [0, 1] of a difference in units of its tolerance; what is unknown fits nowhere."""
    known = np.where(np.isfinite(share), share, 0.0)
    return np.where(np.isfinite(share), known**2 / (1 + known**2), 1.0)


def _noise(beyond: np.ndarray) -> float:
    """Standard deviation of what rests, from the quarter that changes least.

    A quarter of an image that rests is enough for it, however much the others move.
    """
    size = np.abs(beyond[np.isfinite(beyond)])
    if not size.size:
        return 0.0
    # A quarter of a normal distribution lies within 0.319 standard deviations.
    return min(float(np.percentile(size, 25)) / 0.319, _MOST_NOISE)


def hold_still(
    xyz_m: Floats, visible: np.ndarray, stillness: Stillness, resting: np.ndarray
) -> tuple[Floats, np.ndarray]:
    """Put resting points where they rest, and drop those that were dragged away.

    A point whose own place is covered, and which the tracker has carried off, may
    have been pushed by what covers it: it does not count while that is so.

    Args:
        xyz_m: (N, G, G, 3) in the camera frame of the first frame.
        visible: (N, G, G).
        stillness: of the same points.
        resting: (P,) bool: which points rest.

    Returns:
        xyz and visibility of the same shapes.
    """
    shape = visible.shape
    rests = resting.reshape(shape[1:])
    same, hidden = stillness.same.reshape(shape), stillness.hidden.reshape(shape)
    xyz_m = np.where(rests[..., None], xyz_m[:1], xyz_m)
    return xyz_m, np.where(rests, same, visible & ~hidden)


def _patches(frame: Frames, points_px: np.ndarray, radius_px: int) -> Floats:
    """(P, side², 3) colours about sub-pixel points, the border repeated."""
    reach = np.arange(-radius_px, radius_px + 1)
    dx, dy = np.meshgrid(reach, reach)
    x = (points_px[:, :1] - 0.5 + dx.ravel()).astype(np.float32)
    y = (points_px[:, 1:] - 0.5 + dy.ravel()).astype(np.float32)
    border = cv2.BORDER_REPLICATE
    parts = [
        cv2.remap(
            frame, x[n : n + _MOST_ROWS], y[n : n + _MOST_ROWS], cv2.INTER_LINEAR, None, border
        )
        for n in range(0, len(x), _MOST_ROWS)
    ]
    return np.concatenate(parts).astype(np.float32)
