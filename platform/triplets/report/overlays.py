"""Trails of a triplet's points, drawn over its frame t."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.clips import Floats, Frames
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.report.examples import read_examples
from dynaflip.platform.triplets.report.trails import Trails, trails_of

REST = (150, 190, 255)  # colour of points at rest
LOST = (120, 120, 120)
_HALO = (16, 18, 22)
_SHIFT = 4  # bits of a pixel's fraction in OpenCV's drawing
_WIDTHS = (1.2, 3.2)  # of a trail's begin and end, for a short side of 320 px
_LONGEST = 2.2  # long side in short sides; longer images are drawn smaller


def decode_image(encoded: bytes, short_side_px: int) -> Frames:
    """(H, W, 3) uint8 RGB of a stored JPEG, its short side scaled and its shape kept."""
    stored = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert stored is not None, "no JPEG"
    return scaled(np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8), short_side_px)


def scaled(image: Frames, short_side_px: int) -> Frames:
    """An image at a short side, or smaller where it is very long; its shape is kept."""
    height, width = image.shape[:2]
    scale = min(short_side_px / min(height, width), _LONGEST * short_side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, size, interpolation=way), np.uint8)


def draw_tracks(row: dict[str, Any], short_side_px: int = 320, *, as_seen: bool = False) -> Frames:
    """Draw a triplet's trails over its frame t.

    Points that move in the scene leave a trail that grows wider from t to the end of the window,
    coloured by their change of depth (without depth: by their distance in the image); points at
    rest are pale blue, lost ones grey. Steps that are interpolated are drawn as dots.

    Args:
        row: columns of a triplet; tensors as arrays of the schema's shapes.
        short_side_px: size of the result.
        as_seen: with the camera's motion, as the image shows it.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    trails = trails_of(row)
    image = _pale(decode_image(row["frame_t"], short_side_px))
    scale = image.shape[1] / row["width_px"]
    path = (trails.seen_px if as_seen else trails.removed_px) * scale
    _Pen(image, short_side_px / 320).draw(path, trails)
    return image


def _pale(image: Frames) -> Frames:
    """An image with less colour and contrast, so that trails stand out."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    return (0.36 * image + 0.28 * grey + 22).astype(np.uint8)


class _Pen:
    """Draws on an image; widths and radii are given for a short side of 320 px."""

    def __init__(self, image: Frames, size: float) -> None:
        self.image, self.size = image, size

    def draw(self, path: Floats, trails: Trails) -> None:
        """Draw (K + 1, G, G, 2) paths, those that move above the others."""
        for r, c in np.argwhere(trails.steps == 0):
            self.cross(path[0, r, c])
        for r, c in np.argwhere((trails.steps > 0) & ~trails.moving):
            line = path[: trails.steps[r, c] + 1, r, c]
            if np.linalg.norm(line[-1] - line[0]) > 2 * self.size:
                for k in range(len(line) - 1):
                    self.line(line[k], line[k + 1], REST, 1.0)
            self.dot(line[0], 0.9, REST)
        movers = np.argwhere((trails.steps > 0) & trails.moving)
        colours = trails.colours().tolist()
        for r, c in movers:
            self.trail(path[: trails.steps[r, c] + 1, r, c], trails.measured, [_HALO] * 99, 2.2)
        for r, c in movers:
            line = path[: trails.steps[r, c] + 1, r, c]
            own = [colours[k][r][c] for k in range(len(line) - 1)]
            self.trail(line, trails.measured, own, 0)
            self.dot(line[-1], 2.6, _HALO)
            self.dot(line[-1], 1.9, own[-1])

    def trail(
        self, line: Floats, measured: np.ndarray, colours: Sequence[Any], wider: float
    ) -> None:
        """A line that grows wider; a step that is interpolated is a dot at its end."""
        for k in range(len(line) - 1):
            share = (k + 1) / len(measured)
            width = _WIDTHS[0] + (_WIDTHS[1] - _WIDTHS[0]) * share + wider
            if measured[k]:
                self.line(line[k], line[k + 1], colours[k], width)
            else:
                self.dot(line[k + 1], 0.8 + wider / 2, colours[k])

    def line(self, start: Floats, end: Floats, colour: Any, width: float) -> None:
        """A straight line."""
        wide = max(1, round(width * self.size))
        cv2.line(self.image, _at(start), _at(end), colour, wide, cv2.LINE_AA, _SHIFT)

    def dot(self, at: Floats, radius: float, colour: Any) -> None:
        """A filled circle."""
        radius_px = round(radius * self.size * 2**_SHIFT)
        cv2.circle(self.image, _at(at), radius_px, colour, -1, cv2.LINE_AA, _SHIFT)

    def cross(self, at: Floats) -> None:
        """A small ×."""
        for side in (1, -1):
            arm = np.array([1.6, 1.6 * side], np.float32) * self.size
            self.line(at - arm, at + arm, LOST, 0.8)


def sheet(images: list[Frames], captions: list[str], columns: int = 4) -> Frames:
    """Images in rows with captions below, on dark ground."""
    width = max(p.shape[1] for p in images) + 6
    texts = [_wrapped(caption, max(8, width // 7), lines=2) for caption in captions]
    height = max(p.shape[0] for p in images) + 18 * max(map(len, texts)) + 4
    rows = -(-len(images) // columns)
    out = np.full((rows * height, min(columns, len(images)) * width, 3), 24, dtype=np.uint8)
    for n, (image, lines) in enumerate(zip(images, texts, strict=True)):
        y, x = n // columns * height, n % columns * width
        out[y : y + image.shape[0], x : x + image.shape[1]] = image
        for k, text in enumerate(lines):
            at = (x + 2, y + image.shape[0] + 15 + 18 * k)
            cv2.putText(out, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (230,) * 3, 1, cv2.LINE_AA)
    return out


def _wrapped(caption: str, letters: int, lines: int) -> list[str]:
    """The first lines of a caption; OpenCV writes ASCII alone, so another script is named."""
    if not caption.isascii():
        return ["(caption: see the data card)"]
    found = textwrap.wrap(caption, letters) or [""]
    if len(found) > lines:
        found[lines - 1] = found[lines - 1][: letters - 3] + "..."
    return found[:lines]


def write_examples(files: Sequence[Place], path: Place, count: int) -> None:
    """Write an image of triplets of some Parquet files, or nothing if ``count`` is 0."""
    rows = read_examples(files, count) if count else []
    if not rows:
        return
    out = sheet([draw_tracks(row) for row in rows], [row["caption"] for row in rows])
    _, encoded = cv2.imencode(".png", cv2.cvtColor(out, cv2.COLOR_RGB2BGR))
    place.write(path, encoded.tobytes())


def _at(xy: Floats) -> tuple[int, int]:
    """A point in OpenCV's fractions: its pixels' centres are whole numbers."""
    x, y = np.clip((xy - 0.5) * 2**_SHIFT, -(2**20), 2**20).round().astype(int)
    return int(x), int(y)
