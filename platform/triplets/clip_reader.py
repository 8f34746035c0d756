"""Reader of one clip: frames at the tracker's size, depth, cameras and stored images."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import (
    TEMPORARY_STAGES,
    Cameras,
    ClipRejected,
    Doubles,
    Floats,
    Frames,
    Recording,
    UnknownDepthUnit,
)
from dynaflip.platform.triplets.config import WITHOUT_MODEL, PreprocessConfig
from dynaflip.platform.triplets.flow.learned_tracker import flow_in_3d
from dynaflip.platform.triplets.flow.lifting import assumed_intrinsics_px
from dynaflip.platform.triplets.flow.tracker_3d import WindowToTrack
from dynaflip.platform.triplets.flow.tracking import thin_frames
from dynaflip.platform.triplets.models import DepthModel
from dynaflip.platform.triplets.models.depth import align_depth, depth_of_window
from dynaflip.platform.triplets.models.depth_checks import (
    FURTHEST_SCENE_M,
    NEAREST_SCENE_M,
    check_metric,
    check_scale,
)
from dynaflip.platform.triplets.thumbnails import encode_thumbnails, thumbnail_frames
from dynaflip.platform.triplets.windows import Transition

# As they are recorded: 80 MB at 1280 × 480.
_DEPTH_FRAMES_AT_ONCE = 32


class ClipReader:
    """Frames, depth, cameras, captions and stored images of a clip's windows.

    All of it is read when it is made, each frame once; then the recording is let go, so that a
    reader can be pickled and travel from the stage that decodes to the next ones.

    Args:
        recording: of the clip.
        config: settings of the clip's source.
        transitions: windows that will be read.
        times_s: (N,) time of every frame of the recording.
        depth_model: where depth is estimated; may also be set later (:attr:`depth_model`).
        captioned: whether a captioner captions the clip, so that the recording is not asked.

    Raises:
        ClipRejected: a frame, its depth or its caption cannot be read.
    """

    def __init__(
        self,
        recording: Recording,
        config: PreprocessConfig,
        transitions: list[Transition],
        times_s: Doubles,
        depth_model: DepthModel | None = None,
        *,
        captioned: bool = False,
    ) -> None:
        self.config, self.times_s, self.depth_model = config, times_s, depth_model
        self.windows = {t: self._window(t) for t in transitions}
        tracked = sorted({i for window in self.windows.values() for i in window})
        shown = {i for t in transitions for i in (*t.r3m, t.end)}
        self._small = thumbnail_frames(times_s)
        self.indices = sorted({*tracked, *shown, *self._small})
        short_side_px = max(config.track.short_side_px, config.image_px)
        self.frames = recording.read_frames(self.indices, short_side_px)
        self.frame_px = (self.frames.shape[2], self.frames.shape[1])
        self._position = {index: n for n, index in enumerate(self.indices)}
        self._tracked_position = {index: n for n, index in enumerate(tracked)}
        self._tracked_size = reduced_size(self.frame_px, config.track.short_side_px)
        self._jpegs: dict[int, bytes] = {}
        self._depth: Floats | None = None
        if config.depth == "auto":
            self._read_depth(recording, tracked, needed=not flow_in_3d(config))
        self._starts: dict[int, Floats] = {}
        self._starts_problem: ClipRejected | None = None
        if config.depth not in WITHOUT_MODEL:
            self._read_starts(recording, sorted({t.start for t in transitions}))
        self._cameras = recording.cameras(tracked)
        self._state: Doubles | None = None
        if config.flow_source == "simulator":
            self._state = recording.simulator_state(tracked)
        self._captions: dict[Transition, str] = {}
        if not captioned:
            self._captions = {t: recording.caption_at(t.start, t.draw) for t in transitions}

    def _window(self, t: Transition) -> list[int]:
        indices = list(range(t.start, t.end + 1))
        chosen = thin_frames(self.times_s[indices], self.config.track.min_frame_gap_s)
        return [indices[n] for n in chosen]

    def _read_depth(self, recording: Recording, indices: list[int], *, needed: bool) -> None:
        """Read recorded depth; a 3D tracker does without, or with holes in it."""
        missing: list[Doubles] = []
        try:
            depth = self._small_depth(recording, indices, missing)
        except UnknownDepthUnit:
            if needed:
                raise
            return
        if depth is None:
            if not needed:
                return
            raise ClipRejected(
                "depth", "no depth recorded: choose depth=plane or depth=model:FOLDER-OR-HUB-ID"
            )
        if needed:
            self._check_depth(np.concatenate(missing), indices)
        if np.isfinite(depth).any():
            _check_metres(depth)
        self._depth = depth

    def _small_depth(
        self, recording: Recording, indices: list[int], missing: list[Doubles]
    ) -> Floats | None:
        """Recorded depth at the tracker's size: a clip's at full size may be gigabytes.

        ``missing`` takes what :meth:`_check_depth` needs to know of it at full size.
        """
        small: list[Floats] = []
        for begin in range(0, len(indices), _DEPTH_FRAMES_AT_ONCE):
            depth = recording.read_depth_m(indices[begin : begin + _DEPTH_FRAMES_AT_ONCE])
            if depth is None:
                return None
            _check_covers(depth, self.frame_px)
            missing.append(_missing_and_finite(depth))
            small.append(_resize_depth(depth, self._tracked_size))
        return np.concatenate(small)

    def _read_starts(self, recording: Recording, indices: list[int]) -> None:
        """Read the recorded depth of windows' first frames: a model's depth is held against it.

        What is wrong with it is told only where a model's depth turns out to be relative.
        """
        try:
            measured = self._small_depth(recording, indices, [])
            if measured is not None:
                self._starts = dict(zip(indices, measured, strict=True))
        except UnknownDepthUnit:  # as if there were none; the rows say "relative"
            pass
        except ClipRejected as problem:
            if problem.stage in TEMPORARY_STAGES:
                raise  # the next run may well read it
            self._starts_problem = problem

    def _check_depth(self, shares: Doubles, indices: list[int]) -> None:
        """Reject frames without depth; ``shares`` is that of :func:`_missing_and_finite`."""
        missing = shares[:, 0]
        worst = int(missing.argmax())
        if not shares[:, 1].all() or missing[worst] > self.config.lifting.max_invalid_share:
            raise ClipRejected(
                "depth",
                f"{missing[worst]:.0%} of the pixels of frame {indices[worst]} hold no depth "
                f"(NaN or zero)",
            )

    def tracked_frames(self, window: list[int]) -> Frames:
        """(N, H, W, 3) images of a window at the tracker's size."""
        frames = self.frames[[self._position[i] for i in window]]
        return np.stack([_resize(frame, self._tracked_size) for frame in frames])

    def depth_m(self, window: list[int], frames: Frames) -> tuple[Floats | None, str]:
        """(N, H, W) depth of a window at the tracker's size (None for the plane) and its scale."""
        if self.config.depth == "plane":
            return None, "relative"
        if self.depth_model is None:
            return self._recorded_m(window), "metric"
        check_scale(self.depth_model, self.config.depth)
        depth, scale = depth_of_window(self.depth_model, frames)
        self._check_depth(_missing_and_finite(depth), window)
        if scale == "metric":
            check_metric(depth, self._starts.get(window[0]), self.config.depth)
        if scale == "relative" and self.config.align_depth:
            if self._starts_problem is not None:
                raise self._starts_problem
            measured = self._starts.get(window[0])
            aligned = None if measured is None else align_depth(depth, measured)
            if aligned is not None:
                return aligned, "aligned"
        return depth, scale

    def _recorded_m(self, window: list[int]) -> Floats:
        assert self._depth is not None
        return self._depth[[self._tracked_position[i] for i in window]]

    def to_track(
        self, window: list[int], frames: Frames, points_px: Floats
    ) -> tuple[WindowToTrack, Floats | None]:
        """Input of a 3D tracker, and the recorded depth that its tracks are compared with."""
        height, width = frames.shape[1:3]
        cameras = self.cameras(window, width, height)
        recorded = None if self._depth is None else self._recorded_m(window)
        depth_m, scale = recorded, "metric"
        if self.depth_model is not None:
            depth_m, scale = self.depth_m(window, frames)
            start = self._starts.get(window[0])
            recorded = None if start is None else start[None]
        intrinsics_px = None if cameras.assumed else cameras.intrinsics_px
        times_s = self.times_s[window]
        given = WindowToTrack(
            frames, points_px, times_s, depth_m, scale, intrinsics_px, cameras.poses
        )
        return given, recorded

    def jpeg(self, index: int) -> bytes:
        """A stored image, encoded once."""
        if index not in self._jpegs:
            size = reduced_size(self.frame_px, self.config.image_px)
            image = _resize(self.frames[self._position[index]], size)
            quality = [cv2.IMWRITE_JPEG_QUALITY, self.config.jpeg_quality]
            done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
            assert done
            self._jpegs[index] = data.tobytes()
        return self._jpegs[index]

    @functools.cached_property
    def thumbnails(self) -> bytes:
        """Value of the column ``clip_thumbnails``."""
        return encode_thumbnails([self.frames[self._position[i]] for i in self._small])

    def cameras(self, window: list[int], width: int, height: int) -> Cameras:
        """Intrinsics (of a width × height image) and poses of a window."""
        known = self._cameras
        if known is None:
            guess = np.tile(assumed_intrinsics_px(height, width), (len(window), 1))
            return Cameras(guess, (width, height), None, assumed=True)
        _check_same_view(known.frame_px, self.frame_px)
        x, y = width / known.frame_px[0], height / known.frame_px[1]
        at = [self._tracked_position[i] for i in window]
        scaled = known.intrinsics_px[at] * np.array([x, y, x, y])
        poses = None if known.poses is None else known.poses[at]
        return Cameras(scaled, (width, height), poses, known.assumed)

    def simulator_state(self, window: list[int]) -> Doubles | None:
        """(N, Q) state of the simulation at a window's frames, or None: none is recorded."""
        if self._state is None:
            return None
        return self._state[[self._tracked_position[i] for i in window]]

    def caption(self, transition: Transition) -> str:
        """The recording's caption at a window's first frame."""
        return self._captions[transition]


