"""Relative depth to metres, by scale and shift, where some depth was measured.

A model of relative depth knows inverse depth up to a scale and a shift (Ranftl et al.
2022). Where a frame also has measured depth (a sensor with holes, a few frames of it),
both follow from a robust line through (model's inverse, measured inverse).
"""

from __future__ import annotations

import numpy as np

from dynaflip.platform.triplets.clips import Floats

_MIN_PIXELS = 50
_ITERATIONS = 10
# A pixel agrees when it misses the measured inverse depth by less than this share of it.
_AGREES = 0.1
_MIN_AGREEING = 0.5
# Nothing is further away than this many times the furthest that was measured.
_FURTHEST = 3.0


def align_depth(relative: Floats, first_m: Floats) -> Floats | None:
    """Bring relative depth to metres.

    Args:
        relative: (N, H, W) depth of a window, of any scale, 1 / (true to scale and shift).
        first_m: (H, W) measured depth of its first frame in metres, NaN where there is none.

    Returns:
        (N, H, W) metres, one scale and shift for the window, so that motion in depth is not
        divided away; None where too few pixels were measured or half of them disagree.
    """
    known = np.isfinite(first_m) & (first_m > 0) & np.isfinite(relative[0]) & (relative[0] > 0)
    if known.sum() < _MIN_PIXELS:
        return None
    near, wanted = 1 / relative[0][known].astype(np.float64), 1 / first_m[known].astype(np.float64)
    weight = np.ones(len(near))
    scale = shift = 0.0
    for _ in range(_ITERATIONS):
        middle, aim = np.average(near, weights=weight), np.average(wanted, weights=weight)
        spread = float((weight * (near - middle) ** 2).sum())
        # A flat image fixes no shift: scale alone is left.
        flat = spread < 1e-6 * float(weight.sum()) * middle**2
        scale = (
            aim / middle
            if flat
            else float((weight * (near - middle) * (wanted - aim)).sum()) / spread
        )
        shift = 0.0 if flat else aim - scale * middle
        miss = (scale * near + shift) / wanted - 1
        weight = 1 / (1 + (miss / _AGREES) ** 2) ** 2 / wanted**2
    if scale <= 0 or (np.abs(miss) < _AGREES).mean() < _MIN_AGREEING:
        return None
    least = 1 / (_FURTHEST * float(first_m[known].max()))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (1 / np.maximum(scale / relative + shift, least)).astype(np.float32)
