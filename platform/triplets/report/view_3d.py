"""Two views of a triplet's 3D flow: drawn from above and from the side, and one to turn by hand.

Both are markup without anything loaded from elsewhere.
"""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Floats
from dynaflip.platform.triplets.report.overlays import decode_image
from dynaflip.platform.triplets.report.trails import Trails, metres, round_number, trails_of

_SIDE = 1000  # of a drawn view, in its own units
_LEVELS = 9  # colours of trails
_UNITS = 2000  # whole numbers that the turned view's points are stored in

# Draws `points`: [x, y, z of each step…, colour] in the camera's axes, and turns them by dragging.
TURN_SCRIPT = """
document.querySelectorAll('canvas.turn').forEach(canvas => {
  const {points, scale} = JSON.parse(canvas.dataset.points), c = canvas.getContext('2d');
  const size = canvas.width, start = [-0.55, 0.38];
  let [yaw, pitch] = start, held = null;
  const place = (x, y, z) => {
    const a = x * Math.cos(yaw) + z * Math.sin(yaw), b = z * Math.cos(yaw) - x * Math.sin(yaw);
    const far = b * Math.cos(pitch) - y * Math.sin(pitch);
    const down = y * Math.cos(pitch) + b * Math.sin(pitch);
    const near = size * 0.9 / (scale * (1 + 0.18 * far / scale));
    return [size / 2 + a * near, size / 2 + down * near, far];
  };
  const draw = () => {
    c.clearRect(0, 0, size, size);
    const all = points.map(p => {
      const steps = [];
      for (let k = 0; k < p[0].length; k += 3) steps.push(place(p[0][k], p[0][k+1], p[0][k+2]));
      return [steps, p[1], p[2]];
    }).sort((p, q) => q[0][0][2] - p[0][0][2]);
    for (const [steps, colour, trails] of all) {
      for (let k = 1; k < steps.length; k++) {
        c.strokeStyle = trails[k - 1]; c.lineWidth = 1.5 + 3 * k / steps.length;
        c.beginPath(); c.moveTo(...steps[k - 1].slice(0, 2)); c.lineTo(...steps[k].slice(0, 2));
        c.stroke();
      }
      c.fillStyle = colour; c.beginPath();
      c.arc(steps[0][0], steps[0][1], 4, 0, 7); c.fill();
    }
  };
  canvas.addEventListener('pointerdown', e => {
    held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId);
  });
  canvas.addEventListener('pointermove', e => {
    if (!held) return;
    yaw += (e.clientX - held[0]) / 150; pitch += (e.clientY - held[1]) / 150;
    pitch = Math.max(-1.5, Math.min(1.5, pitch)); held = [e.clientX, e.clientY]; draw();
  });
  canvas.addEventListener('pointerup', () => { held = null; });
  canvas.addEventListener('dblclick', () => { [yaw, pitch] = start; draw(); });
  c.lineCap = 'round';
  draw();
});
"""


def turned_view(row: dict[str, Any], side_px: int) -> str:
    """A canvas of the points in their image's colours, with trails; :data:`TURN_SCRIPT` draws it.

    Args:
        row: columns of a triplet with depth.
        side_px: of the square on the page.
    """
    trails = trails_of(row)
    path = _path_m(row)
    shown = trails.steps > 0
    middle, span = _frame(path, trails, context=1.5)
    whole = np.clip((path - middle) / span, -2, 2) * _UNITS
    colours = _hex(trails.colours())
    points = []
    for (r, c), colour in zip(np.argwhere(shown), _image_colours(row, shown), strict=True):
        steps = trails.steps[r, c] if trails.moving[r, c] else 0
        own = [colours[k][r][c] for k in range(steps)]
        points.append([whole[: steps + 1, r, c].round().astype(int).ravel().tolist(), colour, own])
    data = json.dumps({"points": points, "scale": _UNITS}, separators=(",", ":"))
    return (
        f"<canvas class=turn width={2 * side_px} height={2 * side_px} "
        f"style='width:{side_px}px;height:{side_px}px' data-points='{data}'></canvas>"
    )


def drawn_views(row: dict[str, Any], side_px: int) -> tuple[str, str]:
    """The flow from above and from the side, as SVG; what moves fills them.

    Args:
        row: columns of a triplet with depth.
        side_px: of each square on the page.
    """
    trails, path = trails_of(row), _path_m(row)
    middle, span = _frame(path, trails, context=1.0)
    at = (path - middle) / span + 0.5
    bar = _scale_bar(row, span)
    above = _view(at[..., 0], 1 - at[..., 2], trails, ("right", "away"), bar, side_px)
    beside = _view(at[..., 2], at[..., 1], trails, ("away", "up"), bar, side_px)
    return above, beside


