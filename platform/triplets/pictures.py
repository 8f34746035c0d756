"""Flow overlays: the tracks of a triplet drawn over its frame t."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq

from dynaflip.platform.triplets.clips import Frames

_COLUMNS = [
    "clip_id",
    "caption",
    "frame_t",
    "origin_px",
    "tracks_px",
    "flow_visible",
    "flow_displacement_m",
    "median_depth_m",
    "width_px",
    "height_px",
    "moving_share",
]
# Drawn brighter: 3D motion beyond this share of the median depth.
_MOVING = 0.01


def draw_tracks(row: dict[str, Any], short_side_px: int = 320) -> Frames:
    """Draw a triplet's tracks over frame t, lost points in grey, colour from t to the end.

    Args:
        row: columns of a triplet; tensors as arrays of the schema's shapes.
        short_side_px: size of the result.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    encoded = np.frombuffer(row["frame_t"], dtype=np.uint8)
    stored = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert stored is not None, "frame_t is no JPEG"
    picture: Any = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB)
    scale = short_side_px / min(picture.shape[:2])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    picture = (picture * 0.75).astype(np.uint8)
    path = np.concatenate([row["origin_px"][None], row["tracks_px"]]) * scale
    visible = row["flow_visible"].astype(bool)
    far = np.linalg.norm(row["flow_displacement_m"], axis=-1) > _MOVING * row["median_depth_m"]
    for r, c in np.ndindex(*path.shape[1:3]):
        steps = int(visible[:, r, c].sum())
        moving = bool((far[:, r, c] & visible[:, r, c]).any())
        start = _point(path[0, r, c])
        if steps == 0:
            cv2.circle(picture, start, 1, (90, 90, 90), -1)
            continue
        for k in range(steps):
            share = k / max(1, len(path) - 2)
            colour = (int(255 * share), 255 - int(160 * share), 60) if moving else (90, 140, 255)
            cv2.line(
                picture, _point(path[k, r, c]), _point(path[k + 1, r, c]), colour, 1, cv2.LINE_AA
            )
        cv2.circle(picture, start, 1, (255, 255, 255) if moving else (90, 140, 255), -1)
    return picture


def sheet(pictures: list[Frames], captions: list[str], columns: int = 4) -> Frames:
    """Pictures in rows with captions below, on dark ground."""
    height = max(p.shape[0] for p in pictures) + 22
    width = max(p.shape[1] for p in pictures) + 6
    rows = -(-len(pictures) // columns)
    out = np.full((rows * height, min(columns, len(pictures)) * width, 3), 24, dtype=np.uint8)
    for n, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        y, x = n // columns * height, n % columns * width
        out[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        text = caption[: max(8, picture.shape[1] // 7)]
        place = (x + 2, y + picture.shape[0] + 15)
        cv2.putText(out, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (230,) * 3, 1, cv2.LINE_AA)
    return out


def read_examples(folder: Path, count: int) -> list[dict[str, Any]]:
    """The triplet with most motion of each of the first clips of a triplet folder."""
    best: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "triplets").glob("*.parquet")):
        table = pq.read_table(path, columns=_COLUMNS)
        for n, (clip, moving) in enumerate(
            zip(table["clip_id"].to_pylist(), table["moving_share"].to_pylist(), strict=True)
        ):
            if clip not in best or moving > best[clip]["moving_share"]:
                best[clip] = _plain_row(table, n)
        if len(best) >= 3 * count:
            break
    return sorted(best.values(), key=lambda row: -row["moving_share"])[:count]


def write_examples(folder: Path, count: int) -> Path | None:
    """Write ``pictures/examples.png`` into a triplet folder, or nothing if ``count`` is 0."""
    rows = read_examples(folder, count) if count else []
    if not rows:
        return None
    out = sheet([draw_tracks(row) for row in rows], [row["caption"] for row in rows])
    path = folder / "pictures" / "examples.png"
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(out, cv2.COLOR_RGB2BGR))
    return path


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
