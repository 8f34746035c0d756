"""Learned point trackers of the user's own, behind the same interface as the built-in ones.

Two forms, because no tracker comes with a package:

* ``torchscript:FILE``: a module in TorchScript with CoTracker's interface (Karaev et al.
  2024): ``video`` (1, N, 3, H, W) float32 in 0…255 and ``queries`` (1, P, 3) as frame, x,
  y give ``tracks`` (1, N, P, 2) and visibility (1, N, P), bool or a probability. Pixel
  centres are at 0 there.
* ``class:MODULE:NAME``: an importable class, made without arguments, whose objects are
  called with ``frames`` (N, H, W, 3) uint8 and ``points_px`` (P, 2), pixel centres at
  +0.5, and give ``tracks_px`` (N, P, 2) and ``visible`` (N, P) bool. NumPy in and out.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected, Floats, Frames

_LIKELY = 0.5  # probability from which a point counts as visible


class LearnedTracker(Protocol):
    """Follows points through all frames of a window at once."""

    def __call__(self, frames: Frames, points_px: Floats) -> tuple[Floats, np.ndarray]:
        """(N, H, W, 3) uint8 and (P, 2) to (N, P, 2) pixels and (N, P) bool."""


def is_learned(name: str) -> bool:
    """Whether ``track.tracker`` names a learned tracker."""
    return name.startswith(("torchscript:", "class:"))


@lru_cache(maxsize=1)
def load_tracker(name: str) -> LearnedTracker:
    """The tracker that ``track.tracker`` names; loaded once a process, on the GPU if there is one.

    Raises:
        UserError: no such file, module or class, or it does not load.
    """
    kind, _, rest = name.partition(":")
    if kind == "torchscript":
        return _TorchScript(rest)
    module, _, attribute = rest.rpartition(":")
    if not module:
        raise UserError(f"track.tracker: {name} must be class:MODULE:NAME")
    try:
        found: LearnedTracker = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        raise UserError(f"track.tracker: cannot import {module}:{attribute} ({error})") from None
    return found


def track_learned(frames: Frames, origin_px: Floats, name: str) -> tuple[Floats, np.ndarray]:
    """Follow points with a learned tracker.

    Args:
        frames: (N, H, W, 3) uint8.
        origin_px: (P, 2), pixel centres at +0.5.
        name: as in ``track.tracker``.

    Returns:
        (N, P, 2) positions and (N, P) 0 where the tracker trusts them, infinite elsewhere.

    Raises:
        ClipRejected: it gave something else than it should.
    """
    tracks_px, visible = load_tracker(name)(frames, origin_px)
    tracks_px, visible = np.asarray(tracks_px, np.float32), np.asarray(visible, bool)
    wanted = (len(frames), len(origin_px))
    if tracks_px.shape != (*wanted, 2) or visible.shape != wanted:
        raise ClipRejected(
            "track",
            f"{name} gave tracks {tracks_px.shape} and visibility {visible.shape} for "
            f"{wanted[0]} frames and {wanted[1]} points",
        )
    height, width = frames.shape[1:3]
    inside = ((tracks_px >= 0) & (tracks_px <= (width, height))).all(-1)
    good = visible & inside & np.isfinite(tracks_px).all(-1)
    return np.where(good[..., None], tracks_px, origin_px), np.where(good, 0.0, np.inf)


class _TorchScript:
    def __init__(self, file: str) -> None:
        import torch

        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"track.tracker: there is no file {path}")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(1)  # one CPU a task
        try:
            self.module: Any = torch.jit.load(str(path), map_location=self.device).eval()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"track.tracker: {path} is no TorchScript module ({reason})") from None

    def __call__(self, frames: Frames, points_px: Floats) -> tuple[Floats, np.ndarray]:
        import torch

        video = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device)
        video = video.permute(0, 3, 1, 2)[None].float()
        at = torch.from_numpy(points_px.astype(np.float32) - np.float32(0.5)).to(self.device)
        queries = torch.cat([torch.zeros(len(at), 1, device=self.device), at], 1)[None]
        with torch.inference_mode():
            tracks, seen = self.module(video, queries)[:2]
        likely = seen[0].float().reshape(len(frames), len(at)) > _LIKELY
        return tracks[0].float().cpu().numpy() + np.float32(0.5), likely.cpu().numpy()
