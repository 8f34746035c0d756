"""Models of one's own for the tests of stages: depth, tracks of whole windows, captions."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class Ramp:
    """Metric depth, of each frame alone; counts the frames that it was given."""

    scale = "metric"
    frames = 0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        Ramp.frames += len(frames)
        rows = np.linspace(1, 2, frames.shape[1], dtype=np.float32)[None, :, None]
        return np.broadcast_to(rows, frames.shape[:3]).copy()


class Loaded(Ramp):
    """The same; notes each time that it is loaded, and by which process it is asked."""

    def __init__(self) -> None:
        self._note("loaded")

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self._note("asked")
        return super().__call__(frames)

    def _note(self, what: str) -> None:
        with Path(os.environ["DYNAFLIP_TEST_MARK"] + ".loaded").open("a") as file:
            file.write(f"{what} {os.getpid()}\n")


class ByWindow(Ramp):
    """Depth that needs the frames of a window together."""

    by_window = True


class Still:
    """A tracker of whole windows that finds every point where it was."""

    def __call__(self, frames: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert len(points) == 400, "points are tracked together"
        return np.repeat(points[None], len(frames), 0), np.ones((len(frames), len(points)), bool)


class Words:
    """A captioner that takes several clips at once."""

    digest = "words"

    def describe_all(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[str]:
        return [f"{prompt} {int(i.mean())}" for i, prompt in zip(images, prompts, strict=True)]


class OneAtATime:
    """A captioner that takes one clip at a time."""

    def describe(self, image: np.ndarray, prompt: str) -> str:
        return prompt


class DiesOnce:
    """Depth of a process that is killed at its first frames."""

    scale = "metric"

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        mark = Path(os.environ["DYNAFLIP_TEST_MARK"])
        with contextlib.suppress(FileExistsError):
            mark.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return Ramp()(frames)


class OutOfMemoryError(RuntimeError):
    """As torch names what a GPU raises."""


class SmallMemory:
    """Depth of eight frames at once at most, by a process that is killed once after it knew."""

    scale = "metric"

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        sizes = Path(os.environ["DYNAFLIP_TEST_MARK"] + ".sizes")
        known = sizes.read_text() if sizes.exists() else ""
        kind = "failed" if len(frames) > 8 else "made"
        if kind == "made" and "made" in known and "died" not in known:
            kind = "died"
        with sizes.open("a") as file:
            file.write(f"{kind} {len(frames)}\n")
        if kind == "failed":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate\n20 GiB")
        if kind == "died":
            os.kill(os.getpid(), signal.SIGKILL)
        return Ramp()(frames)