def reduced_size(size_px: tuple[int, int], short_side_px: int) -> tuple[int, int]:
    """(width, height) with the short side at most ``short_side_px``."""
    scale = min(1.0, short_side_px / min(size_px))
    return max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale))


def _resize(image: Frames, size_px: tuple[int, int]) -> Frames:
    if (image.shape[1], image.shape[0]) == size_px:
        return image
    return np.asarray(cv2.resize(image, size_px, interpolation=cv2.INTER_AREA), np.uint8)


def _have_one_shape(a_px: tuple[int, int], b_px: tuple[int, int]) -> bool:
    """True where sizes may be of one view: equal shapes but for rounding to (even) pixels."""
    rounding = sum(1 / side for side in (*a_px, *b_px))
    return bool(abs(np.log(a_px[0] * b_px[1] / (a_px[1] * b_px[0]))) <= rounding)


def _check_same_view(stated_px: tuple[int, int], frame_px: tuple[int, int]) -> None:
    """Intrinsics of an image of another shape are of another view."""
    if min(stated_px) < 1 or not _have_one_shape(stated_px, frame_px):
        raise ClipRejected(
            "depth",
            f"the intrinsics are of an image of {stated_px[0]} x {stated_px[1]} pixels, which is "
            f"of another shape than the video's (read at {frame_px[0]} x {frame_px[1]})",
        )


