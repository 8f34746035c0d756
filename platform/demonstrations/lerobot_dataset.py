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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.platform.demonstrations.lerobot_episode import (
    DEPTH_CODEC,
    DEPTH_PIX_FMT,
    ERROR_BINS_MM,
    RGB_CODEC,
    X265_PARAMS,
    frames_a_second,
    vector_stats,
)
from dynaflip.platform.lerobot.depth_codec import DEPTH_MAX_M, DEPTH_MIN_M, DEPTH_SHIFT_M

CODEBASE_VERSION = "v3.0"
FILES_PER_CHUNK = 1000
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"


@dataclass(frozen=True)
class _Layout:
    """What of a data set follows from its environment."""

    spec: EnvironmentSpec
    has_depth: bool

    @property
    def fps(self) -> int:
        return frames_a_second(self.spec)

    @property
    def rgb_key(self) -> str:
        return f"observation.images.{self.spec.camera}"

    @property
    def depth_key(self) -> str:
        return f"{self.rgb_key}_depth"

    def videos(self) -> dict[str, str]:
        """Feature → its file in an episode's folder."""
        depth = {self.depth_key: "depth.mp4"} if self.has_depth else {}
        return {self.rgb_key: "rgb.mp4", **depth}

    def names(self) -> dict[str, list[str]]:
        """Names of the entries of vector columns; the others have none."""
        return {
            "observation.state": list(self.spec.proprioception_names),
            "action": list(self.spec.action_names),
            f"observation.intrinsics.{self.spec.camera}": ["fx_px", "fy_px", "cx_px", "cy_px"],
            "privileged.object_position_m": ["x", "y", "z"],
            "privileged.goal_position_m": ["x", "y", "z"],
        }


def assemble(folder: Path, episode_folders: list[Path], spec: EnvironmentSpec) -> dict[str, Any]:
    """Make the data set in ``folder`` from episodes of an environment; their videos are copied.

    Returns:
        ``total_episodes``, ``total_frames`` and ``depth_error`` as in ``meta/depth_error.json``
        (None of an environment without depth).
    """
    layout = _Layout(spec, spec.has_depth)
    episodes = [json.loads((path / "episode.json").read_text()) for path in episode_folders]
    captions = list(dict.fromkeys(episode["caption"] for episode in episodes))
    (folder / "meta").mkdir(parents=True)
    tables = _write_frames(folder, episode_folders, episodes, captions)
    for index, path in enumerate(episode_folders):
        for key, name in layout.videos().items():
            target = folder / _VIDEO_PATH.format(video_key=key, **_file(index))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / name, target)
    index_of_task = pd.DataFrame(
        {"task_index": range(len(captions))}, index=pd.Index(captions, name="task")
    )
    index_of_task.to_parquet(folder / "meta" / "tasks.parquet")
    stats = [
        _episode_stats(layout, episode, table)
        for episode, table in zip(episodes, tables, strict=True)
    ]
    _write_episodes(folder, layout, episodes, stats)
    _write_json(folder / "meta" / "stats.json", aggregate_stats(stats))
    error = _depth_error(episodes) if layout.has_depth else None
    if error is not None:
        _write_json(folder / "meta" / "depth_error.json", error)
    info = _info(folder, layout, episodes, tables[0].schema)
    _write_json(folder / "meta" / "info.json", info)
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
        stacked = {
            name: np.stack([np.array(s[key][name]) for s in stats]) for name in stats[0][key]
        }
        shape = (-1,) + (1,) * (stacked["mean"].ndim - 1)
        weight = stacked["count"].reshape(shape) / stacked["count"].sum()
        mean = (weight * stacked["mean"]).sum(0)
        variance = (weight * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(0)
        merged = {
            "min": stacked["min"].min(0),
            "max": stacked["max"].max(0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": stacked["count"].sum(0),
        }
        merged |= {n: (weight * v).sum(0) for n, v in stacked.items() if n.startswith("q")}
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


def _episode_stats(layout: _Layout, episode: dict, table: pa.Table) -> dict[str, dict]:
    stats = dict(episode["stats"])
    images = {layout.rgb_key: stats.pop("rgb")}
    if layout.has_depth:
        images[layout.depth_key] = stats.pop("depth")
    named = {**images, **stats}
    for name in ("episode_index", "index", "task_index"):
        named[name] = vector_stats(table[name].to_numpy())
    return named


def _write_episodes(folder: Path, layout: _Layout, episodes: list[dict], stats: list[dict]) -> None:
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
        for key in layout.videos():
            row |= {f"videos/{key}/{name}": value for name, value in _file(index).items()}
            row[f"videos/{key}/from_timestamp"] = 0.0
            row[f"videos/{key}/to_timestamp"] = length / layout.fps
        for name in ("success", "task_id", "layout_seed", "factor_split", "moving_camera"):
            row[name] = episode[name]
        if "environment" in episode:
            row["environment"] = episode["environment"]
        row["factors"] = json.dumps(episode["factors"], sort_keys=True)
        for key, values in episode_stats.items():
            row |= {f"stats/{key}/{name}": value for name, value in values.items()}
        row["meta/episodes/chunk_index"] = row["meta/episodes/file_index"] = 0
        rows.append(row)
        start += length
    path = folder / _EPISODES_PATH
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def _info(folder: Path, layout: _Layout, episodes: list[dict], schema: pa.Schema) -> dict[str, Any]:
    features: dict[str, Any] = {
        layout.rgb_key: _video_feature(folder, layout.rgb_key, 3, _RGB_SETTINGS)
    }
    if layout.has_depth:
        depth = _video_feature(folder, layout.depth_key, 1, _DEPTH_SETTINGS)
        features[layout.depth_key] = depth
    names = layout.names()
    for field in schema:
        if pa.types.is_fixed_size_list(field.type):
            dtype, length = str(field.type.value_type), field.type.list_size
        else:
            dtype, length = str(field.type), 1
        dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
        features[field.name] = {
            "dtype": dtype,
            "shape": [length],
            "names": names.get(field.name),
        }
    frames = sum(episode["length"] for episode in episodes)
    return {
        "codebase_version": CODEBASE_VERSION,
        "robot_type": layout.spec.robot,
        "fps": layout.fps,
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
