"""Back-projection of 2D tracks to 3D flow in the camera frame of frame t.

N frames of the flow window, G = 20 grid points a side, K = 7 steps.
"""

from __future__ import annotations

import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats
from dynaflip.platform.triplets.flow.config import LiftingConfig
from dynaflip.platform.triplets.schema import STEPS

# Neighbouring depths that differ by less than this share lie on one surface, be it steep.
_SMOOTH_SHARE = 0.03
# Stored times are rounded: at 14 Hz to a microsecond.
_SAME_TIME_S = 1e-5


def assumed_intrinsics_px(height_px: int, width_px: int) -> Doubles:
    """(4,) fx, fy, cx, cy of an unknown camera: focal length = the longer side (53°)."""
    focal = float(max(height_px, width_px))
    return np.array([focal, focal, width_px / 2, height_px / 2])


def back_project(points_px: np.ndarray, depth_m: np.ndarray, intrinsics_px: np.ndarray) -> Doubles:
    """(…, 2) pixels and (…) z-depth in metres to (…, 3) XYZ in the camera's frame.

    ``intrinsics_px`` is fx, fy, cx, cy, of the image that the pixels are in.
    """
    fx, fy, cx, cy = intrinsics_px
    x = (points_px[..., 0] - cx) / fx * depth_m
    y = (points_px[..., 1] - cy) / fy * depth_m
    return np.stack([x, y, depth_m], axis=-1)


def project(points_m: np.ndarray, intrinsics_px: np.ndarray) -> Doubles:
    """(…, 3) XYZ in the camera's frame to (…, 2) pixels; points behind it go far away."""
    fx, fy, cx, cy = intrinsics_px
    z = np.maximum(points_m[..., 2], 1e-6)
    return np.stack([points_m[..., 0] / z * fx + cx, points_m[..., 1] / z * fy + cy], axis=-1)


def move_points(points_m: np.ndarray, transform: np.ndarray) -> Doubles:
    """Apply a (4, 4) rigid transform to (…, 3) points."""
    return points_m @ transform[:3, :3].T + transform[:3, 3]


def sample_depth_m(
    depth_m: Floats, points_px: np.ndarray, expected_m: np.ndarray | None, search_px: int
) -> Doubles:
    """Depth at sub-pixel points, never mixed across an edge.

    Within a surface it is bilinear. At an edge it is one of the depths within
    ``search_px``: the nearest to ``expected_m``, or without expectation the
    pixel's own.

    Args:
        depth_m: (H, W) z-depth, NaN or infinite where there is none.
        points_px: (P, 2) x, y in this depth image, pixel centres at +0.5.
        expected_m: (P,) where the point's depth should be, or None.
        search_px: radius in pixels.

    Returns:
        (P,) metres, NaN where there is none.
    """
    height, width = depth_m.shape
    u, v = points_px[:, 0] - 0.5, points_px[:, 1] - 0.5
    x0 = np.clip(np.floor(u), 0, max(width - 2, 0)).astype(int)
    y0 = np.clip(np.floor(v), 0, max(height - 2, 0)).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    a, b = np.clip(u - x0, 0, 1), np.clip(v - y0, 0, 1)
    corners = np.stack([depth_m[y0, x0], depth_m[y0, x1], depth_m[y1, x0], depth_m[y1, x1]])
    weights = np.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b])
    finite = np.isfinite(corners).all(0)
    corners = np.where(finite, corners, 1.0)
    bilinear = (corners * weights).sum(0)
    smooth = finite & (corners.max(0) - corners.min(0) <= _SMOOTH_SHARE * corners.min(0))
    x = np.clip(np.rint(u), 0, width - 1).astype(int)
    y = np.clip(np.rint(v), 0, height - 1).astype(int)
    if expected_m is None:
        return np.where(smooth, bilinear, depth_m[y, x])
    reach = np.arange(-search_px, search_px + 1)
    dy, dx = (d.reshape(-1, 1) for d in np.meshgrid(reach, reach, indexing="ij"))
    near = depth_m[np.clip(y + dy, 0, height - 1), np.clip(x + dx, 0, width - 1)]
    off = np.where(np.isfinite(near), np.abs(near - expected_m), np.inf)
    best = off.argmin(0)
    nearest = near[best, np.arange(len(best))]
    # Bilinear is finer, but only if it lies on the surface that was followed.
    with np.errstate(invalid="ignore"):
        use = smooth & (np.abs(bilinear - nearest) <= _SMOOTH_SHARE * nearest)
    return np.where(use, bilinear, nearest)


