"""Track surface patches around grid points through a window (see rgbd_alignment.py).

P grid points, N frames, M patches, S samples of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats, Frames
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow.config import AlignmentConfig
from dynaflip.platform.triplets.flow.lifting import back_project, project, sample_depth_m
from dynaflip.platform.triplets.flow.rgbd_alignment import (
    BLUR_PX,
    Motion,
    SurfacePatches,
    View,
    misfit,
    refine,
)
from dynaflip.platform.triplets.flow.static_points import compare_with_static_scene
from dynaflip.platform.triplets.flow.window import RGBDWindow

# Further behind or before what a frame shows than this share of its depth: not in sight.
_SIGHT_SHARE = 0.03
# Depth's scale is at least this many standard deviations of its noise.
_NOISE_WIDTHS = 1.5


@dataclass(frozen=True)
class TrackedSurfaces:
    """``xyz_m`` (N, P, 3) in the camera frame of the first frame, ``tracks_px`` (N, P, 2),
    ``misfit`` (N, P) in [0, 1] (0 fits), ``in_sight`` (N, P) bool: the frame shows a surface
    there; ``known`` (P,) bool: the point has a patch, else its other values mean nothing."""

    xyz_m: Floats
    tracks_px: Floats
    misfit: Floats
    in_sight: np.ndarray
    known: np.ndarray


def track_surfaces(
    window: RGBDWindow,
    origin_px: Floats,
    chosen: np.ndarray,
    tracked_m: Floats,
    trusted: np.ndarray,
    config: PreprocessConfig,
    depth_noise: float,
) -> TrackedSurfaces:
    """Track the surface patches around chosen points.

    Args:
        window: N frames with depth.
        origin_px: (P, 2).
        chosen: (P,) bool: which points to track.
        tracked_m: (N, P, 3) where a tracker has them, in the first camera's frame.
        trusted: (N, P) whether it trusts that.
        config: settings; the scale of depth is widened to what the depth's noise asks for.
        depth_noise: standard deviation of depth, as a share of it.
    """
    assert window.depth_m is not None
    scale = max(config.rgbd_alignment.depth_scale_share, _NOISE_WIDTHS * depth_noise)
    alignment = replace(config.rgbd_alignment, depth_scale_share=scale)
    search_px = config.lifting.search_px
    count, points = len(window.frames), len(origin_px)
    patches, which = cut_surface_patches(window, origin_px, chosen, config, depth_noise)
    known = np.zeros(points, bool)
    known[which] = True
    xyz_m = np.repeat(tracked_m[:1], count, axis=0)
    tracks_px = np.repeat(origin_px[None], count, axis=0)
    misfits = np.zeros((count, points), np.float32)
    in_sight = np.ones((count, points), bool)
    if len(which):
        own_m = tracked_m[0, which].astype(np.float32)
        found = _motions(window, patches, tracked_m[:, which], trusted[:, which], alignment)
        for n, (motion, misses) in enumerate(found, start=1):
            misfits[n, which] = misses
            xyz_m[n, which] = motion.of(own_m[:, None], patches.middle_m)[:, 0]
            tracks_px[n, which], in_sight[n, which] = _sighted(
                window, n, xyz_m[n, which], search_px
            )
    return TrackedSurfaces(xyz_m, tracks_px, misfits, in_sight, known)


def _motions(
    window: RGBDWindow,
    patches: SurfacePatches,
    tracked_m: Floats,
    trusted: np.ndarray,
    config: AlignmentConfig,
) -> list[tuple[Motion, Floats]]:
    """The motion of each patch to each later frame, and how badly it fits (M,)."""
    neighbours = _nearest(patches.middle_m, config.neighbours).T
    before = now = Motion.none(len(patches.middle_m))
    out = []
    for n in range(1, len(window.frames)):
        view = view_of(window, n)
        drift_m = (tracked_m[n] - tracked_m[n - 1]) * trusted[n, :, None]
        tracked = Motion(now.rotation, (now.shift_m + drift_m).astype(np.float32))
        found = best_of(patches, [now, now.again(before), tracked], view, 0, config)
        found = refine(patches, found, view, 0, config.coarse_iterations, config)
        others = [found.about(patches.middle_m, other) for other in neighbours]
        found = best_of(patches, [found, *others], view, 1, config)
        found = refine(patches, found, view, 1, config.fine_iterations, config)
        before, now = now, found
        out.append((now, misfit(patches, now, view, 1, config)))
    return out


def cut_surface_patches(
    window: RGBDWindow,
    origin_px: Floats,
    chosen: np.ndarray,
    config: PreprocessConfig,
    depth_noise: float,
) -> tuple[SurfacePatches, np.ndarray]:
    """Surface patches around chosen points, static pixels left out, and their points' indices.

    A point is left out where fewer than ``alignment.min_samples`` remain.
    """
    assert window.depth_m is not None
    height, width = window.frames.shape[1:3]
    search_px, alignment = config.lifting.search_px, config.rgbd_alignment
    which = np.flatnonzero(chosen)
    x, y, own = _lattice(origin_px[which], (width, height), alignment)
    # Each lattice point once, however many patches share it.
    flat, cell = np.unique(y * width + x, return_inverse=True)
    cell = cell.reshape(x.shape)
    rows, columns = flat // width, flat % width
    lattice_px = np.stack([columns, rows], -1) + 0.5
    static = compare_with_static_scene(
        window, lattice_px.astype(np.float32), config.static_points, search_px, depth_noise
    )
    z_m = window.depth_m[0][rows, columns].astype(np.float64)
    usable = np.isfinite(z_m) & (z_m > 0) & ~static.is_static()
    own_z_m = sample_depth_m(
        window.depth_m[0], origin_px[which].astype(np.float64), None, search_px
    )
    with np.errstate(invalid="ignore"):
        near = np.abs(z_m[cell] - own_z_m[:, None]) <= alignment.depth_share * own_z_m[:, None]
    own &= near & usable[cell]
    keep = own.sum(1) >= alignment.min_samples
    which, own, cell = which[keep], own[keep], cell[keep]
    some = _spread_over(own, alignment.samples)
    own, cell = np.take_along_axis(own, some, 1), np.take_along_axis(cell, some, 1)
    lattice_m = back_project(lattice_px, np.where(usable, z_m, 1.0), window.intrinsics_px[0])
    points_m = lattice_m[cell].astype(np.float32)
    total = np.maximum(own.sum(1), 1)[:, None]
    middle_m = ((points_m * own[..., None]).sum(1) / total).astype(np.float32)
    grey = np.stack([level[rows, columns][cell] for level in grey_levels(window.frames[0])])
    return SurfacePatches(points_m, own, grey, middle_m), which


def _lattice(
    origin_px: Floats, size_px: tuple[int, int], config: AlignmentConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, rows and being inside, (M, S), of lattice points in a disc about each point."""
    (width, height), step = size_px, config.stride_px
    reach = config.radius_px // step
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1] * step
    disc = down**2 + right**2 <= config.radius_px**2
    base = np.rint(origin_px / step).astype(int) * step
    x, y = base[:, :1] + right[disc], base[:, 1:] + down[disc]
    inside = (x >= 1) & (y >= 1) & (x < width - 1) & (y < height - 1)
    return x.clip(0, width - 1), y.clip(0, height - 1), inside


