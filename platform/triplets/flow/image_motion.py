"""Motion of the background in the image, where there is no depth.

Without depth the camera's motion cannot be taken out in 3D, but its effect on the background
can be taken out in the image. Corners all over the first frame are tracked from frame to
frame, and two questions are asked of their tracks, in this order.

1. Did the camera stand still? It did where enough corners stay where they are.
2. Does one homography for each frame take enough corners along? It does where the camera
   turns, and where the background is a plane or far away (Hartley and Zisserman 2004,
   section 13). It is fitted by MAGSAC++ (Barath et al. 2020).

An object in the middle of the view may hold most of the corners. The background is therefore
what also reaches the rim of the image on most of its sides: a motion that leaves the rim
behind is an object's. Where no motion passes, none fits.

A camera that moves sideways shifts near things further than far ones (parallax), which no
homography takes out. It shows in corners that miss the homography by motions along lines
through one point, the epipole (plane and parallax; Hartley and Zisserman, section 13.3).

N frames, C corners, P points. The centre of the first pixel is at 0.5.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats, Frames
from dynaflip.platform.triplets.flow.config import CameraConfig, TrackConfig
from dynaflip.platform.triplets.flow.dragged_points import corner_strengths
from dynaflip.platform.triplets.flow.tracking import LucasKanade, track_points, tracker_images
from dynaflip.platform.triplets.flow.window import Background, apply_homography

_CELLS = 28  # the image is divided into so many a side, with one corner in each
# Least minimal eigenvalue of a corner's 5 × 5 surroundings, mean grey² per pixel²: noise of
# a grey level or two stays below.
_MIN_CORNER = 4.0
_MIN_CORNERS = 24
_RIM_CELLS = 4  # so many rows or columns of cells from a side belong to it
_MIN_ON_SIDE = 4  # a side with fewer corners has no vote
_SIDES = 2  # of four: arms and people reach in from the others
_MOST_MISSED_PX = 0.5  # forward and back between the first frame and a later one
_EQUAL_SHARE = 0.05
# Where so much of the rim rests in so many frames, no closer look is taken.
_CLEAR_SHARE, _LOOKS = 0.6, 6
# Another motion of so large a part of the rim as the best one's: which is the background?
_RIVAL_SHARE = 0.5
# A camera stands still where corners move by no more; and where a fit does (median), because
# fits jitter by as much.
_STILL_PX, _JITTER_PX = 0.5, 0.25
# Parallax: so many of the corners miss the homography, so many of these agree with an
# epipole, and they lie on so many sides.
_PARALLAX_SHARE = 0.12
_EPIPOLE_SHARE = 0.7
_EPIPOLE_SIDES = 2
_EPIPOLE_TRIALS = 300
# Of a motion's length, beside its epipolar line: of corners, and of points, which are tracked
# less exactly.
_MOST_BESIDE, _MOST_BESIDE_OF_POINTS = 0.3, 0.5


@dataclass(frozen=True)
class ImageFit:
    """``kind``: ``static``, ``image``, ``image+parallax``, ``failed``, or ``none`` where too
    little texture reaches the rim to tell; ``background``: its motion, for the kinds ``image…``;
    ``inlier_share``: the smallest share over frames of the corners that agree, the mean of that
    of all and that of the rim's."""

    kind: str
    background: Background | None
    inlier_share: float


