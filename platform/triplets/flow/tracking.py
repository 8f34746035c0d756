"""2D tracks of grid points: trackers from image to image with a forward-backward check."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Any

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Floats, Frames
from dynaflip.platform.triplets.flow import TRACKERS
from dynaflip.platform.triplets.flow.config import TrackConfig
from dynaflip.platform.triplets.schema import GRID


def grid_px(height_px: int, width_px: int) -> Floats:
    """(G, G, 2) x, y of the centres of a G×G division of the image; row-major.

    The top left corner of the image is (0, 0), the first pixel's centre (0.5, 0.5).
    """
    x = (np.arange(GRID) + 0.5) / GRID * width_px
    y = (np.arange(GRID) + 0.5) / GRID * height_px
    return np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)


def thin_frames(times_s: np.ndarray, min_gap_s: float) -> list[int]:
    """Indices of the first and last frame and of those nearest to an even division between them.

    Its parts are at least ``min_gap_s`` long. As frames are where they are, single gaps may be
    shorter: at 60 fps and 24 ms half of them are of one frame, 16.7 ms.
    """
    if min_gap_s <= 0 or len(times_s) < 3:
        return list(range(len(times_s)))
    steps = max(2, int((times_s[-1] - times_s[0]) / min_gap_s + 1e-6))
    wanted = np.linspace(times_s[0], times_s[-1], steps + 1)
    return sorted({int(np.abs(times_s - t).argmin()) for t in wanted})


def tracker_images(frames: Frames, depth_m: Floats | None) -> list[np.ndarray]:
    """Images for a :class:`PairTracker`: grey, and inverse depth as a second channel if known.

    A robot's arm is one colour: its outline and roundness in depth hold the tracker where the
    image alone lets it slide.

    Args:
        frames: (N, H, W, 3) uint8 RGB.
        depth_m: (N, H, W) or None.

    Returns:
        N images (H, W) or (H, W, 2) uint8.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    if depth_m is None:
        return grey
    near = np.where(np.isfinite(depth_m), 1 / np.where(depth_m > 0, depth_m, np.inf), 0.0)
    low, high = np.percentile(near[0], [1, 99.5])
    level = np.clip((near - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    return [np.dstack(pair) for pair in zip(grey, level, strict=True)]


class PairTracker(ABC):
    """A tracker from one image to the next; a forward-backward check decides what is visible.

    Args:
        config: settings ``track``.
    """

    def __init__(self, config: TrackConfig) -> None:
        self.config = config

    @abstractmethod
    def step(self, before: np.ndarray, after: np.ndarray, at: Floats) -> tuple[Floats, np.ndarray]:
        """(P, 2) points of ``before`` in ``after`` and (P,) whether they were found.

        The centre of the first pixel is at 0 here, as in OpenCV.
        """


class LucasKanade(PairTracker):
    """OpenCV's pyramidal Lucas-Kanade (Bouguet 2001), on all channels at once."""

    def __init__(self, config: TrackConfig) -> None:
        super().__init__(config)
        self.options: dict[str, Any] = {
            "winSize": (config.lk_window_px, config.lk_window_px),
            "maxLevel": config.lk_levels,
            "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.01),
        }

    def step(self, before: np.ndarray, after: np.ndarray, at: Floats) -> tuple[Floats, np.ndarray]:
        """See :class:`PairTracker`."""
        follow: Any = cv2.calcOpticalFlowPyrLK  # its type stub forbids a None that it wants
        there, found, _ = follow(before, after, at[:, None], None, **self.options)
        return there[:, 0], found[:, 0] > 0

    def refine(
        self, before: np.ndarray, after: np.ndarray, at: Floats, near: Floats
    ) -> tuple[Floats, np.ndarray]:
        """As :meth:`step`, from positions (P, 2) in ``after`` that are nearly right."""
        start = np.array(near[:, None], np.float32)  # a copy: OpenCV writes into it
        flags = cv2.OPTFLOW_USE_INITIAL_FLOW
        follow: Any = cv2.calcOpticalFlowPyrLK
        there, found, _ = follow(before, after, at[:, None], start, flags=flags, **self.options)
        return there[:, 0], found[:, 0] > 0


class DenseInverseSearch(PairTracker):
    """OpenCV's DIS optical flow (Kroeger et al. 2016) on grey, read at the points."""

    def __init__(self, config: TrackConfig) -> None:
        super().__init__(config)
        self.flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def step(self, before: np.ndarray, after: np.ndarray, at: Floats) -> tuple[Floats, np.ndarray]:
        """See :class:`PairTracker`."""
        first, second = (
            p if p.ndim == 2 else np.ascontiguousarray(p[..., 0]) for p in (before, after)
        )
        field = self.flow.calc(first, second, np.zeros((*first.shape, 2), np.float32))
        moved = cv2.remap(
            field, at[:, :1], at[:, 1:], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return at + moved.reshape(-1, 2), np.ones(len(at), dtype=bool)


def track_points(
    images: list[np.ndarray], origin_px: Floats, config: TrackConfig
) -> tuple[Floats, np.ndarray]:
    """Track points through every image, from each to the next and back as a check.

    Args:
        images: N, from :func:`tracker_images`; points lie on the first.
        origin_px: (P, 2) x, y, pixel centres at +0.5.
        config: its tracker, a :class:`PairTracker`, and the check's threshold.

    Returns:
        (N, P, 2) positions (the first is ``origin_px``; a lost point stays where it
        was lost) and (N, P) the check's largest miss so far in pixels, infinite from
        where the point is lost.
    """
    cv2.setNumThreads(1)  # one CPU a task
    tracker: PairTracker = TRACKERS.resolve(config.tracker, "track.tracker")(config)
    height, width = images[0].shape[:2]
    half = np.float32(0.5)  # OpenCV has the centre of the first pixel at 0
    at = origin_px.astype(np.float32) - half
    miss_px = np.zeros(len(at), dtype=np.float32)
    tracks, misses = [at], [miss_px]
    for before, after in itertools.pairwise(images):
        at, miss_px = at.copy(), miss_px.copy()
        live = np.flatnonzero(np.isfinite(miss_px))  # only these cost time
        if len(live):
            there, found = tracker.step(before, after, at[live])
            back, found_back = tracker.step(after, before, there)
            off_px = np.maximum(np.linalg.norm(back - at[live], axis=-1), miss_px[live])
            good = found & found_back & (off_px <= config.max_backward_error_px)
            good &= (there >= -half).all(1) & (there <= (width - half, height - half)).all(1)
            at[live[good]] = there[good]
            miss_px[live] = np.where(good, off_px, np.inf)
        tracks.append(at)
        misses.append(miss_px)
    return np.stack(tracks) + half, np.stack(misses)
