"""Filters of windows without usable motion or images; rejected ones are counted by reason."""

from __future__ import annotations

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Frames, WindowRejected
from dynaflip.platform.triplets.config import FilterConfig
from dynaflip.platform.triplets.flow.estimate import Flow

_THUMB_PX = 32
_SHARPNESS_PX = 160  # blur is judged at one size, whatever the recording's


def check_images(frames: Frames, config: FilterConfig) -> None:
    """Refuse windows with a shot cut or blurred ends.

    Args:
        frames: (N, H, W, 3) uint8 of the window.
        config: thresholds.

    Raises:
        WindowRejected: with the reason.
    """
    if cut_score(frames) > config.max_cut_score:
        raise WindowRejected("filter", "shot cut inside the window (filter.max_cut_score)")
    if min(sharpness(frames[0]), sharpness(frames[-1])) < config.min_sharpness:
        raise WindowRejected("filter", "blurred (filter.min_sharpness)")


def check_flow(flow: Flow, moving_share: float, config: FilterConfig) -> None:
    """Refuse windows in which too little moves or is known.

    Args:
        flow: of the window.
        moving_share: share of grid points that are trusted to the end and move.
        config: thresholds.

    Raises:
        WindowRejected: with the reason.
    """
    if float(flow.visible[-1].mean()) < config.min_visible_share:
        raise WindowRejected("filter", "too few trusted points (filter.min_visible_share)")
    if moving_share < config.min_moving_share:
        raise WindowRejected("filter", "no motion (filter.min_moving_share)")


def cut_score(frames: Frames) -> float:
    """The largest change from one frame to the next, beyond what the window's others change.

    Thumbnails of 32 × 32 pixels are compared, so that motion of small things counts
    little; the window's median change is taken off, so that a fast pan is no cut.

    Returns:
        Share of the full range of brightness, in [0, 1].
    """
    if len(frames) < 2:
        return 0.0
    size = (_THUMB_PX, _THUMB_PX)
    thumbs = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
    change = np.abs(np.diff(np.stack(thumbs).astype(np.float32), axis=0)).mean(axis=(1, 2, 3))
    usual = float(np.median(change)) if len(change) > 2 else 0.0
    return float(change.max() - usual) / 255


def sharpness(frame: Frames) -> float:
    """Mean squared Laplacian of the brightness at a short side of 160 px (of 255²): blur is low."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, _SHARPNESS_PX / min(grey.shape))
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    small = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return float((cv2.Laplacian(small, cv2.CV_32F) ** 2).mean())
