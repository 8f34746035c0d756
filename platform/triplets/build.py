"""One clip to one table of triplets: the stages in order, without Ray."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import cv2
import numpy as np
import pyarrow as pa

from dynaflip.eval.perturbations import belongs_to
from dynaflip.platform.triplets.clips import (
    Cameras,
    Clip,
    ClipRejected,
    Doubles,
    Floats,
    Frames,
    Recording,
    content_hash,
    normalise_caption,
)
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.filters import check_flow, check_images
from dynaflip.platform.triplets.flow.camera_motion import compensated
from dynaflip.platform.triplets.flow.estimate import Flow, flow_of_window, flow_source
from dynaflip.platform.triplets.flow.grid import place_grid
from dynaflip.platform.triplets.flow.lifting import assumed_intrinsics_px
from dynaflip.platform.triplets.flow.rejection import WindowRejected
from dynaflip.platform.triplets.flow.simulator import simulator_flow
from dynaflip.platform.triplets.flow.tracking import thin_frames
from dynaflip.platform.triplets.flow.window import Shot
from dynaflip.platform.triplets.models.captioner import KIND
from dynaflip.platform.triplets.models.depth_scale import align_depth
from dynaflip.platform.triplets.schema import GRID, STEPS, TRIPLET_SCHEMA
from dynaflip.platform.triplets.split import split_of
from dynaflip.platform.triplets.windows import Transition, sample_transitions


class DepthModel(Protocol):
    """(N, H, W, 3) images to (N, H, W) depth; ``scale`` is metric (metres) or relative."""

    scale: str

    def __call__(self, frames: Frames, /) -> Floats:
        """Depth of a window's images."""


# A point moves when it goes further than this share of the median depth (1 cm at 1 m).
MOVING_SHARE_OF_DEPTH = 0.01


def clip_table(
    clip: Clip,
    recording: Recording,
    config: PreprocessConfig,
    depth_models: Mapping[str, DepthModel] = MappingProxyType({}),
    left_out: Counter[str] | None = None,
) -> pa.Table:
    """Make all triplets of a clip.

    Args:
        clip: what to read.
        recording: of that clip.
        config: settings; those of the clip's own source come first.
        depth_models: of all ``depth: model:…`` settings, by these.
        left_out: counts windows that the filters refuse, by reason.

    Returns:
        A table of :data:`TRIPLET_SCHEMA`, at least one row.

    Raises:
        ClipRejected: the clip is rejected; stage and reason say why.
    """
    if clip.problem:
        raise ClipRejected(*clip.problem)
    _refuse_unless_for_pretraining(clip)
    config = replace(
        config,
        depth=clip.depth or config.depth,
        flow_window_s=clip.flow_window_s or config.flow_window_s,
    )
    times_s = recording.times_s()
    transitions = sample_transitions(
        times_s,
        clip.clip_id,
        draws=config.draws_per_clip,
        flow_window_s=config.flow_window_s,
        min_window_s=config.min_window_s,
        seed=config.seed,
    )
    depth_model = depth_models.get(config.depth)
    material = _Material(recording, config, transitions, times_s, depth_model)
    rows, reasons = [], Counter[str]()
    for transition in transitions:
        try:
            rows.append(_row(clip, recording, config, material, transition))
        except WindowRejected as refusal:
            reasons[f"{refusal.stage}: {refusal.reason}"] += 1
    if left_out is not None:
        left_out.update(reasons)
    if not rows:
        most, number = reasons.most_common(1)[0]
        raise ClipRejected("filter", f"no window is left: {most}, {number} of {len(transitions)}")
    unique = {row["triplet_id"]: row for row in rows}
    return _to_table(list(unique.values()))


def _refuse_unless_for_pretraining(clip: Clip) -> None:
    """What is evaluated on must not be learnt from: only looks of split pretrain may pass."""
    values = json.loads(clip.factors)
    if values and not belongs_to(values, "pretrain"):
        found = ", ".join(split for split in ("dev", "test") if belongs_to(values, split))
        raise ClipRejected(
            "perturbation", f"its look is of split {found or 'none'}, not of pretrain"
        )


