"""Small synthetic videos: a textured square that moves over still ground."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 that a tracker can hold on to."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def moving_square(
    frames: int = 40, height: int = 120, width: int = 160, step_px: float = 1.0, seed: int = 1
) -> np.ndarray:
    """(N, H, W, 3): a textured square of 48 px goes right over still ground, textured by seed."""
    ground, square = textured(height, width, seed), textured(48, 48, 2)
    out = np.repeat(ground[None], frames, axis=0)
    for n in range(frames):
        x = 20 + round(n * step_px)
        out[n, 36:84, x : x + 48] = square
    return out


def write_video(
    path: Path, frames: np.ndarray, fps: int = 30, options: dict[str, str] | None = None
) -> Path:
    """Write (N, H, W, 3) uint8 as H.264 (B-frames included)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": "16", "bf": "3", "g": "24", **(options or {})}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_videos(folder: Path, count: int = 3) -> None:
    """Write a folder of short videos with captions.csv, as a user has them."""
    lines = ["file,caption"]
    for number in range(count):
        frames = moving_square(step_px=0.8 + 0.1 * number, seed=number)
        write_video(folder / f"clip{number}.mp4", frames)
        lines.append(f"clip{number}.mp4,push the square {number % 2}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
