"""2D tracks of grid points: pyramidal Lucas-Kanade with a forward-backward check."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Floats, Frames
from dynaflip.platform.triplets.config import TrackConfig
from dynaflip.platform.triplets.schema import GRID


def grid_px(height_px: int, width_px: int) -> Floats:
    """(G, G, 2) x, y of the centres of a G×G division of the picture; row-major.

    The top left corner of the picture is (0, 0), the first pixel's centre (0.5, 0.5).
    """
    x = (np.arange(GRID) + 0.5) / GRID * width_px
    y = (np.arange(GRID) + 0.5) / GRID * height_px
    return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)


def thin_frames(times_s: np.ndarray, min_gap_s: float) -> list[int]:
    """Indices that keep the first and last frame and gaps of at least ``min_gap_s``."""
    if min_gap_s <= 0 or len(times_s) < 3:
        return list(range(len(times_s)))
    steps = max(2, int((times_s[-1] - times_s[0]) / min_gap_s + 1e-6))
    wanted = np.linspace(times_s[0], times_s[-1], steps + 1)
    return sorted({int(np.abs(times_s - t).argmin()) for t in wanted})


def tracker_pictures(frames: Frames, depth_m: Floats | None) -> list[np.ndarray]:
    """What the tracker compares: grey, and inverse depth beside it where it is known.

    A robot's arm is one colour; its outline and roundness in depth hold the tracker
    where the picture slides along it.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        depth_m: (N, H, W) or None.

    Returns:
        N pictures (H, W) or (H, W, 2) uint8.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    if depth_m is None:
        return grey
    near = np.where(np.isfinite(depth_m), 1 / np.where(depth_m > 0, depth_m, np.inf), 0.0)
    low, high = np.percentile(near[0], [1, 99.5])
    level = np.clip((near - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    return [np.dstack(pair) for pair in zip(grey, level, strict=True)]


def track_points(
    pictures: list[np.ndarray], origin_px: Floats, config: TrackConfig
) -> tuple[Floats, np.ndarray]:
    """Follow points through every picture.

    Args:
        pictures: N, from :func:`tracker_pictures`; points lie on the first.
        origin_px: (P, 2) x, y, pixel centres at +0.5.
        config: window, levels and the check's threshold.

    Returns:
        (N, P, 2) positions (the first is ``origin_px``; a lost point stays where it
        was lost) and (N, P) whether the point is trusted up to that frame.
    """
    cv2.setNumThreads(1)  # one CPU a task
    height, width = pictures[0].shape[:2]
    options: dict[str, Any] = {
        "winSize": (config.lk_window_px, config.lk_window_px),
        "maxLevel": config.lk_levels,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01),
    }
    follow: Any = cv2.calcOpticalFlowPyrLK  # its type stub forbids a None that it wants
    # OpenCV has the centre of the first pixel at 0.
    at = origin_px.reshape(-1, 1, 2).astype(np.float32) - np.float32(0.5)
    trusted = np.ones(len(at), dtype=bool)
    tracks, visible = [at], [trusted]
    for before, after in itertools.pairwise(pictures):
        if not trusted.any():
            tracks.append(at)
            visible.append(trusted)
            continue
        # Only points that are still followed cost time.
        start = at[trusted]
        there, found, _ = follow(before, after, start, None, **options)
        back, found_back, _ = follow(after, before, there, None, **options)
        miss_px = np.linalg.norm(back - start, axis=-1)[:, 0]
        x, y = there[:, 0, 0], there[:, 0, 1]
        good = (x >= -0.5) & (y >= -0.5) & (x <= width - 0.5) & (y <= height - 0.5)
        good &= (found[:, 0] > 0) & (found_back[:, 0] > 0)
        good &= miss_px <= config.max_backward_error_px
        followed = np.flatnonzero(trusted)[good]
        at, trusted = at.copy(), np.zeros_like(trusted)
        at[followed], trusted[followed] = there[good], True
        tracks.append(at)
        visible.append(trusted)
    return (np.stack(tracks)[:, :, 0] + np.float32(0.5)).astype(np.float32), np.stack(visible)