def fit_background(frames: Frames, track: TrackConfig, config: CameraConfig) -> ImageFit:
    """Find the motion of the background over a window.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        track: settings of the tracker; Lucas-Kanade is taken.
        config: ``inlier_px`` and ``min_inlier_share``.
    """
    images = tracker_images(frames, None)
    corners_px = _corners(images[0])
    sides = _on_sides(corners_px, images[0].shape)
    clear = _clearly_static(images, corners_px, sides, track, config)
    if clear is not None:
        return clear
    tracks_px, tracked = _tracked(images, corners_px, track)
    corners = _Corners(tracks_px, tracked, sides, config)
    if not corners.can_tell():
        return ImageFit("none", None, 0.0)
    whole = np.ones(len(corners_px), bool)
    static = np.tile(np.eye(3), (len(frames), 1, 1))
    fits = [static, *(corners.fitted(some) for some in (whole, corners.rim))]
    motions = [fit for fit in fits if fit is not None]
    agreeing = [corners.inliers(motion) for motion in motions]
    agreeing[0] &= corners.moves_px() <= _STILL_PX
    rims = [corners.share(inliers, corners.rim) for inliers in agreeing]
    # Of equal ones the simplest: a static camera, then what most corners do.
    best = int(np.argmax(np.array(rims) >= max(rims) - _EQUAL_SHARE))
    of_all = corners.share(agreeing[best], whole)
    share = (of_all + rims[best]) / 2
    enough = share >= config.min_inlier_share
    enough &= min(of_all, rims[best]) >= config.min_inlier_share / 2
    if not enough or not corners.on_sides(agreeing[best]):
        return ImageFit("failed", None, share)
    moved_px = max(
        float(np.median(far_px[some])) if some.any() else 0.0
        for far_px, some in zip(corners.moves_px(), agreeing[best], strict=True)
    )
    if best == 0 or moved_px <= _JITTER_PX:
        return ImageFit("static", None, share)
    if corners.rival_share(agreeing[best]) > _RIVAL_SHARE * rims[best]:
        return ImageFit("failed", None, share)
    epipole = corners.epipole(motions[best][-1])
    kind = "image" if epipole is None else "image+parallax"
    return ImageFit(kind, Background(motions[best], epipole), share)


def explained_by_parallax(
    background: Background, origin_px: Floats, end_px: Floats, inlier_px: float
) -> np.ndarray:
    """(P,) bool: the point misses the homography by a motion along its epipolar line.

    Args:
        background: with or without an epipole; without one nothing is explained.
        origin_px: (P, 2) in the first frame.
        end_px: (P, 2) in the last one.
        inlier_px: smaller misses are none.
    """
    if background.epipole is None:
        return np.zeros(len(origin_px), bool)
    from_px, to_px = background.moved(origin_px, -1), end_px.astype(np.float64)
    beside_px, length_px = _beside(background.epipole[None], from_px, to_px)
    most_px = np.maximum(inlier_px, _MOST_BESIDE_OF_POINTS * length_px)
    return (length_px > inlier_px) & (beside_px[0] <= most_px)


def _clearly_static(
    images: list[np.ndarray],
    corners_px: Floats,
    sides: np.ndarray,
    track: TrackConfig,
    config: CameraConfig,
) -> ImageFit | None:
    """The answer for most cameras on a stand, from a few frames; None: look closer."""
    looks = sorted({round(n) for n in np.linspace(0, len(images) - 1, _LOOKS)})
    if len(corners_px) < _MIN_CORNERS:
        return None
    near_px = np.repeat(corners_px[None], len(looks), axis=0)
    good = np.ones(near_px.shape[:2], bool)
    tracks_px, tracked = _anchored([images[n] for n in looks], near_px, good, track)
    corners = _Corners(tracks_px, tracked, sides, config)
    resting = tracked & (corners.moves_px() <= _JITTER_PX)
    of_rim, of_all = corners.share(resting, corners.rim), corners.share(resting, good[0])
    if not corners.can_tell() or not corners.on_sides(resting):
        return None
    if of_rim < _CLEAR_SHARE or of_all < config.min_inlier_share:
        return None
    return ImageFit("static", None, (of_rim + of_all) / 2)


def _tracked(
    images: list[np.ndarray], corners_px: Floats, track: TrackConfig
) -> tuple[Doubles, np.ndarray]:
    """(N, C, 2) tracks from frame to frame and (N, C) whether they hold."""
    chained_px, misses_px = track_points(images, corners_px, replace(track, tracker="lk"))
    return _anchored(images, chained_px, np.isfinite(misses_px), track)


def _anchored(
    images: list[np.ndarray], near_px: Floats, good: np.ndarray, track: TrackConfig
) -> tuple[Doubles, np.ndarray]:
    """(N, C, 2) tracks and (N, C) whether they hold.

    Tracks from frame to frame drift; each position is therefore refined by the first frame's
    surroundings of the corner, forward and back.

    Args:
        images: N.
        near_px: (N, C, 2) positions that are nearly right; the first are exact.
        good: (N, C) bool: which of them to refine; the others do not hold.
        track: settings of Lucas-Kanade.
    """
    half, refine = np.float32(0.5), LucasKanade(replace(track, lk_levels=1)).refine
    tracks_px, tracked = near_px.astype(np.float64), good.copy()
    start = near_px[0] - half
    for n in range(1, len(images)):
        some = np.flatnonzero(tracked[n])
        if not len(some):
            continue
        there, found = refine(images[0], images[n], start[some], near_px[n, some] - half)
        back, found_back = refine(images[n], images[0], there, start[some])
        off_px = np.linalg.norm(back - start[some], axis=1)
        tracked[n, some] = found & found_back & (off_px <= _MOST_MISSED_PX)
        tracks_px[n, some] = there + half
    return tracks_px, tracked