class _Material:
    """What the windows of a clip are cut from; each frame is decoded once."""

    def __init__(
        self,
        recording: Recording,
        config: PreprocessConfig,
        transitions: list[Transition],
        times_s: Doubles,
        depth_model: DepthModel | None,
    ) -> None:
        self.recording, self.config, self.times_s = recording, config, times_s
        self.windows = {t: self._window(t) for t in transitions}
        tracked = sorted({i for window in self.windows.values() for i in window})
        shown = {i for t in transitions for i in (*t.r3m, t.end)}
        self.indices = sorted({*tracked, *shown})
        short_side_px = max(config.track.short_side_px, config.image_px)
        frames = recording.read_frames(self.indices, short_side_px)
        self.frame_px = (frames.shape[2], frames.shape[1])
        self.place = {index: n for n, index in enumerate(self.indices)}
        self.frames = frames
        self._jpegs: dict[int, bytes] = {}
        self.depth_model = depth_model
        self._depth: Floats | None = None
        self._depth_place: dict[int, int] = {}
        if config.depth == "auto":
            self._read_depth(tracked)
        self._tracked_size = _reduced(self.frame_px, config.track.short_side_px)

    def _window(self, t: Transition) -> list[int]:
        indices = list(range(t.start, t.end + 1))
        kept = thin_frames(self.times_s[indices], self.config.track.min_frame_gap_s)
        return [indices[n] for n in kept]

    def _read_depth(self, indices: list[int]) -> None:
        depth = self.recording.read_depth_m(indices)
        if depth is None:
            raise ClipRejected(
                "depth", "no depth recorded: choose depth=plane or depth=model:FOLDER-OR-HUB-ID"
            )
        _check_covers(depth, self.frame_px)
        self._check_depth(depth, indices)
        self._depth = depth
        self._depth_place = {index: n for n, index in enumerate(indices)}

    def _check_depth(self, depth: Floats, indices: list[int]) -> None:
        missing = np.isnan(depth).mean(axis=(1, 2))
        worst = int(missing.argmax())
        if (
            not np.isfinite(depth).any(axis=(1, 2)).all()
            or missing[worst] > self.config.lift.max_invalid_share
        ):
            raise ClipRejected(
                "depth",
                f"{missing[worst]:.0%} of the pixels of frame {indices[worst]} hold no depth "
                f"(NaN or zero)",
            )

    def tracked_frames(self, window: list[int]) -> Frames:
        """(N, H, W, 3) images of a window at the tracker's size."""
        frames = self.frames[[self.place[i] for i in window]]
        return np.stack([_resize(frame, self._tracked_size) for frame in frames])

    def depth_m(self, window: list[int], frames: Frames) -> tuple[Floats | None, str]:
        """(N, H, W) depth of a window at the tracker's size (None for the plane) and its scale."""
        if self.config.depth == "plane":
            return None, "relative"
        size = (frames.shape[2], frames.shape[1])
        if self.depth_model is None:
            assert self._depth is not None
            found = self._depth[[self._depth_place[i] for i in window]]
            return _resize_depth(found, size), "metric"
        depth = self.depth_model(frames)
        self._check_depth(depth, window)
        if self.depth_model.scale == "relative" and self.config.align_depth:
            measured = self.recording.read_depth_m(window[:1])
            aligned = None
            if measured is not None:
                _check_covers(measured, self.frame_px)
                aligned = align_depth(depth, _resize_depth(measured, size)[0])
            if aligned is not None:
                return aligned, "aligned"
        return depth, self.depth_model.scale

    def jpeg(self, index: int) -> bytes:
        """A stored image, encoded once."""
        if index not in self._jpegs:
            size = _reduced(self.frame_px, self.config.image_px)
            image = _resize(self.frames[self.place[index]], size)
            quality = [cv2.IMWRITE_JPEG_QUALITY, self.config.jpeg_quality]
            done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
            assert done
            self._jpegs[index] = data.tobytes()
        return self._jpegs[index]

    def cameras(self, window: list[int], width: int, height: int) -> Cameras:
        """Intrinsics (of a width × height image) and poses of a window."""
        known = self.recording.cameras(window)
        if known is None:
            guess = np.tile(assumed_intrinsics_px(height, width), (len(window), 1))
            return Cameras(guess, (width, height), None, assumed=True)
        x, y = width / known.frame_px[0], height / known.frame_px[1]
        scaled = known.intrinsics_px * np.array([x, y, x, y])
        return Cameras(scaled, (width, height), known.poses, known.assumed)


def _row(
    clip: Clip,
    recording: Recording,
    config: PreprocessConfig,
    material: _Material,
    transition: Transition,
) -> dict[str, Any]:
    window = material.windows[transition]
    times_s = material.times_s[window]
    frames = material.tracked_frames(window)
    check_images(frames, config.filter)
    height, width = frames.shape[1:3]
    cameras = material.cameras(window, width, height)
    depth_m, depth_scale = material.depth_m(window, frames)
    shot = Shot(frames, depth_m, cameras.intrinsics_px, cameras.poses, depth_scale)
    shot, camera = compensated(shot, config)
    origin_px = place_grid(shot, config)
    if config.flow_source == "simulator":
        state = recording.simulator_state(window)
        size_px = (width, height)
        flow = simulator_flow(clip, times_s, cameras.poses, state, origin_px, size_px)
    else:
        flow = flow_of_window(shot, times_s, origin_px, config)
    median_m = 1.0 if depth_m is None else float(np.median(depth_m[0][np.isfinite(depth_m[0])]))
    moving = np.linalg.norm(flow.displacement_m[-1], axis=-1) > MOVING_SHARE_OF_DEPTH * median_m
    moving_share = float((moving & flow.visible[-1]).mean())
    check_flow(flow, moving_share, config.filter)
    stored_w, stored_h = _reduced(material.frame_px, config.image_px)
    scale = np.array([stored_w / width, stored_h / height], np.float32)
    follower = transition.r3m_next if config.image_pair == "r3m" else transition.end
    caption = _caption(clip, recording, transition)
    group = clip.caption_group or normalise_caption(caption)
    r3m_s = [float(material.times_s[i]) for i in transition.r3m]
    t_s, window_s = float(times_s[0]), float(times_s[-1] - times_s[0])
    return {
        "triplet_id": content_hash(clip.clip_id, repr(t_s), repr(window_s), repr(r3m_s), caption),
        **_identity(clip, config),
        "caption": caption,
        "caption_kind": clip.caption_kind,
        "caption_group": group,
        "task": clip.task or group,
        "frame_t": material.jpeg(transition.start),
        "frame_next": material.jpeg(follower),
        "frames_r3m": [material.jpeg(i) for i in transition.r3m],
        "width_px": stored_w,
        "height_px": stored_h,
        "t_s": t_s,
        "window_s": window_s,
        "frames_r3m_s": r3m_s,
        **_flow_columns(flow, scale),
        "median_depth_m": median_m,
        **_focal_columns(cameras, scale),
        "flow_source": flow_source(config),
        "depth_kind": {"auto": "recorded"}.get(config.depth, config.depth),
        "depth_scale": depth_scale,
        "camera_motion": camera.kind,
        "camera_inlier_share": camera.inlier_share,
        "grid": config.grid,
        "moving_share": moving_share,
    }


