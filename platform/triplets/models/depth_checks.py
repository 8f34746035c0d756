"""Checks of a depth model's output: metres that no camera sees are refused, with both figures."""

from __future__ import annotations

import numpy as np

from dynaflip.platform.triplets.clips import ClipRejected, Floats
from dynaflip.platform.triplets.models import DepthModel

# Median depth of a scene: closer is inside the lens, further are millimetres read as metres.
NEAREST_SCENE_M, FURTHEST_SCENE_M = 0.02, 100.0
# Models of metric depth miss by a third on foreign scenes; beyond this factor it is the unit.
_MOST_OFF = 2.0
_MIN_PIXELS = 50


SCALES = ("metric", "relative", "inverse")


def check_scale(model: DepthModel, name: str) -> None:
    """Refuse a model that does not say what its numbers are.

    Raises:
        ClipRejected: with what ``scale`` may be.
    """
    scale = getattr(model, "scale", None)
    if scale not in SCALES:
        raise ClipRejected(
            "depth", f"{name} has scale {scale!r}, not one of {', '.join(map(repr, SCALES))}"
        )


def check_metric(depth: Floats, recorded_m: Floats | None, name: str) -> None:
    """Refuse metric depth in another unit.

    Args:
        depth: (N, H, W) of a window, said to be in metres.
        recorded_m: (H, W) recorded depth of its first frame, NaN where there is none, or None.
        name: of the model, for the reason.

    Raises:
        ClipRejected: its median is none of a scene, or not near the recorded one.
    """
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        raise ClipRejected("depth", f"{name} says that its depth is in metres, but none is above 0")
    median_m = float(np.median(depth[known]))
    if not NEAREST_SCENE_M <= median_m <= FURTHEST_SCENE_M:
        raise ClipRejected(
            "depth", f"{name} says that its depth is in metres, but its median is {median_m:.4g}"
        )
    if recorded_m is None:
        return
    both = known[0] & np.isfinite(recorded_m) & (recorded_m > 0)
    if both.sum() < _MIN_PIXELS:
        return
    ratio = float(np.median(depth[0][both] / recorded_m[both]))
    if not 1 / _MOST_OFF <= ratio <= _MOST_OFF:
        raise ClipRejected(
            "depth",
            f"{name} says that its depth is in metres, but its median is "
            f"{np.median(depth[0][both]):.4g} m where the recording has "
            f"{np.median(recorded_m[both]):.4g} m",
        )