def _spread_over(own: np.ndarray, count: int) -> np.ndarray:
    """(M, ≤ count) indices of samples, evenly over those that are a patch's own."""
    count = min(count, own.shape[1])
    order = np.argsort(~own, axis=1, kind="stable")  # own ones first
    total = own.sum(1)[:, None]
    rank = np.arange(count)
    return np.take_along_axis(order, np.where(total > count, rank * total // count, rank), 1)


def _sighted(
    window: RGBDWindow, n: int, xyz_m: Floats, search_px: int
) -> tuple[Doubles, np.ndarray]:
    """(M, 2) where points are in frame n, and (M,) whether it shows a surface there."""
    assert window.depth_m is not None
    height, width = window.frames.shape[1:3]
    camera = window.from_first(n)
    seen_m = xyz_m @ camera[:3, :3].T + camera[:3, 3]
    at_px = project(seen_m, window.intrinsics_px[n])
    inside = ((at_px >= 0) & (at_px < (width, height))).all(1) & (seen_m[:, 2] > 0)
    found_m = sample_depth_m(window.depth_m[n], at_px, seen_m[:, 2], search_px)
    with np.errstate(invalid="ignore"):
        return at_px, inside & (np.abs(found_m - seen_m[:, 2]) <= _SIGHT_SHARE * seen_m[:, 2])


def view_of(window: RGBDWindow, n: int) -> View:
    """Frame n, ready to be compared with."""
    assert window.depth_m is not None
    return View(
        grey_levels(window.frames[n]),
        window.depth_m[n],
        window.intrinsics_px[n].astype(np.float32),
        window.from_first(n).astype(np.float32),
    )


def grey_levels(frame: Frames) -> list[Floats]:
    """(H, W) brightness, blurred for each level of rgbd_alignment.py."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return [np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma), np.float32) for sigma in BLUR_PX]


def best_of(
    patches: SurfacePatches, motions: list[Motion], view: View, level: int, config: AlignmentConfig
) -> Motion:
    """Of several motions for each patch the one that fits best."""
    misses = np.stack([misfit(patches, motion, view, level, config) for motion in motions])
    best, patch = misses.argmin(0), np.arange(misses.shape[1])
    rotation = np.stack([motion.rotation for motion in motions])[best, patch]
    return Motion(rotation, np.stack([motion.shift_m for motion in motions])[best, patch])


def _nearest(middle_m: Floats, count: int) -> np.ndarray:
    """(M, ≤ count) indices of the nearest other patches."""
    apart = np.linalg.norm(middle_m[:, None] - middle_m[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    return np.argsort(apart, axis=1, kind="stable")[:, : min(count, len(middle_m) - 1)]