def lift_tracks(
    tracks_px: Floats,
    trusted: np.ndarray,
    depth_m: Floats | None,
    intrinsics_px: Doubles,
    poses: Doubles | None,
    config: LiftingConfig,
) -> tuple[Floats, np.ndarray]:
    """Lift tracks into the camera frame of their first frame.

    Args:
        tracks_px: (N, G, G, 2) of the tracked image.
        trusted: (N, G, G) by the tracker.
        depth_m: (N, h, w) z-depth in the tracked image's resolution, NaN where
            there is none; None puts everything on the plane z = 1.
        intrinsics_px: (N, 4) of the tracked image.
        poses: (N, 4, 4) camera to world, metres; None: a static camera.
        config: how to treat edges.

    Returns:
        (N, G, G, 3) XYZ (a lost point stays where it was lost), and (N, G, G)
        whether tracker and depth agree up to that frame.
    """
    frames, rows, columns = tracks_px.shape[:3]
    points = tracks_px.reshape(frames, -1, 2).astype(np.float64)
    good = trusted.reshape(frames, -1).copy()
    xyz = np.zeros((frames, points.shape[1], 3))
    for n in range(frames):
        to_first = np.eye(4) if poses is None else np.linalg.inv(poses[0]) @ poses[n]
        if depth_m is None:
            z = np.ones(points.shape[1])
        elif n == 0:
            z = sample_depth_m(depth_m[0], points[0], None, config.search_px)
            good[0] &= np.isfinite(z)
        else:
            expected = move_points(xyz[n - 1], np.linalg.inv(to_first))[:, 2]
            z = sample_depth_m(depth_m[n], points[n], expected, config.search_px)
            with np.errstate(invalid="ignore"):
                good[n] &= np.abs(z - expected) <= config.max_depth_jump * expected
        z = np.where(np.isfinite(z), z, 0.0)
        at = move_points(back_project(points[n], z, intrinsics_px[n]), to_first)
        if n > 0:
            good[n] &= good[n - 1]
            at = np.where(good[n][:, None], at, xyz[n - 1])
        xyz[n] = at
    shape = (frames, rows, columns)
    return xyz.reshape(*shape, 3).astype(np.float32), good.reshape(shape)


def at_steps(
    values: np.ndarray, visible: np.ndarray, times_s: Doubles
) -> tuple[np.ndarray, np.ndarray]:
    """Values at t + k·window/K, k = 1…K, linear between frames.

    Args:
        values: (N, …) at each frame.
        visible: (N, G, G) bool.
        times_s: (N,) of the frames; the window is from the first to the last.

    Returns:
        (K, …) values and (K, G, G): visible in both frames beside the step.
    """
    steps = step_times_s(times_s)
    after = np.clip(np.searchsorted(times_s, steps - 1e-9), 1, len(times_s) - 1)
    before = after - 1
    share = np.clip((steps - times_s[before]) / (times_s[after] - times_s[before]), 0, 1)
    w = share.reshape(-1, *[1] * (values.ndim - 1))
    return (
        ((1 - w) * values[before] + w * values[after]).astype(np.float32),
        visible[before] & visible[after],
    )


def step_times_s(times_s: Doubles) -> Doubles:
    """(K,) times of the flow's steps in a window whose frames are shown at (N,) ``times_s``."""
    window_s = times_s[-1] - times_s[0]
    return np.asarray(times_s[0] + np.arange(1, STEPS + 1) / STEPS * window_s)


def measured_steps(times_s: Doubles, flow_window_s: float, within: float) -> np.ndarray:
    """Steps of a window that are measured: (K,) bool; the others are interpolated.

    A straight line between frames errs by the square of the time between them, so what counts is
    a time, the same for short windows: a share of the longest window's step. With half of a step,
    every frame rate of at least ``K / flow_window_s`` (14 Hz at 0.5 s) measures every step, and at
    a lower rate a frame measures the steps that it is nearest to. The last step is at a frame.

    Args:
        times_s: (N,) of the tracked frames.
        flow_window_s: longest window.
        within: share of its step that a frame may be away.
    """
    off_s = np.abs(step_times_s(times_s)[:, None] - times_s).min(1)
    return np.asarray(off_s <= within * flow_window_s / STEPS + _SAME_TIME_S)
