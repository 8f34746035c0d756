"""LeRobot v3.0 sets of any number of tiny episodes, written in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EPISODES_A_FILE = 100
FPS, FRAMES = 10, 8
_STATISTICS = ("min", "max", "mean", "std", "q01", "q10", "q50", "q90", "q99")
_WIDTHS = {"action": 7, "observation.state": 8, "timestamp": 1, "index": 1, "episode_index": 1}


def write_set(
    root: Path,
    episodes: int,
    video: Path,
    cameras: int = 1,
    size_px: tuple[int, int] = (96, 128),
    episodes_a_file: int = EPISODES_A_FILE,
) -> None:
    """Write a set, or lengthen one by whole files; each episode has statistics of its own.

    Args:
        root: folder of the set.
        episodes: how many it has then.
        video: a file of as many episodes as each of the set's, which all are copies of it.
        cameras: how many.
        size_px: height and width of the video.
        episodes_a_file: in each of its files.
    """
    keys = [f"observation.images.cam{n}" for n in range(cameras)]
    for number in range(-(-episodes // episodes_a_file)):
        table = root / _path("data", number, "parquet")
        if table.exists():
            continue
        begin = number * episodes_a_file
        indices = np.arange(begin, min(begin + episodes_a_file, episodes))
        for folder in ("data", "meta/episodes"):
            (root / _path(folder, number, "parquet")).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            _rows(indices, number, keys), root / _path("meta/episodes", number, "parquet")
        )
        pq.write_table(_frames(indices), table)
        for key in keys:
            path = root / _path(f"videos/{key}", number, "mp4")
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(video, path)
    tasks = pa.table({"task_index": [0], "task": ["push the square"]})
    pq.write_table(tasks, root / "meta/tasks.parquet")
    feature = {"dtype": "video", "shape": [*size_px, 3], "names": ["height", "width", "channels"]}
    info = {"codebase_version": "v3.0", "fps": FPS, "features": dict.fromkeys(keys, feature)}
    (root / "meta/info.json").write_text(json.dumps(info))


def _path(folder: str, number: int, ending: str) -> str:
    return f"{folder}/chunk-{number // 1000:03d}/file-{number % 1000:03d}.{ending}"


def _rows(indices: np.ndarray, file: int, keys: list[str]) -> pa.Table:
    """Rows of meta/episodes."""
    count, rng = len(indices), np.random.default_rng(int(indices[0]))
    begin_s = (indices - indices[0]) * FRAMES / FPS
    chunk, number = np.full(count, file // 1000), np.full(count, file % 1000)
    columns: dict[str, object] = {
        "episode_index": indices,
        "length": np.full(count, FRAMES),
        "tasks": [["push the square"]] * count,
        "data/chunk_index": chunk,
        "data/file_index": number,
    }
    for key in keys:
        columns |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": number}
        columns |= {f"videos/{key}/from_timestamp": begin_s}
        columns |= {f"videos/{key}/to_timestamp": begin_s + FRAMES / FPS}
    widths = _WIDTHS | dict.fromkeys(keys, 3)
    for name in _STATISTICS:
        for feature, width in widths.items():
            values = pa.array(rng.random(count * width))
            columns[f"stats/{feature}/{name}"] = pa.FixedSizeListArray.from_arrays(values, width)
    return pa.table(columns)


def _frames(indices: np.ndarray) -> pa.Table:
    """Rows of data."""
    count = len(indices)
    return pa.table(
        {
            "episode_index": np.repeat(indices, FRAMES),
            "frame_index": np.tile(np.arange(FRAMES), count),
            "timestamp": np.tile(np.arange(FRAMES) / FPS, count),
            "task_index": np.zeros(count * FRAMES, np.int64),
        }
    )
