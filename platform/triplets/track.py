"""2D tracks of a uniform grid: pyramidal Lucas-Kanade with a forward-backward check."""

from __future__ import annotations

import itertools

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Floats, Frames
from dynaflip.platform.triplets.config import TrackConfig
from dynaflip.platform.triplets.schema import GRID

Bools = np.ndarray


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


def track_grid(frames: Frames, origin_px: Floats, config: TrackConfig) -> tuple[Floats, Bools]:
    """Follow points through every frame.

    Args:
        frames: (N, H, W, 3) uint8 RGB; points lie on the first.
        origin_px: (G, G, 2) x, y, pixel centres at +0.5.
        config: window, levels and the check's threshold.

    Returns:
        (N, G, G, 2) positions (the first is ``origin_px``; a lost point stays where
        it was lost) and (N, G, G) whether the point is trusted up to that frame.
    """
    cv2.setNumThreads(1)  # one CPU a task
    height, width = frames.shape[1:3]
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    options = {
        "winSize": (config.lk_window_px, config.lk_window_px),
        "maxLevel": config.lk_levels,
        "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01),
    }
    # OpenCV has the centre of the first pixel at 0.
    at = origin_px.reshape(-1, 1, 2) - np.float32(0.5)
    trusted = np.ones(len(at), dtype=bool)
    tracks, visible = [at], [trusted]
    for before, after in itertools.pairwise(gray):
        there, found, _ = cv2.calcOpticalFlowPyrLK(before, after, at, None, **options)
        back, found_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, **options)
        miss_px = np.linalg.norm(back - at, axis=-1)[:, 0]
        x, y = there[:, 0, 0], there[:, 0, 1]
        inside = (x >= -0.5) & (y >= -0.5) & (x <= width - 0.5) & (y <= height - 0.5)
        good = (found[:, 0] > 0) & (found_back[:, 0] > 0) & inside
        trusted = trusted & good & (miss_px <= config.max_backward_error_px)
        at = np.where(trusted[:, None, None], there, at)
        tracks.append(at)
        visible.append(trusted)
    shape = (len(frames), *origin_px.shape[:2])
    return (
        (np.stack(tracks) + np.float32(0.5)).reshape(*shape, 2).astype(np.float32),
        np.stack(visible).reshape(shape),
    )
