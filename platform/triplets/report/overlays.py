"""Flow overlays: the tracks of a triplet drawn over its frame t."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.clips import Frames
from dynaflip.platform.triplets.place import Place

_COLUMNS = [
    "clip_id",
    "caption",
    "frame_t",
    "frame_next",
    "origin_px",
    "tracks_px",
    "flow_visible",
    "flow_origin_m",
    "flow_displacement_m",
    "median_depth_m",
    "width_px",
    "height_px",
    "moving_share",
]
# Drawn brighter: 3D motion beyond this share of the median depth.
_MOVING = 0.01


def decode_image(encoded: bytes, short_side_px: int) -> Frames:
    """(H, W, 3) uint8 RGB of a stored JPEG, brought to a short side."""
    stored = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert stored is not None, "no JPEG"
    scale = short_side_px / min(stored.shape[:2])
    size = (round(stored.shape[1] * scale), round(stored.shape[0] * scale))
    sized = cv2.resize(stored, size, interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.cvtColor(sized, cv2.COLOR_BGR2RGB), np.uint8)


def draw_flow_3d(row: dict[str, Any], side_px: int = 320) -> Frames:
    """Draw a triplet's 3D flow from above (left: x, z) and from the side (right: z, y).

    Args:
        row: columns of a triplet; tensors as arrays of the schema's shapes.
        side_px: height of the result and width of each view.

    Returns:
        (side, 2 side, 3) uint8 RGB.
    """
    origin = row["flow_origin_m"][None]
    path = np.concatenate([origin, origin + row["flow_displacement_m"]])
    visible = row["flow_visible"].astype(bool)
    far = np.linalg.norm(row["flow_displacement_m"], axis=-1) > _MOVING * row["median_depth_m"]
    moving = (far & visible).any(0)
    shown = visible[0]
    out: Any = np.full((side_px, 2 * side_px, 3), 24, np.uint8)
    if not shown.any():
        return out
    # What moves fills the view; the rest is context.
    focus = path[:, moving if moving.any() else shown].reshape(-1, 3)
    low, high = np.percentile(focus, [2, 98], axis=0)
    span = max(float((high - low).max()), 1e-6) * 1.3
    centred = (path - (low + high) / 2) / span + 0.5
    views = ((centred[..., 0], 1 - centred[..., 2], 0), (centred[..., 2], centred[..., 1], side_px))
    for across, down, left in views:
        for r, c in np.argwhere(shown):
            steps = int(visible[:, r, c].sum()) if moving[r, c] else 0
            at = [
                (int(across[k, r, c] * side_px), int(down[k, r, c] * side_px))
                for k in range(steps + 1)
            ]
            if not all(0 <= x < side_px and 0 <= y < side_px for x, y in at):
                continue
            for k in range(steps):
                share = k / max(1, len(path) - 2)
                colour = (int(255 * share), 255 - int(160 * share), 60)
                ends = [(x + left, y) for x, y in at[k : k + 2]]
                cv2.line(out, ends[0], ends[1], colour, 1, cv2.LINE_AA)
            dot = (255, 255, 255) if moving[r, c] else (70, 90, 140)
            cv2.circle(out, (at[0][0] + left, at[0][1]), 1, dot, -1)
    cv2.line(out, (side_px, 0), (side_px, side_px), (90, 90, 90), 1)
    return out


def draw_tracks(row: dict[str, Any], short_side_px: int = 320) -> Frames:
    """Draw a triplet's tracks over frame t, lost points in grey, colour from t to the end.

    Args:
        row: columns of a triplet; tensors as arrays of the schema's shapes.
        short_side_px: size of the result.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    image = decode_image(row["frame_t"], short_side_px)
    scale = short_side_px / min(row["width_px"], row["height_px"])
    image = (image * 0.75).astype(np.uint8)
    path = np.concatenate([row["origin_px"][None], row["tracks_px"]]) * scale
    visible = row["flow_visible"].astype(bool)
    far = np.linalg.norm(row["flow_displacement_m"], axis=-1) > _MOVING * row["median_depth_m"]
    for r, c in np.ndindex(*path.shape[1:3]):
        steps = int(visible[:, r, c].sum())
        moving = bool((far[:, r, c] & visible[:, r, c]).any())
        start = _point(path[0, r, c])
        if steps == 0:
            cv2.circle(image, start, 1, (90, 90, 90), -1)
            continue
        for k in range(steps):
            share = k / max(1, len(path) - 2)
            colour = (int(255 * share), 255 - int(160 * share), 60) if moving else (90, 140, 255)
            cv2.line(
                image, _point(path[k, r, c]), _point(path[k + 1, r, c]), colour, 1, cv2.LINE_AA
            )
        cv2.circle(image, start, 1, (255, 255, 255) if moving else (90, 140, 255), -1)
    return image


def sheet(images: list[Frames], captions: list[str], columns: int = 4) -> Frames:
    """Images in rows with captions below, on dark ground."""
    height = max(p.shape[0] for p in images) + 22
    width = max(p.shape[1] for p in images) + 6
    rows = -(-len(images) // columns)
    out = np.full((rows * height, min(columns, len(images)) * width, 3), 24, dtype=np.uint8)
    for n, (image, caption) in enumerate(zip(images, captions, strict=True)):
        y, x = n // columns * height, n % columns * width
        out[y : y + image.shape[0], x : x + image.shape[1]] = image
        text = caption[: max(8, image.shape[1] // 7)]
        at = (x + 2, y + image.shape[0] + 15)
        cv2.putText(out, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (230,) * 3, 1, cv2.LINE_AA)
    return out


def read_examples(files: Sequence[Place], count: int) -> list[dict[str, Any]]:
    """The triplet with most motion of each of the first clips of some Parquet files."""
    best: dict[str, dict[str, Any]] = {}
    for table in _row_groups(files):
        for n, (clip, moving) in enumerate(
            zip(table["clip_id"].to_pylist(), table["moving_share"].to_pylist(), strict=True)
        ):
            if clip not in best or moving > best[clip]["moving_share"]:
                best[clip] = _plain_row(table, n)
        if len(best) >= 3 * count:
            break
    return sorted(best.values(), key=lambda row: -row["moving_share"])[:count]


def _row_groups(files: Sequence[Place]) -> Iterator[pa.Table]:
    for path in files:
        with place.open_parquet(path) as file:
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, columns=_COLUMNS)


def write_examples(files: Sequence[Place], path: Place, count: int) -> None:
    """Write an image of triplets of some Parquet files, or nothing if ``count`` is 0."""
    rows = read_examples(files, count) if count else []
    if not rows:
        return
    out = sheet([draw_tracks(row) for row in rows], [row["caption"] for row in rows])
    _, encoded = cv2.imencode(".png", cv2.cvtColor(out, cv2.COLOR_RGB2BGR))
    place.write(path, encoded.tobytes())


def _plain_row(table: Any, n: int) -> dict[str, Any]:
    """One row with its tensors as arrays."""
    row = {}
    for name in table.column_names:
        column = table[name].slice(n, 1).combine_chunks()
        tensor = hasattr(column, "to_numpy_ndarray")
        row[name] = column.to_numpy_ndarray()[0] if tensor else column[0].as_py()
    return row


def _point(xy: np.ndarray) -> tuple[int, int]:
    return round(float(xy[0]) - 0.5), round(float(xy[1]) - 0.5)
