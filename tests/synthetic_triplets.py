"""A small synthetic triplet folder, so that training is tested without a simulator."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.platform.triplets.schema import (
    GRID,
    REJECTED_SCHEMA,
    SCHEMA_VERSION,
    STEPS,
    TRIPLET_SCHEMA,
)
from dynaflip.platform.triplets.thumbnails import encode_thumbnails

TASKS = {"open": ["open the drawer", "pull the drawer open"], "press": ["press the button"]}


def write_triplets(
    folder: Path,
    clips: int = 12,
    per_clip: int = 4,
    px: int = 32,
    sources: tuple[str, ...] = ("synthetic",),
    shards: int = 3,
) -> Path:
    """Write ``clips`` clips of ``per_clip`` transitions in shards; a quarter is held out.

    Clips come from the sources in turn, four at a time.

    A bright square moves right or down by its task, and the flow says so.
    """
    rng = np.random.default_rng(0)
    rows = [
        {**row, "source": sources[i // 4 % len(sources)]}
        for i in range(clips)
        for row in clip_rows(rng, i, per_clip, px)
    ]
    (folder / "triplets").mkdir(parents=True)
    for shard in range(shards):
        mine = rows[shard * len(rows) // shards : (shard + 1) * len(rows) // shards]
        path = folder / "triplets" / f"part-{shard:05d}.parquet"
        with pq.ParquetWriter(path, TRIPLET_SCHEMA) as writer:
            for _, clip in itertools.groupby(mine, key=lambda row: row["clip_id"]):
                writer.write_table(rows_table(list(clip)))  # a row group a clip
    manifest = {"schema_version": SCHEMA_VERSION, "digest": "synthetic", "counts": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_rejected(folder: Path) -> None:
    """Write the table of rejected clips, with one row."""
    row = dict.fromkeys(REJECTED_SCHEMA.names, "broken") | {"stage": "decode"}
    pq.write_table(pa.Table.from_pylist([row], REJECTED_SCHEMA), folder / "rejected.parquet")


def clip_rows(rng: np.random.Generator, number: int, per_clip: int, px: int) -> list[dict]:
    """The rows of a clip but for their source."""
    task = list(TASKS)[number % len(TASKS)]
    caption = TASKS[task][number // 2 % len(TASKS[task])]
    clip_id = hashlib.sha256(f"clip {number}".encode()).hexdigest()[:16]
    background = rng.integers(0, 120, 3)
    direction = np.array([1, 0] if task == "open" else [0, 1])
    start = rng.integers(2, px // 3, 2)
    frames = [_jpeg(px, background, start + direction * 2 * i) for i in range(per_clip + 1)]
    times_s = [0.5 * i for i in range(per_clip + 1)]
    r3m = [min(i * per_clip // 4, per_clip) for i in range(5)]
    thumbnails = encode_thumbnails(
        [cv2.imdecode(np.frombuffer(frames[i], np.uint8), 1) for i in r3m]
    )
    rows = []
    for i in range(per_clip):
        displacement = np.zeros((STEPS, GRID, GRID, 3), np.float32)
        moved = 0.02 * np.arange(1, STEPS + 1)[:, None] * direction
        displacement[:, 5:10, 5:10, :2] = moved[:, None, None, :]
        rows.append(
            {
                "triplet_id": f"{clip_id}-{i}",
                "clip_id": clip_id,
                "recording_id": clip_id,
                "camera": "front",
                "embodiment": "robot",
                "licence": "none",
                "split": "heldout" if number % 4 == 3 else "train",
                "caption": caption,
                "caption_kind": "source",
                "caption_group": task,
                "task": task,
                "frame_t": frames[i],
                "frame_next": frames[i + 1],
                "frames_r3m": [frames[j] for j in r3m],
                "width_px": px,
                "height_px": px,
                "t_s": times_s[i],
                "window_s": 0.5,
                "frames_r3m_s": [times_s[j] for j in r3m],
                "flow_origin_m": np.ones((GRID, GRID, 3), np.float32),
                "flow_displacement_m": displacement,
                "flow_visible": np.ones((STEPS, GRID, GRID), np.uint8),
                "flow_measured": np.ones(STEPS, np.uint8),
                "origin_px": np.zeros((GRID, GRID, 2), np.float32),
                "tracks_px": np.zeros((STEPS, GRID, GRID, 2), np.float32),
                "median_depth_m": 1.0,
                "focal_px": float(px),
                "focal_kind": "recorded",
                "flow_source": "lk",
                "depth_kind": "recorded",
                "depth_scale": "metric",
                "camera_motion": "none",
                "camera_inlier_share": None,
                "grid": "uniform",
                "visible_share": 1.0,
                "moving_share": 0.06,
                "factors": "{}",
                "clip_thumbnails": thumbnails,
            }
        )
    return rows


def _jpeg(px: int, background: np.ndarray, corner: np.ndarray) -> bytes:
    image = np.full((px, px, 3), background, np.uint8)
    x, y = (int(v) for v in corner)
    image[y : y + 8, x : x + 8] = 250
    return cv2.imencode(".jpg", image)[1].tobytes()


def rows_table(rows: list[dict]) -> pa.Table:
    """Rows as a table of the triplets' schema."""
    columns = []
    for field in TRIPLET_SCHEMA:
        values = [row[field.name] for row in rows]
        if isinstance(field.type, pa.FixedShapeTensorType):
            stacked = np.stack(values)
            columns.append(pa.FixedShapeTensorArray.from_numpy_ndarray(stacked))
        else:
            columns.append(pa.array(values, field.type))
    return pa.table(columns, schema=TRIPLET_SCHEMA)