def _check_covers(depth: Floats, frame_px: tuple[int, int]) -> None:
    """Depth of another shape is of another view, and would be stretched over the image."""
    (width, height), (across, down) = frame_px, (depth.shape[2], depth.shape[1])
    if not _have_one_shape(frame_px, (across, down)):
        raise ClipRejected(
            "depth",
            f"depth of {across} x {down} pixels has another shape than the image "
            f"({width} x {height}), so it is not of the same view",
        )


def _missing_and_finite(depth: Floats) -> Doubles:
    """(N, 2) share of each frame's pixels without depth (NaN), and 1 where one is finite."""
    missing = np.isnan(depth).mean(axis=(1, 2))
    return np.stack([missing, np.isfinite(depth).any(axis=(1, 2))], axis=1)


def _check_metres(depth: Floats) -> None:
    """Recorded depth of no scene that a camera shows is in other units than metres."""
    median_m = float(np.median(depth[np.isfinite(depth)]))
    if not NEAREST_SCENE_M <= median_m <= FURTHEST_SCENE_M:
        raise ClipRejected(
            "depth",
            f"the median of the recorded depth is {median_m:.4g} m: it is in another unit, or no "
            f"depth (floating point is read as metres, integers as millimetres)",
        )


def _resize_depth(depth: Floats, size_px: tuple[int, int]) -> Floats:
    if (depth.shape[2], depth.shape[1]) == size_px:
        return depth
    # Nearest: an average across an edge is a depth that nothing has.
    return np.stack([cv2.resize(d, size_px, interpolation=cv2.INTER_NEAREST_EXACT) for d in depth])