def _corners(grey: np.ndarray) -> Floats:
    """(C, 2) the best corner of each cell of the image that has one."""
    strength = corner_strengths(grey)
    height, width = grey.shape
    rows, columns = (np.linspace(0, size, _CELLS + 1).astype(int) for size in (height, width))
    found = []
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            cell = strength[top:bottom, left:right]
            if not cell.size:
                continue
            row, column = np.unravel_index(int(cell.argmax()), cell.shape)
            if cell[row, column] >= _MIN_CORNER:
                found.append((left + column + 0.5, top + row + 0.5))
    return np.array(found, np.float32).reshape(-1, 2)


def _on_sides(points_px: Floats, shape: tuple[int, ...]) -> np.ndarray:
    """(4, C) bool: the point belongs to the left, top, right or bottom rim."""
    reach_px = np.array([shape[1], shape[0]]) * _RIM_CELLS / _CELLS
    before = points_px < reach_px
    after = points_px > np.array([shape[1], shape[0]]) - reach_px
    return np.concatenate([before.T, after.T])


@dataclass(frozen=True)
class _Corners:
    """``tracks_px`` (N, C, 2), ``tracked`` (N, C) bool, ``sides`` (4, C) bool."""

    tracks_px: Doubles
    tracked: np.ndarray
    sides: np.ndarray
    config: CameraConfig

    @property
    def rim(self) -> np.ndarray:
        """(C,) bool: on any side."""
        return np.asarray(self.sides.any(0))

    def fitted(self, chosen: np.ndarray) -> Doubles | None:
        """(N, 3, 3) homographies of the chosen (C,) corners; None where too few are tracked."""
        out = [np.eye(3)]
        for n in range(1, len(self.tracks_px)):
            some = self.tracked[n] & chosen
            if some.sum() < _MIN_CORNERS:
                return None
            found = _homography(
                self.tracks_px[0, some], self.tracks_px[n, some], self.config.inlier_px
            )
            if found is None:
                return None
            out.append(found)
        return np.stack(out)

    def inliers(self, motions: Doubles) -> np.ndarray:
        """(N, C) bool: tracked, and where the motion takes it."""
        missed = [
            apply_homography(motion, self.tracks_px[0]) - at_px
            for motion, at_px in zip(motions, self.tracks_px, strict=True)
        ]
        return self.tracked & (np.linalg.norm(missed, axis=-1) <= self.config.inlier_px)

    def can_tell(self) -> bool:
        """True where enough corners are tracked, on two sides of the image at least."""
        tracked = self.tracked.all(0)
        on_sides = (self.sides & tracked).sum(1) >= _MIN_ON_SIDE
        return bool(tracked.sum() >= _MIN_CORNERS and on_sides.sum() >= 2)

    def share(self, inliers: np.ndarray, chosen: np.ndarray) -> float:
        """Smallest share over frames of the tracked ones among the chosen (C,) that agree."""
        total = (self.tracked & chosen).sum(1)
        return float(((inliers & chosen).sum(1) / np.maximum(total, 1)).min())

    def on_sides(self, inliers: np.ndarray) -> bool:
        """True where enough corners agree on two sides, in every frame."""
        hits = (self.sides[:, None] & inliers).sum(-1)  # (4, N)
        total = (self.sides[:, None] & self.tracked).sum(-1)
        agree = (total >= _MIN_ON_SIDE) & (hits >= self.config.min_inlier_share * total)
        return bool((agree.sum(0) >= _SIDES).all())

    def rival_share(self, inliers: np.ndarray) -> float:
        """Share of the rim's corners that agree with another motion at the end."""
        others = self.tracked[-1] & ~inliers[-1]
        rim = self.rim
        if (others & rim).sum() < 2 * _MIN_ON_SIDE:
            return 0.0
        start_px, end_px = self.tracks_px[0, others], self.tracks_px[-1, others]
        found = _homography(start_px, end_px, self.config.inlier_px)
        if found is None:
            return 0.0
        missed_px = np.linalg.norm(apply_homography(found, start_px) - end_px, axis=1)
        agreeing = (missed_px <= self.config.inlier_px) & rim[others]
        return float(agreeing.sum() / max(1, (self.tracked[-1] & rim).sum()))

    def moves_px(self) -> Doubles:
        """(N, C) how far each corner is from where it was."""
        return np.asarray(np.linalg.norm(self.tracks_px - self.tracks_px[0], axis=-1))

    def epipole(self, motion: Doubles) -> Doubles | None:
        """(3,) the point of the last frame that parallax is away from; None: no parallax."""
        tracked = self.tracked[-1]
        from_px, to_px = (
            apply_homography(motion, self.tracks_px[0, tracked]),
            self.tracks_px[-1, tracked],
        )
        off = np.linalg.norm(to_px - from_px, axis=1) > self.config.inlier_px
        if off.sum() < max(_MIN_CORNERS, _PARALLAX_SHARE * len(off)):
            return None
        from_px, to_px, sides = from_px[off], to_px[off], self.sides[:, tracked][:, off]
        lines = _lines(from_px, to_px)
        rng = np.random.default_rng(0)  # the same window gives the same epipole
        pairs = rng.integers(0, len(lines), (_EPIPOLE_TRIALS, 2))
        candidates = np.cross(lines[pairs[:, 0]], lines[pairs[:, 1]])
        length = np.linalg.norm(candidates, axis=1)
        candidates = candidates[length > 1e-6] / length[length > 1e-6, None]  # two equal lines
        if not len(candidates):
            return None
        agreeing = _toward(candidates, from_px, to_px, self.config.inlier_px)
        best = int(agreeing.sum(1).argmax())
        on_sides = (sides & agreeing[best]).sum(1) >= _MIN_ON_SIDE
        if agreeing[best].mean() < _EPIPOLE_SHARE or on_sides.sum() < _EPIPOLE_SIDES:
            return None
        return np.asarray(candidates[best])