def _frame(path: Floats, trails: Trails, context: float) -> tuple[Floats, float]:
    """Middle (3,) and side of the cube to show: what moves, and what is around it.

    Some points may be lost in the distance: a fifth at either end does not count.

    Args:
        path: (K + 1, G, G, 3) metres.
        trails: of the same points.
        context: most that the cube grows to hold the surroundings, as a factor.
    """
    shown = trails.steps > 0
    movers = trails.moving & shown
    focus = path[:, movers if movers.any() else shown].reshape(-1, 3)
    if not len(focus):
        return np.zeros(3, np.float32), 1.0
    low, high = np.percentile(focus, [20, 80], axis=0)
    around = float(np.ptp(np.percentile(path[0][shown], [20, 80], axis=0), axis=0).max())
    span = max(float((high - low).max()) * 2.4, 1e-6)
    return np.asarray((low + high) / 2, np.float32), max(span, min(around, context * span))


def _path_m(row: dict[str, Any]) -> Floats:
    origin_m = row["flow_origin_m"][None]
    return np.concatenate([origin_m, origin_m + row["flow_displacement_m"]])


def _scale_bar(row: dict[str, Any], span: float) -> tuple[float, str]:
    """Length of the scale's bar as a share of the view, and its words."""
    if row["depth_scale"] == "relative":
        share = round_number(span / row["median_depth_m"] / 8)
        return share * row["median_depth_m"] / span, f"{100 * share:.3g} % of the depth"
    length_m = round_number(span / 8)
    return length_m / span, metres(length_m)


def _view(
    across: Floats,
    down: Floats,
    trails: Trails,
    axes: tuple[str, str],
    bar: tuple[float, str],
    side_px: int,
) -> str:
    """One view of (K + 1, G, G) positions in [0, 1]; what lies outside is left out."""
    at = np.stack([across, down], -1) * _SIDE
    inside = ((at >= 0) & (at <= _SIDE)).all((0, 3)) & (trails.steps > 0)
    rests = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in at[0][inside & ~trails.moving])
    levels = np.linspace(-trails.limit, trails.limit, _LEVELS)
    level = np.abs(trails.values[..., None] - levels).argmin(-1)
    lines: list[list[str]] = [[] for _ in range(_LEVELS)]
    ends: list[list[str]] = [[] for _ in range(_LEVELS)]
    for r, c in np.argwhere(inside & trails.moving):
        steps = trails.steps[r, c]
        for k in range(steps):
            (x, y), (u, v) = at[k, r, c], at[k + 1, r, c]
            lines[level[k, r, c]].append(f"M{x:.0f} {y:.0f}L{u:.0f} {v:.0f}")
        u, v = at[steps, r, c]
        ends[level[steps - 1, r, c]].append(f"M{u:.0f} {v:.0f}h0")
    hues = _hex(_legend_colours(levels, trails))
    paths = [f"<path class=rest d='{rests}'/>"]
    for width, marks in ((9, lines), (24, ends)):
        paths += [
            f"<path d='{''.join(mark)}' stroke='{hue}' stroke-width={width} />"
            for mark, hue in zip(marks, hues, strict=True)
            if mark
        ]
    length, words = bar[0] * _SIDE, bar[1]
    return (
        f"<svg class=view viewBox='0 0 {_SIDE} {_SIDE}' width={side_px} height={side_px}>"
        f"{''.join(paths)}"
        f"<path class=axis d='M30 {_SIDE - 30}h{length:.0f}'/>"
        f"<text x=30 y={_SIDE - 60}>{words}</text>"
        f"<text x={_SIDE - 20} y={_SIDE - 26} text-anchor=end>{axes[0]} →</text>"
        f"<text x=20 y=84>↑ {axes[1]}</text></svg>"
    )


def _legend_colours(values: np.ndarray, trails: Trails) -> np.ndarray:
    from dynaflip.platform.triplets.report.trails import colours

    return colours(values, trails.limit, signed=True)


def _image_colours(row: dict[str, Any], shown: np.ndarray) -> list[str]:
    """Colour of frame t under each of the shown points."""
    image = decode_image(row["frame_t"], min(row["width_px"], row["height_px"]))
    x, y = row["origin_px"][shown].astype(int).T
    smooth = cv2.blur(image, (3, 3))
    rgb = smooth[np.clip(y, 0, image.shape[0] - 1), np.clip(x, 0, image.shape[1] - 1)]
    return [str(one) for one in _hex(rgb)]


def _hex(rgb: np.ndarray) -> Any:
    """(…, 3) uint8 RGB as nested lists of CSS colours."""
    if rgb.ndim > 1:
        return [_hex(part) for part in rgb]
    return "#" + bytes(rgb.tolist()).hex()
