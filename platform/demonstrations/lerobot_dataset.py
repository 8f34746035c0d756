"""Recorded episodes put together into a LeRobot v3.0 data set.

Written so that LeRobot 0.6 itself reads it: its keys, dtypes, statistics and
depth feature. Each episode has a video file of its own; the per-frame columns of
all episodes are in one Parquet file, a row group each. Beside LeRobot's own
columns, ``meta/episodes`` has ``success``, ``task_id``, ``layout_seed``,
``factor_split``, ``factors`` (JSON) and ``moving_camera``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.platform.demonstrations.lerobot_episode import (
    DEPTH_CODEC,
    DEPTH_PIX_FMT,
    ERROR_BINS_MM,
    RGB_CODEC,
    X265_PARAMS,
)
from dynaflip.platform.lerobot.depth_codec import DEPTH_MAX_M, DEPTH_MIN_M, DEPTH_SHIFT_M

CODEBASE_VERSION = "v3.0"
CAMERA = "corner4"
RGB_KEY = f"observation.images.{CAMERA}"
DEPTH_KEY = f"observation.images.{CAMERA}_depth"
FILES_PER_CHUNK = 1000
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"

# Names of the entries of each vector column; None where they have none.
_NAMES: dict[str, list[str] | None] = {
    "observation.state": ["hand_x_m", "hand_y_m", "hand_z_m", "gripper"],
    "action": ["velocity_x", "velocity_y", "velocity_z", "gripper_effort"],
    f"observation.intrinsics.{CAMERA}": ["fx_px", "fy_px", "cx_px", "cy_px"],
    "privileged.object_position_m": ["x", "y", "z"],
    "privileged.goal_position_m": ["x", "y", "z"],
}


def assemble(folder: Path, episode_folders: list[Path], *, fps: int) -> dict[str, Any]:
    """Make the data set in ``folder`` from episodes whose videos are copied there.

    Returns:
        ``total_episodes``, ``total_frames`` and the depth error as in
        ``meta/depth_error.json``.
    """
    episodes = [json.loads((path / "episode.json").read_text()) for path in episode_folders]
    captions = list(dict.fromkeys(episode["caption"] for episode in episodes))
    (folder / "meta").mkdir(parents=True)
    tables = _write_frames(folder, episode_folders, episodes, captions)
    for index, path in enumerate(episode_folders):
        for key, name in ((RGB_KEY, "rgb.mp4"), (DEPTH_KEY, "depth.mp4")):
            target = folder / _VIDEO_PATH.format(video_key=key, **_file(index))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, target)
    index_of_task = pd.DataFrame(
        {"task_index": range(len(captions))}, index=pd.Index(captions, name="task")
    )
    index_of_task.to_parquet(folder / "meta" / "tasks.parquet")
    stats = [
        _episode_stats(episode, table) for episode, table in zip(episodes, tables, strict=True)
    ]
    _write_episodes(folder, episodes, stats, fps)
    _write_json(folder / "meta" / "stats.json", aggregate_stats(stats))
    error = _depth_error(episodes)
    _write_json(folder / "meta" / "depth_error.json", error)
    _write_json(folder / "meta" / "info.json", _info(folder, episodes, tables[0].schema, fps))
    return {
        "total_episodes": len(episodes),
        "total_frames": sum(episode["length"] for episode in episodes),
        "depth_error": error,
    }


def aggregate_stats(stats: list[dict[str, dict]]) -> dict[str, dict]:
    """Statistics of a data set from those of its episodes, by LeRobot's rule.

    Means and variances are exact; quantiles are means weighted by frames.
    """
    together: dict[str, dict] = {}
    for key in stats[0]:
        found = {name: np.stack([np.array(s[key][name]) for s in stats]) for name in stats[0][key]}
        shape = (-1,) + (1,) * (found["mean"].ndim - 1)
        weight = found["count"].reshape(shape) / found["count"].sum()
        mean = (weight * found["mean"]).sum(0)
        variance = (weight * (found["std"] ** 2 + (found["mean"] - mean) ** 2)).sum(0)
        merged = {
            "min": found["min"].min(0),
            "max": found["max"].max(0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": found["count"].sum(0),
        }
        merged |= {n: (weight * v).sum(0) for n, v in found.items() if n.startswith("q")}
        together[key] = {name: value.tolist() for name, value in merged.items()}
    return together


def _file(index: int) -> dict[str, int]:
    return {"chunk_index": index // FILES_PER_CHUNK, "file_index": index % FILES_PER_CHUNK}


def _write_frames(
    folder: Path, episode_folders: list[Path], episodes: list[dict], captions: list[str]
) -> list[pa.Table]:
    path = folder / _DATA_PATH.format(chunk_index=0, file_index=0)
    path.parent.mkdir(parents=True)
    tables: list[pa.Table] = []
    start = 0
    for index, (source, episode) in enumerate(zip(episode_folders, episodes, strict=True)):
        table = pq.read_table(source / "frames.parquet")
        length = len(table)
        for name, value in (
            ("episode_index", np.full(length, index)),
            ("index", np.arange(start, start + length)),
            ("task_index", np.full(length, captions.index(episode["caption"]))),
        ):
            table = table.append_column(name, pa.array(value, pa.int64()))
        start += length
        tables.append(table)
    with pq.ParquetWriter(path, tables[0].schema, compression="snappy") as writer:
        for table in tables:
            writer.write_table(table)  # a row group an episode, as LeRobot's own writer does
    return tables


def _episode_stats(episode: dict, table: pa.Table) -> dict[str, dict]:
    from dynaflip.platform.demonstrations.lerobot_episode import vector_stats

    stats = dict(episode["stats"])
    named = {RGB_KEY: stats.pop("rgb"), DEPTH_KEY: stats.pop("depth"), **stats}
    for name in ("episode_index", "index", "task_index"):
        named[name] = vector_stats(table[name].to_numpy())
    return named


def _write_episodes(folder: Path, episodes: list[dict], stats: list[dict], fps: int) -> None:
    rows: list[dict[str, Any]] = []
    start = 0
    for index, (episode, episode_stats) in enumerate(zip(episodes, stats, strict=True)):
        length = episode["length"]
        row: dict[str, Any] = {
            "episode_index": index,
            "tasks": [episode["caption"]],
            "length": length,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": start,
            "dataset_to_index": start + length,
        }
        for key in (RGB_KEY, DEPTH_KEY):
            row |= {f"videos/{key}/{name}": value for name, value in _file(index).items()}
            row[f"videos/{key}/from_timestamp"] = 0.0
            row[f"videos/{key}/to_timestamp"] = length / fps
        for name in ("success", "task_id", "layout_seed", "factor_split", "moving_camera"):
            row[name] = episode[name]
        row["factors"] = json.dumps(episode["factors"], sort_keys=True)
        for key, values in episode_stats.items():
            row |= {f"stats/{key}/{name}": value for name, value in values.items()}
        row["meta/episodes/chunk_index"] = row["meta/episodes/file_index"] = 0
        rows.append(row)
        start += length
    path = folder / _EPISODES_PATH
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _info(folder: Path, episodes: list[dict], schema: pa.Schema, fps: int) -> dict[str, Any]:
    features: dict[str, Any] = {
        RGB_KEY: _video_feature(folder, RGB_KEY, 3, _RGB_SETTINGS),
        DEPTH_KEY: _video_feature(folder, DEPTH_KEY, 1, _DEPTH_SETTINGS),
    }
    for field in schema:
        if pa.types.is_fixed_size_list(field.type):
            dtype, length = str(field.type.value_type), field.type.list_size
        else:
            dtype, length = str(field.type), 1
        dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
        features[field.name] = {
            "dtype": dtype,
            "shape": [length],
            "names": _NAMES.get(field.name),
        }
    frames = sum(episode["length"] for episode in episodes)
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": "sawyer",
        "fps": fps,
        "total_episodes": len(episodes),
        "total_frames": frames,
        "total_tasks": len({episode["caption"] for episode in episodes}),
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": _DATA_PATH,
        "video_path": _VIDEO_PATH,
        "features": features,
    }


# What LeRobot's encoder settings are called in info.json. No shape is written for codec
# and pixel format, which are read from the stream itself.
_RGB_SETTINGS: dict[str, Any] = {
    "video.g": 8,
    "video.crf": 12,
    "video.preset": "veryfast",
    "video.fast_decode": 0,
    "video.video_backend": "pyav",
    "video.extra_options": {"bf": "0"},
    "is_depth_map": False,
}
_DEPTH_SETTINGS: dict[str, Any] = {
    "video.g": 8,
    "video.crf": 0,
    "video.preset": "ultrafast",
    "video.fast_decode": 0,
    "video.video_backend": "pyav",
    "video.extra_options": {"x265-params": X265_PARAMS},
    "video.depth_min": DEPTH_MIN_M,
    "video.depth_max": DEPTH_MAX_M,
    "video.shift": DEPTH_SHIFT_M,
    "video.use_log": True,
    "is_depth_map": True,
    "depth_unit": "m",
}


def _video_feature(folder: Path, key: str, channels: int, settings: dict) -> dict[str, Any]:
    import av

    with av.open(str(folder / _VIDEO_PATH.format(video_key=key, **_file(0)))) as container:
        stream = container.streams.video[0]
        probed = {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.codec": stream.codec.canonical_name,
            "video.pix_fmt": stream.pix_fmt,
            "video.fps": int(stream.base_rate or 0),
            "video.channels": channels,
            "has_audio": False,
        }
    expected = (RGB_CODEC, "yuv420p") if channels == 3 else (DEPTH_CODEC, DEPTH_PIX_FMT)
    assert (probed["video.codec"], probed["video.pix_fmt"]) == expected, probed
    return {
        "dtype": "video",
        "shape": [probed["video.height"], probed["video.width"], channels],
        "names": ["height", "width", "channels"],
        "info": {**probed, **settings},
    }


def _depth_error(episodes: list[dict]) -> dict[str, Any]:
    errors = [episode["depth_error"] for episode in episodes]
    counts = np.sum([error["counts"] for error in errors], axis=0)
    below = np.cumsum(counts) / max(counts.sum(), 1)
    pixels = sum(error["pixels"] for error in errors)
    return {
        "what": "stored (12-bit log codes, lossless HEVC, read back) against rendered depth",
        "median_mm": float(ERROR_BINS_MM[1 + np.searchsorted(below, 0.5)]),
        "p99_mm": float(ERROR_BINS_MM[1 + np.searchsorted(below, 0.99)]),
        "max_mm": max(error["max_mm"] for error in errors),
        "nearest_m": min(error["nearest_m"] for error in errors),
        "furthest_m": max(error["furthest_m"] for error in errors),
        "clipped_share": sum(error["clipped"] for error in errors) / pixels,
        "depth_min_m": DEPTH_MIN_M,
        "depth_max_m": DEPTH_MAX_M,
        "shift_m": DEPTH_SHIFT_M,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))
