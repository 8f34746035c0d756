"""Trackers of whole windows, such as learned ones: made once a process, their tracks checked.

No learned tracker comes with this package. A user's own is ``torchscript:FILE``, or a class with
the interface of :class:`dynaflip.platform.triplets.flow.Tracker`, or in 3D of
:class:`dynaflip.platform.triplets.flow.tracker_3d.Tracker3D`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import ClipRejected, Floats, Frames
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.flow import TRACKERS_3D, tracker_point
from dynaflip.platform.triplets.flow.tracker_3d import WindowTracks3D, check_scale
from dynaflip.platform.triplets.flow.tracking import PairTracker
from dynaflip.platform.triplets.user_models import asked
from dynaflip.plugins import split_argument

# Tracks that miss their own point in the first frame: by how much (of the longer side, and at
# least), and how many.
_MISS_SHARE, _MISS_PX, _MOST_MISSES = 0.015, 3.0, 0.1
_LIKELY = 0.5  # probability from which a point counts as visible


def tracks_windows(name: str) -> bool:
    """True where ``track.tracker`` names a tracker of whole windows, not of pairs of images."""
    tracker = _resolve(name)
    return not (isinstance(tracker, type) and issubclass(tracker, PairTracker))


def tracks_in_3d(name: str) -> bool:
    """True where ``track.tracker`` names a 3D tracker."""
    return tracker_point(name) is TRACKERS_3D or getattr(_resolve(name), "dimensions", 2) == 3


def flow_in_3d(config: PreprocessConfig) -> bool:
    """True where flow comes from a 3D tracker, which finds depth and cameras itself."""
    return config.flow_source == "tracked" and tracks_in_3d(config.track.tracker)


def _resolve(name: str) -> Any:
    return tracker_point(name).resolve(split_argument(name)[0], "track.tracker")


@lru_cache(maxsize=1)
def load_tracker(name: str) -> Any:
    """The tracker of whole windows that ``track.tracker`` names; made once a process.

    Returns:
        A :class:`~dynaflip.platform.triplets.flow.Tracker`, or a ``Tracker3D`` where
        :func:`tracks_in_3d` says so.

    Raises:
        UserError: no such file, module or class, or it does not load.
    """
    argument = split_argument(name)[1]
    made = _resolve(name)(*[argument] if argument else [])
    if tracks_in_3d(name):
        check_scale(made, name)
    return made


def track_windows(
    frames: Frames, origin_px: Floats, name: str, tracker: Any = None
) -> tuple[Floats, np.ndarray]:
    """Track points with a tracker of whole windows.

    Args:
        frames: (N, H, W, 3) uint8.
        origin_px: (P, 2), pixel centres at +0.5.
        name: as in ``track.tracker``.
        tracker: the one of that name, or its answers; None: it is loaded.

    Returns:
        (N, P, 2) positions and (N, P) 0 where the point is visible, infinite elsewhere.

    Raises:
        ClipRejected: it failed, its tracks have another shape or begin elsewhere, or its
            visibility is a probability.
    """
    ask = tracker or load_tracker(name)
    made = asked("track", name, lambda: ask(frames, origin_px))
    if not isinstance(made, tuple) or len(made) != 2:
        hint = ": a 3D tracker says dimensions = 3" if isinstance(made, WindowTracks3D) else ""
        given = type(made).__name__
        raise ClipRejected("track", f"{name} gave a {given}, not (tracks, visibility){hint}")
    # Asked again: a tensor on a GPU, or with gradients, is no array of NumPy's.
    tracks_px, visible = asked(
        "track", name, lambda: (np.asarray(made[0], np.float32), np.asarray(made[1]))
    )
    wanted = (len(frames), len(origin_px))
    if tracks_px.shape != (*wanted, 2) or visible.shape != wanted:
        raise ClipRejected(
            "track",
            f"{name} gave tracks {tracks_px.shape} and visibility {visible.shape} for "
            f"{wanted[0]} frames and {wanted[1]} points",
        )
    if visible.dtype != bool and not np.isin(visible, (0, 1)).all():
        raise ClipRejected(
            "track",
            f"{name} gave visibility from {np.nanmin(visible):.3g} to {np.nanmax(visible):.3g}, "
            f"not bool: compare a probability with a threshold first",
        )
    visible = visible.astype(bool)
    height, width = frames.shape[1:3]
    _check_start(tracks_px[0], origin_px, visible[0], max(height, width), name)
    inside = ((tracks_px >= 0) & (tracks_px <= (width, height))).all(-1)
    good = visible & inside & np.isfinite(tracks_px).all(-1)
    return np.where(good[..., None], tracks_px, origin_px), np.where(good, 0.0, np.inf)


def _check_start(
    first_px: Floats, origin_px: Floats, visible: np.ndarray, side_px: int, name: str
) -> None:
    """Refuse tracks of another resolution or order: they do not begin at their points."""
    off_px = np.linalg.norm(first_px - origin_px, axis=-1)[visible]
    miss = off_px > max(_MISS_PX, _MISS_SHARE * side_px)
    if miss.sum() > _MOST_MISSES * len(miss):
        raise ClipRejected(
            "track",
            f"{name}: {miss.mean():.0%} of the visible tracks do not begin at the point asked for, "
            f"and are {np.median(off_px[miss]):.1f} px off in the median of these (are they in "
            f"pixels of an image of another size, or in reverse order?)",
        )


class TorchScriptTracker:
    """A TorchScript module with CoTracker's interface (Karaev et al. 2024).

    ``video`` (1, N, 3, H, W) float32 in 0…255 and ``queries`` (1, P, 3) as frame, x, y give
    ``tracks`` (1, N, P, 2) and visibility (1, N, P), bool or a probability. Pixel centres are at 0
    there.

    Args:
        file: the module, as ``torch.jit.save`` wrote it.
    """

    def __init__(self, file: str) -> None:
        import torch

        self.check(file)
        path = Path(file).expanduser()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(1)  # one CPU a task
        try:
            self.module: Any = torch.jit.load(str(path), map_location=self.device).eval()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"track.tracker: {path} is no TorchScript module ({reason})") from None

    @staticmethod
    def check(file: str) -> None:
        """Raise UserError where there is no such file."""
        if not Path(file).expanduser().is_file():
            raise UserError(f"track.tracker: there is no file {Path(file).expanduser()}")

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
