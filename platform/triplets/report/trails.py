"""Where a triplet's points go in the image, with and without the camera's motion, and in colour.

K steps, G grid points a side. Index 0 of a path is frame t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.platform.triplets.build import MOVING_SHARE_OF_DEPTH
from dynaflip.platform.triplets.clips import Doubles, Floats

# Blue to light grey to orange: told apart by all common kinds of colour blindness, and of equal
# weight on both sides (after the blue-orange maps of ColorBrewer).
_DIVERGING = np.array(
    [[33, 113, 205], [120, 175, 240], [238, 238, 238], [250, 170, 95], [224, 92, 0]], np.float64
)
# Dark to light, of rising brightness (viridis without its darkest part).
_SEQUENTIAL = np.array(
    [[70, 90, 165], [38, 150, 160], [90, 200, 110], [180, 222, 60], [253, 231, 37]], np.float64
)
_SAME_PX = 0.5  # paths that differ by less are drawn once


@dataclass(frozen=True)
class Trails:
    """Paths of a triplet's points.

    Args:
        seen_px: (K + 1, G, G, 2) in stored pixels, as the image shows them.
        removed_px: (K + 1, G, G, 2) the same in a camera that stays where it was at t.
        steps: (G, G) up to which step each point is trusted; 0: not at all.
        moving: (G, G) bool: points that move in the scene.
        measured: (K,) bool; steps that are not are interpolated.
        values: (K, G, G) what the colour stands for; see ``unit``.
        limit: the value at the colour bar's end, a round number.
        unit: ``m`` (change of depth, metres), ``depth`` (change of depth, share of the median
            depth) or ``image`` (distance in the image, share of its short side).
    """

    seen_px: Floats
    removed_px: Floats
    steps: np.ndarray
    moving: np.ndarray
    measured: np.ndarray
    values: Floats
    limit: float
    unit: str

    def differ(self) -> bool:
        """True where the camera's motion that was removed can be seen."""
        known = self.steps > 0
        if not known.any():
            return False
        off = np.linalg.norm(self.seen_px - self.removed_px, axis=-1)
        return float(np.median(off.max(0)[known])) > _SAME_PX

    def colours(self) -> np.ndarray:
        """(K, G, G, 3) uint8 RGB."""
        return colours(self.values, self.limit, signed=self.unit != "image")

    def bar(self) -> tuple[list[str], list[str]]:
        """CSS colours of the colour bar and the words at its ends."""
        signed = self.unit != "image"
        values = np.linspace(-self.limit if signed else 0, self.limit, 9)
        css = [f"rgb({r},{g},{b})" for r, g, b in colours(values, self.limit, signed)]
        if not signed:
            return css, ["0", f"{100 * self.limit:.3g} % of the image's short side"]
        far = metres(self.limit) if self.unit == "m" else f"{100 * self.limit:.3g} % of the depth"
        return css, [f"{far} closer to the camera", f"{far} farther"]


def trails_of(row: dict[str, Any]) -> Trails:
    """The paths of a triplet's points.

    Args:
        row: columns of a triplet, as :func:`.examples.read_examples` gives them.
    """
    visible = row["flow_visible"].astype(bool)
    moved_m, origin_m = row["flow_displacement_m"], row["flow_origin_m"]
    far = np.linalg.norm(moved_m, axis=-1) > MOVING_SHARE_OF_DEPTH * row["median_depth_m"]
    moving, steps = (far & visible).any(0), visible.sum(0)
    seen_px = np.concatenate([row["origin_px"][None], row["tracks_px"]])
    path_m = np.concatenate([origin_m[None], origin_m + moved_m])
    removed_px = _projected(path_m, row)
    if has_depth(row):
        unit, values = "m", moved_m[..., 2]
        if row["depth_scale"] == "relative":
            unit, values = "depth", values / row["median_depth_m"]
        least = MOVING_SHARE_OF_DEPTH * (row["median_depth_m"] if unit == "m" else 1.0)
    else:
        unit, least = "image", 0.02
        values = np.linalg.norm(removed_px[1:] - removed_px[:1], axis=-1)
        values = values / min(row["width_px"], row["height_px"])
    shown = np.abs(values)[visible & moving]
    limit = round_number(max(least, float(np.percentile(shown, 95)) if len(shown) else 0.0))
    measured = row.get("flow_measured", np.ones(len(moved_m), np.uint8)).astype(bool)
    return Trails(seen_px, removed_px, steps, moving, measured, values, limit, unit)


def has_depth(row: dict[str, Any]) -> bool:
    """True where a triplet's third dimension is known at all."""
    return bool(row["depth_kind"] != "plane")


def _projected(path_m: Floats, row: dict[str, Any]) -> Floats:
    """(…, 2) stored pixels of (…, 3) points in camera t.

    Only the focal length is stored, so the middle of the image comes from the origins, whose
    pixels are known.
    """
    origin_px = row["origin_px"]
    sound = path_m[0, ..., 2] > 0
    slopes = path_m[..., :2] / np.maximum(path_m[..., 2:], 1e-6) * row["focal_px"]
    middle_px = np.median((origin_px - slopes[0])[sound], axis=0) if sound.any() else 0.0
    out = slopes + middle_px
    out += origin_px - out[0]  # what rounding and refined origins leave
    # A point without depth in frame t has no place in space.
    out[:, ~sound] = origin_px[~sound]
    return np.asarray(out, np.float32)


def colours(values: np.ndarray, limit: float, signed: bool) -> np.ndarray:
    """(…, 3) uint8 RGB of values: -limit … limit where they are signed, else 0 … limit."""
    anchors = _DIVERGING if signed else _SEQUENTIAL
    share = (values / limit + 1) / 2 if signed else values / limit
    at: Doubles = np.clip(share, 0, 1) * (len(anchors) - 1)
    low = np.minimum(at.astype(int), len(anchors) - 2)
    part = (at - low)[..., None]
    return ((1 - part) * anchors[low] + part * anchors[low + 1]).round().astype(np.uint8)


def round_number(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, … (and their tenths) that is not smaller."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-9)))
    return float(next(n * power for n in (1, 2, 5, 10) if n * power >= value * (1 - 1e-5)))


def metres(value_m: float) -> str:
    """A length in the unit that suits it."""
    if value_m < 0.01:
        return f"{1000 * value_m:.3g} mm"
    return f"{100 * value_m:.3g} cm" if value_m < 1 else f"{value_m:.3g} m"
