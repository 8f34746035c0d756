"""Answers of models, found by the content of what was asked: they stand for the models.

A model's stage answers all questions of a clip; the stage that makes triplets asks the same
questions again, on another machine perhaps, and is given the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.platform.triplets.clips import ClipRejected, Floats, Frames
from dynaflip.platform.triplets.flow.tracker_3d import WindowToTrack


def content_key(*arrays: np.ndarray) -> bytes:
    """Digest of arrays: shapes, types and values."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


@dataclass
class KnownDepth:
    """A depth model's answers.

    Args:
        scale: of the model.
        by_window: whether a question is a window, and not a frame.
        answers: :func:`content_key` of a frame (H, W, 3) → (H, W), or of a window's frames
            (N, H, W, 3) → (N, H, W); or why there is none.
    """

    scale: str
    by_window: bool
    answers: Mapping[bytes, Floats | ClipRejected]

    def __call__(self, frames: Frames) -> Floats:
        """As the model's: (N, H, W)."""
        if self.by_window:
            return self._answer(frames)
        return np.stack([self._answer(frame) for frame in frames])

    def _answer(self, asked: Frames) -> Floats:
        answer = self.answers[content_key(asked)]
        if isinstance(answer, ClipRejected):
            raise answer
        return answer


@dataclass(frozen=True)
class KnownTracks:
    """The answers of a tracker of whole windows, in 2D or 3D.

    Args:
        dimensions: 2 or 3.
        scale: of a 3D tracker.
        answers: :func:`content_key` of a window's frames and points → its tracks, or why there are
            none.
    """

    dimensions: int
    scale: str
    answers: Mapping[bytes, Any]

    def __call__(self, asked: Frames | WindowToTrack, points_px: Floats | None = None) -> Any:
        """As the tracker's."""
        if isinstance(asked, WindowToTrack):
            key = content_key(asked.frames, asked.points_px)
        else:
            assert points_px is not None
            key = content_key(asked, points_px)
        answer = self.answers[key]
        if isinstance(answer, ClipRejected):
            raise answer
        return answer
