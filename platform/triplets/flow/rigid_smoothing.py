"""Rigid smoothing: neighbours on one surface correct each other's motion.

G = 20 grid points a side, K = 7 steps, M points that are tracked and visible,
n neighbours about each (itself among them).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats
from dynaflip.platform.triplets.flow.config import RigidSmoothingConfig

# Iterations of the robust fit, and the residual (as a share of depth) that halves a weight.
_ITERATIONS = 3
_RESIDUAL_SHARE = 0.008
_MIN_NEIGHBOURS = 4  # fewer do not fix a rigid motion


@dataclass(frozen=True)
class _Neighbours:
    """``point`` (M, 2) and ``row``, ``column`` (M, n) in the grid, ``near`` (M, n) bool."""

    point: np.ndarray
    row: np.ndarray
    column: np.ndarray
    near: np.ndarray


def outvoted(
    origin_m: Floats, followed: np.ndarray, exists: np.ndarray, config: RigidSmoothingConfig
) -> np.ndarray:
    """(G, G) bool: points whose neighbours on the same surface disagree.

    A point that seems to move on a static surface was dragged along; one that seems static
    on a moving surface slid along its own colour. Neither motion can be trusted.

    Args:
        origin_m: (G, G, 3).
        followed: (G, G) bool: not static.
        exists: (G, G) bool: has a 3D position.
        config: reach and shares.
    """
    found = _neighbours(origin_m, exists, config.vote_cells, config.depth_share)
    at = (found.point[:, 0], found.point[:, 1])
    others = found.near.sum(1) - 1
    moving = (found.near & followed[found.row, found.column]).sum(1) - followed[at]
    share = np.where(others > 0, moving / np.maximum(others, 1), followed[at])
    out = np.zeros(followed.shape, dtype=bool)
    out[at] = np.where(
        followed[at], share < config.min_moving_share, share > config.max_moving_share
    )
    return out


def smooth_rigidly(
    origin_m: Floats, displacement_m: Floats, moving: np.ndarray, config: RigidSmoothingConfig
) -> Floats:
    """Replace each point's motion by the rigid motion fitted to its neighbours.

    A rotation and translation is fitted to the neighbours' motions (Kabsch), three
    times, those that do not fit weighing less.

    Args:
        origin_m: (G, G, 3).
        displacement_m: (K, G, G, 3).
        moving: (K, G, G) bool: points that are tracked and visible; only they take
            part, and only they are changed.
        config: reach in grid cells and in depth.

    Returns:
        (K, G, G, 3).
    """
    out = displacement_m.copy()
    for k, seen in enumerate(moving):
        if not seen.any():
            continue
        found = _neighbours(origin_m, seen, config.fit_cells, config.depth_share)
        keep = found.near.sum(1) >= _MIN_NEIGHBOURS
        if not keep.any():
            continue
        row, column, near = found.row[keep], found.column[keep], found.near[keep]
        at = (found.point[keep, 0], found.point[keep, 1])
        before = origin_m[row, column].astype(np.float64)
        after = before + displacement_m[k][row, column]
        out[k][at] = _fitted_motion(before, after, near, origin_m[at].astype(np.float64))
    return out


def _fitted_motion(before: Doubles, after: Doubles, near: np.ndarray, points: Doubles) -> Doubles:
    """(M, n, 3) neighbours before and after to the (M, 3) motion of the points."""
    scale_m = _RESIDUAL_SHARE * points[:, 2:]
    weight = near.astype(np.float64)
    motion = np.zeros_like(points)
    for _ in range(_ITERATIONS):
        total = weight.sum(1)[:, None] + 1e-12
        middle = (before * weight[..., None]).sum(1) / total
        middle_after = (after * weight[..., None]).sum(1) / total
        a, b = before - middle[:, None], after - middle_after[:, None]
        u, _, vt = np.linalg.svd(np.matmul((a * weight[..., None]).transpose(0, 2, 1), b))
        # A reflection is no motion.
        u[..., -1] *= np.linalg.det(u @ vt)[:, None]
        rotation = np.swapaxes(u @ vt, 1, 2)
        rest = np.linalg.norm(np.matmul(a, rotation.transpose(0, 2, 1)) - b, axis=-1)
        weight = near / (1 + (rest / scale_m) ** 2)
        motion = np.einsum("mij,mj->mi", rotation, points - middle) + middle_after - points
    return motion


def _neighbours(
    origin_m: Floats, chosen: np.ndarray, cells: int, depth_share: float
) -> _Neighbours:
    """The chosen points and those within reach of each on the same surface."""
    point = np.argwhere(chosen)
    reach = np.arange(-cells, cells + 1)
    down, right = np.meshgrid(reach, reach, indexing="ij")
    row, column = point[:, :1] + down.ravel(), point[:, 1:] + right.ravel()
    rows, columns = chosen.shape
    near = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    row, column = row.clip(0, rows - 1), column.clip(0, columns - 1)
    z = origin_m[..., 2]
    own = z[point[:, 0], point[:, 1]][:, None]
    near &= chosen[row, column] & (np.abs(z[row, column] - own) <= depth_share * own)
    return _Neighbours(point, row, column, near)