def _focal_columns(cameras: Cameras, scale: np.ndarray) -> dict[str, Any]:
    """The focal length in stored pixels, and whether anybody recorded it."""
    return {
        "focal_px": float(cameras.intrinsics_px[0, 0] * scale[0]),
        "focal_kind": "assumed" if cameras.assumed else "recorded",
    }


def _flow_columns(flow: Flow, scale: np.ndarray) -> dict[str, Any]:
    """``scale`` (2,): stored pixels for a pixel of the tracked frames, x and y."""
    return {
        "flow_origin_m": flow.origin_m,
        "flow_displacement_m": flow.displacement_m,
        "flow_visible": flow.visible.astype(np.uint8),
        "origin_px": flow.origin_px * scale,
        "tracks_px": flow.tracks_px * scale,
        "visible_share": float(flow.visible[-1].mean()),
    }


def _caption(clip: Clip, recording: Recording, transition: Transition) -> str:
    """A captioner's one caption of the clip, or what the recording says at that frame."""
    if clip.caption_kind.startswith(KIND):
        return clip.captions[0]
    return recording.caption_at(transition.start, transition.draw)


def _identity(clip: Clip, config: PreprocessConfig) -> dict[str, Any]:
    """The columns that are equal in all triplets of a clip."""
    return {
        "clip_id": clip.clip_id,
        "recording_id": clip.recording_id,
        "source": clip.source,
        "camera": clip.camera,
        "embodiment": clip.embodiment,
        "licence": clip.licence,
        "split": split_of(clip.recording_id, config.heldout_share),
        "factors": clip.factors,
    }


def _reduced(size_px: tuple[int, int], short_side_px: int) -> tuple[int, int]:
    """(width, height) with the short side at most ``short_side_px``."""
    scale = min(1.0, short_side_px / min(size_px))
    return max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale))


def _resize(image: Frames, size_px: tuple[int, int]) -> Frames:
    if (image.shape[1], image.shape[0]) == size_px:
        return image
    return np.asarray(cv2.resize(image, size_px, interpolation=cv2.INTER_AREA), np.uint8)


def _check_covers(depth: Floats, frame_px: tuple[int, int]) -> None:
    """Depth of another shape is of another view, and would be stretched over the image."""
    (width, height), (across, down) = frame_px, (depth.shape[2], depth.shape[1])
    # Either size was rounded to pixels, perhaps to even ones.
    rounding = sum(1 / side for side in (width, height, across, down))
    if abs(np.log(width * down / (height * across))) > rounding:
        raise ClipRejected(
            "depth",
            f"depth of {across} x {down} pixels has another shape than the image "
            f"({width} x {height}), so it is not of the same view",
        )


def _resize_depth(depth: Floats, size_px: tuple[int, int]) -> Floats:
    if (depth.shape[2], depth.shape[1]) == size_px:
        return depth
    # Nearest: an average across an edge is a depth that nothing has.
    return np.stack([cv2.resize(d, size_px, interpolation=cv2.INTER_NEAREST_EXACT) for d in depth])


def _to_table(rows: list[dict[str, Any]]) -> pa.Table:
    columns = []
    for field in TRIPLET_SCHEMA:
        values = [row[field.name] for row in rows]
        if isinstance(field.type, pa.FixedShapeTensorType):
            kind = field.type.value_type.to_pandas_dtype()
            array = np.ascontiguousarray(np.stack(values), dtype=kind)
            assert array.shape[1:] == tuple(field.type.shape), (GRID, STEPS, array.shape)
            columns.append(pa.FixedShapeTensorArray.from_numpy_ndarray(array))
        else:
            columns.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(columns, schema=TRIPLET_SCHEMA)
