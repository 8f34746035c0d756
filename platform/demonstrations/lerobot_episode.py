"""One episode on disk in LeRobot v3.0's terms: two videos, per-frame columns, statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT
from dynaflip.platform.demonstrations.plan import SPLIT, EpisodePlan
from dynaflip.platform.demonstrations.record import Recording
from dynaflip.platform.lerobot.depth_codec import DEPTH_MAX_M, decode_depth, encode_depth

# A key frame every 8 frames (0.1 s): a reader seeks quickly. No B-frames: time stamps are
# then in order from zero. CRF 12 keeps the texture that a point tracker lives on.
RGB_CODEC = "h264"
RGB_OPTIONS = {"g": "8", "crf": "12", "preset": "veryfast", "bf": "0", "threads": "1"}
DEPTH_CODEC = "hevc"
DEPTH_PIX_FMT = "gray12le"
X265_PARAMS = "lossless=1"
DEPTH_OPTIONS = {
    "g": "8",
    "preset": "ultrafast",
    "bf": "0",
    "x265-params": f"{X265_PARAMS}:bframes=0:pools=1:frame-threads=1:log-level=error",
}
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

# Bins of the histogram of depth errors, millimetres.
ERROR_BINS_MM = np.concatenate([np.linspace(0, 5, 2001), [np.inf]])


def write_episode(
    folder: Path, plan: EpisodePlan, recording: Recording, spec: EnvironmentSpec
) -> None:
    """Write one episode's files: ``rgb.mp4``, ``depth.mp4``, ``frames.parquet``, ``episode.json``.

    Depth (where the environment has it) is read back from its video and compared with what was
    rendered; the errors are in ``episode.json``.
    """
    fps = frames_a_second(spec)
    folder.mkdir(parents=True)
    write_rgb_video(folder / "rgb.mp4", recording.rgb, fps)
    frames = len(recording.rgb)
    columns = {
        **recording.columns,
        "timestamp": (np.arange(frames) / fps).astype(np.float32),
        "frame_index": np.arange(frames),
    }
    pq.write_table(_table(columns), folder / "frames.parquet")
    stats = {name: vector_stats(value) for name, value in columns.items()}
    stats["rgb"] = image_stats(recording.rgb, frames, scale=1 / 255)
    episode: dict[str, Any] = {
        "index": plan.index,
        "task_id": plan.task,
        "caption": plan.caption,
        "layout_seed": plan.layout_seed,
        "factor_split": SPLIT,
        "factors": plan.factors,
        "moving_camera": plan.moving_camera,
        "success": recording.success,
        "length": frames,
        "stats": stats,
    }
    if spec.name != DEFAULT_ENVIRONMENT:
        episode["environment"] = spec.name
    if recording.depth_m is not None:
        stored_m = _store_depth(folder / "depth.mp4", recording.depth_m, fps)
        stats["depth"] = image_stats(stored_m[..., None], frames)
        episode["depth_error"] = depth_errors(recording.depth_m, stored_m)
    (folder / "episode.json").write_text(json.dumps(episode))


def frames_a_second(spec: EnvironmentSpec) -> int:
    """A recording's frame rate: one frame a control step."""
    return round(spec.control_hz)


def _store_depth(path: Path, depth_m: np.ndarray, fps: int) -> np.ndarray:
    """Write (N, H, W) metres as a video; returns what reading it gives, of the same shape."""
    write_depth_video(path, encode_depth(depth_m), fps)
    stored_m = decode_depth(read_depth_codes(path))
    if stored_m.shape != depth_m.shape:
        raise RuntimeError(f"{path} has {len(stored_m)} frames, not {len(depth_m)}")
    return stored_m


def write_rgb_video(path: Path, rgb: np.ndarray, fps: int) -> None:
    """(N, H, W, 3) uint8 to H.264."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(RGB_CODEC, rate=fps, options=RGB_OPTIONS)
        stream.height, stream.width = rgb.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in rgb:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_depth_video(path: Path, codes: np.ndarray, fps: int) -> None:
    """(N, H, W) uint16 codes to lossless 12-bit HEVC."""
    import av

    height, width = codes.shape[1:]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(DEPTH_CODEC, rate=fps, options=DEPTH_OPTIONS)
        stream.height, stream.width = height, width
        stream.pix_fmt = DEPTH_PIX_FMT
        for image in codes:
            frame = av.VideoFrame(width, height, DEPTH_PIX_FMT)
            plane: Any = frame.planes[0]
            rows = np.frombuffer(plane, np.uint16).reshape(height, plane.line_size // 2)
            rows[:, :width] = image
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_depth_codes(path: Path) -> np.ndarray:
    """The codes of a depth video: (N, H, W) uint16."""
    import av

    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format=DEPTH_PIX_FMT) for f in container.decode(video=0)])


def depth_errors(rendered_m: np.ndarray, stored_m: np.ndarray) -> dict[str, Any]:
    """How far stored depth is from rendered depth: histogram over :data:`ERROR_BINS_MM`, max.

    Pixels beyond the codec's range (the sky) are counted as clipped and left out.
    """
    within = rendered_m <= DEPTH_MAX_M
    error_mm = 1000 * np.abs(stored_m[within] - rendered_m[within])
    counts, _ = np.histogram(error_mm, ERROR_BINS_MM)
    return {
        "counts": counts.tolist(),
        "max_mm": float(error_mm.max(initial=0.0)),
        "pixels": int(rendered_m.size),
        "clipped": int(rendered_m.size - within.sum()),
        "nearest_m": float(rendered_m.min()),
        "furthest_m": float(rendered_m[within].max(initial=0.0)),
    }


def vector_stats(values: np.ndarray) -> dict[str, list]:
    """LeRobot's statistics of a per-frame column (N,) or (N, D): each of length 1 or D."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    return _stats(flat, len(values), ())


def image_stats(images: np.ndarray, count: int, scale: float = 1.0) -> dict[str, list]:
    """LeRobot's statistics of images (N, H, W, C) times ``scale``, by channel: (C, 1, 1)."""
    # Every fourth pixel of every eighth frame: statistics for normalising, not data.
    flat = scale * images[::8, ::4, ::4].reshape(-1, images.shape[-1]).astype(np.float64)
    return _stats(flat, count, (1, 1))


def _stats(flat: np.ndarray, count: int, tail: tuple[int, ...]) -> dict[str, list]:
    stats = {
        "min": flat.min(0),
        "max": flat.max(0),
        "mean": flat.mean(0),
        "std": flat.std(0),
    }
    stats |= {name: np.quantile(flat, q, axis=0) for name, q in QUANTILES.items()}
    shaped = {name: value.reshape(-1, *tail).tolist() for name, value in stats.items()}
    return {**shaped, "count": [count]}


def _table(columns: dict[str, np.ndarray]) -> pa.Table:
    arrays: dict[str, pa.Array] = {}
    for name, value in columns.items():
        if value.ndim == 1:
            arrays[name] = pa.array(value)
        else:
            values = pa.array(np.ascontiguousarray(value).ravel())
            arrays[name] = pa.FixedSizeListArray.from_arrays(values, value.shape[1])
    return pa.table(arrays)
