"""Small recordings, written by the tests themselves."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from synthetic_videos import moving_square, textured, write_video

from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig

__all__ = ["moving_square", "textured", "write_video"]  # for the tests beside this


def settings(folder: Path, **values) -> PreprocessConfig:
    """Quick ones for a folder of videos without depth."""
    return PreprocessConfig(
        source=SourceConfig(path=str(folder)), **{"depth": "plane", "draws_per_clip": 1, **values}
    )


def numbered(frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    """(N, H, W, 3): frame n has the brightness 4 n + 20, to tell frames apart."""
    levels = (np.arange(frames) * 4 + 20).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def write_late_video(path: Path) -> None:
    """55 numbered frames at 30 a second, of which the first is shown at 5 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        for number, frame in enumerate(numbered(55)):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts = 150 + number
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def write_depth_video(path: Path, depth_m: np.ndarray, fps: int = 30) -> dict[str, float | bool]:
    """Write (N, H, W) metres as LeRobot does: linear 12-bit codes, lossless HEVC; its info."""
    info = {"video.depth_min": 0.5, "video.depth_max": 4.5, "video.shift": 0.0}
    codes = np.nan_to_num(np.rint((depth_m - 0.5) / 4.0 * 4095), nan=0).clip(0, 4095)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *depth_m.shape[1:], "gray12le"
        stream.options = {"x265-params": "lossless=1:log-level=none"}
        for image in codes.astype(np.uint16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="gray12le")))
        container.mux(stream.encode())
    return {**info, "video.use_log": False, "video.is_depth_map": True}


def write_lerobot(
    root: Path,
    episodes: list[dict[str, np.ndarray]],
    tasks: list[str],
    depth_m: list[np.ndarray] | None = None,
    extra: dict[str, list] | None = None,
) -> Path:
    """Write a LeRobot v3.0 data set: all episodes of a camera in one video file.

    Args:
        root: folder to make.
        episodes: camera to (N, H, W, 3) uint8, one dictionary an episode.
        tasks: one an episode.
        depth_m: (N, H, W) metres an episode, of the first camera.
        extra: columns of meta/episodes.
    """
    cameras = list(episodes[0])
    lengths = [len(e[cameras[0]]) for e in episodes]
    ends = np.cumsum(lengths)
    features: dict[str, dict] = {}
    columns: dict[str, list] = {
        "episode_index": list(range(len(episodes))),
        "length": lengths,
        "tasks": [[task] for task in tasks],
        "data/chunk_index": [0] * len(episodes),
        "data/file_index": [0] * len(episodes),
        "stats/action/mean": [[float(n), 0.5] for n in range(len(episodes))],
        **(extra or {}),
    }
    keys = [f"observation.images.{camera}" for camera in cameras]
    for key, camera in zip(keys, cameras, strict=True):
        path = root / f"videos/{key}/chunk-000/file-000.mp4"
        write_video(path, np.concatenate([e[camera] for e in episodes]))
        features[key] = {
            "dtype": "video",
            "shape": list(episodes[0][camera].shape[1:]),
            "names": ["height", "width", "channels"],
        }
    if depth_m is not None:
        key = f"{keys[0]}_depth"
        keys.append(key)
        info = write_depth_video(
            root / f"videos/{key}/chunk-000/file-000.mp4", np.concatenate(depth_m)
        )
        shape = [*depth_m[0].shape[1:], 1]
        features[key] = {"dtype": "video", "shape": shape, "info": info}
    for key in keys:
        columns[f"videos/{key}/chunk_index"] = [0] * len(episodes)
        columns[f"videos/{key}/file_index"] = [0] * len(episodes)
        columns[f"videos/{key}/from_timestamp"] = ((ends - lengths) / 30).tolist()
        columns[f"videos/{key}/to_timestamp"] = (ends / 30).tolist()
    names = sorted(set(tasks))
    frames = {
        "episode_index": np.repeat(np.arange(len(episodes)), lengths),
        "task_index": np.repeat([names.index(task) for task in tasks], lengths),
    }
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table(frames), root / "data/chunk-000/file-000.parquet")
    index = pa.table({"task_index": list(range(len(names))), "__index_level_0__": names})
    pq.write_table(index, root / "meta/tasks.parquet")
    video_path = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    data_path = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    info = {"codebase_version": "v3.0", "fps": 30, "features": features}
    info |= {"video_path": video_path, "data_path": data_path}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root