def _homography(before_px: Doubles, after_px: Doubles, inlier_px: float) -> Doubles | None:
    """The (3, 3) homography of most points, or None."""
    fit: Any = cv2.findHomography  # its type stub knows no doubles
    found, _ = fit(before_px, after_px, cv2.USAC_MAGSAC, inlier_px, maxIters=2000, confidence=0.999)
    for _ in range(2):
        # Neither a mirror image nor another size: not what half a second of a camera does.
        if found is None or not 0.25 < np.linalg.det(found[:2, :2]) < 4:
            return None
        near = np.linalg.norm(apply_homography(found, before_px) - after_px, axis=1) <= inlier_px
        if near.sum() < 8:
            return None
        found, _ = fit(before_px[near], after_px[near], 0)
    return None if found is None else np.asarray(found, np.float64)


def _lines(from_px: Doubles, to_px: Doubles) -> Doubles:
    """(P, 3) lines through two points each, with a normal of length 1."""
    ones = np.ones((len(from_px), 1))
    lines = np.cross(np.hstack([from_px, ones]), np.hstack([to_px, ones]))
    return lines / (np.linalg.norm(lines[:, :2], axis=1, keepdims=True) + 1e-12)


def _toward(epipoles: Doubles, from_px: Doubles, to_px: Doubles, inlier_px: float) -> np.ndarray:
    """(T, P) bool: the motion is longer than ``inlier_px``, and toward or away from (T, 3)."""
    beside_px, length_px = _beside(epipoles, from_px, to_px)
    return (length_px > inlier_px) & (beside_px <= np.minimum(inlier_px, _MOST_BESIDE * length_px))


def _beside(epipoles: Doubles, from_px: Doubles, to_px: Doubles) -> tuple[Doubles, Doubles]:
    """(T, P) distances of the ends from the lines of (T, 3) epipoles, and (P,) motions' lengths."""
    lines = np.cross(epipoles[:, None], np.insert(from_px, 2, 1.0, axis=1))
    lines /= np.linalg.norm(lines[..., :2], axis=-1, keepdims=True) + 1e-12
    beside_px = np.abs((lines * np.insert(to_px, 2, 1.0, axis=1)).sum(-1))
    return beside_px, np.linalg.norm(to_px - from_px, axis=1)
