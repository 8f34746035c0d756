"""Depth as LeRobot 0.6 stores it: 12-bit codes, logarithmic in distance, lossless HEVC.

A code q in [0, 4095] stands for exp(log a + q / 4095 · (log b − log a)) − shift with
a = min + shift and b = max + shift, in metres; without ``use_log`` it is linear from min to max.
After the format's source (huggingface/lerobot, ``datasets/depth_utils.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

CODE_MAX = 4095

# Of the data sets that are collected here. No shift: the step is then proportional to distance,
# 0.8 mm at 1 m, which is finer than LeRobot's defaults (0.01, 10, 3.5: 1.1 mm everywhere) wherever
# a tabletop scene has points. All of the scene up to the floor's far end (6 m) is within; the sky
# is clipped to the maximum.
DEPTH_MIN_M = 0.25
DEPTH_MAX_M = 7.0
DEPTH_SHIFT_M = 0.0


def encode_depth(depth_m: np.ndarray) -> np.ndarray:
    """Metres, any shape, to codes, uint16, with the constants of this module."""
    low, high = np.log(DEPTH_MIN_M + DEPTH_SHIFT_M), np.log(DEPTH_MAX_M + DEPTH_SHIFT_M)
    # In float32, whose rounding is a hundredth of a step: every pixel of every frame passes here.
    clipped = np.clip(depth_m.astype(np.float32), DEPTH_MIN_M, DEPTH_MAX_M)
    share = (np.log(clipped + np.float32(DEPTH_SHIFT_M)) - np.float32(low)) / np.float32(high - low)
    return np.rint(share * np.float32(CODE_MAX)).astype(np.uint16)


def decode_depth(codes: np.ndarray) -> npt.NDArray[np.float32]:
    """Codes of :func:`encode_depth` to metres, any shape; the ends of the range are distances."""
    return _metres(DEPTH_MIN_M, DEPTH_MAX_M, DEPTH_SHIFT_M, use_log=True).astype(np.float32)[codes]


def check_depth_info(info: Mapping[str, Any]) -> None:
    """Check that a feature's ``info`` says how its codes stand for metres.

    Depth videos from before LeRobot 0.6 are marked as depth, too, and state no unit.

    Raises:
        ValueError: something is left out, or cannot be meant.
    """
    names = ("video.depth_min", "video.depth_max", "video.shift", "video.use_log")
    missing = [name for name in names if info.get(name) is None]
    if missing:
        raise ValueError(
            f"the unit of depth is not known ({', '.join(missing)} not stated, as LeRobot 0.6 does)"
        )
    try:
        low, high, shift = (float(info[name]) for name in names[:3])
    except (TypeError, ValueError):
        raise ValueError(f"{', '.join(names[:3])} must be metres") from None
    sensible = math.isfinite(low + high + shift) and 0 <= low < high
    if not sensible or (info["video.use_log"] and low + shift <= 0):
        raise ValueError(
            f"depth_min {low:g}, depth_max {high:g} and shift {shift:g} m are no range of depth"
        )


def decode_depth_m(codes: np.ndarray, info: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """Codes of any LeRobot data set to metres, the ends of the range marked.

    Args:
        codes: (N, H, W) uint16 in 0…4095.
        info: the feature's ``info`` with ``video.depth_min``, ``depth_max`` and
            ``shift`` (metres) and ``use_log``; LeRobot's defaults where absent.

    Returns:
        (N, H, W) z-depth in metres. NaN at the lowest code, which NaN and zero are stored as, too;
        infinity at the highest: beyond the range, like the sky.
    """
    low = float(info.get("video.depth_min", 0.01))
    high = float(info.get("video.depth_max", 10.0))
    shift = float(info.get("video.shift", 3.5))
    table_m = _metres(low, high, shift, use_log=bool(info.get("video.use_log", True)))
    table_m[0], table_m[-1] = np.nan, np.inf
    return table_m.astype(np.float32)[np.minimum(codes, CODE_MAX)]


def _metres(
    low_m: float, high_m: float, shift_m: float, *, use_log: bool
) -> npt.NDArray[np.float64]:
    """(4096,) metres of every code: all of them once, rather than an exponential a pixel."""
    share = np.arange(CODE_MAX + 1) / CODE_MAX
    if not use_log:
        return low_m + share * (high_m - low_m)
    low, high = np.log([low_m + shift_m, high_m + shift_m])
    return np.exp(low + share * (high - low)) - shift_m
