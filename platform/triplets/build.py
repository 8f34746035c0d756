"""One clip to one table of triplets: the stages in order, without Ray."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from dynaflip.eval.perturbations import belongs_to
from dynaflip.platform.triplets.clip_reader import ClipReader, reduced_size
from dynaflip.platform.triplets.clips import (
    Clip,
    ClipRejected,
    Floats,
    Frames,
    Recording,
    WindowRejected,
    content_hash,
    normalise_caption,
)
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.filters import check_flow, check_images
from dynaflip.platform.triplets.flow.camera_motion import compensate_camera
from dynaflip.platform.triplets.flow.estimate import Flow, flow_of_window, flow_source
from dynaflip.platform.triplets.flow.flow_of_tracks import TrackedWindow, flow_of_tracks
from dynaflip.platform.triplets.flow.grid import grid_on_first_frame
from dynaflip.platform.triplets.flow.learned_tracker import flow_in_3d, load_tracker
from dynaflip.platform.triplets.flow.lifting import measured_steps
from dynaflip.platform.triplets.flow.simulator import simulator_flow
from dynaflip.platform.triplets.flow.tracker_3d import track_3d
from dynaflip.platform.triplets.flow.tracking import grid_px
from dynaflip.platform.triplets.flow.window import RGBDWindow
from dynaflip.platform.triplets.models import DepthModel
from dynaflip.platform.triplets.models.captioner import is_captioned
from dynaflip.platform.triplets.schema import GRID, STEPS, TRIPLET_SCHEMA
from dynaflip.platform.triplets.split import split_of
from dynaflip.platform.triplets.windows import Transition, sample_transitions

# Rejected windows of a clip: reason → (t, length) of each in seconds, from the clip's beginning.
LeftOut = dict[str, list[tuple[float, float]]]

# A point moves when it goes further than this share of the median depth (1 cm at 1 m).
MOVING_SHARE_OF_DEPTH = 0.01


def clip_table(
    clip: Clip,
    recording: Recording,
    config: PreprocessConfig,
    depth_models: Mapping[str, DepthModel] = MappingProxyType({}),
    left_out: LeftOut | None = None,
) -> pa.Table:
    """Build all triplets of a clip.

    Args:
        clip: what to read.
        recording: of that clip.
        config: settings; those of the clip's own source come first.
        depth_models: of all ``depth: model:…`` settings, by these.
        left_out: takes the rejected windows.

    Returns:
        A table of :data:`TRIPLET_SCHEMA`, at least one row.

    Raises:
        ClipRejected: the clip is rejected; with stage and reason.
    """
    model = depth_models.get(settings_of(clip, config).depth)
    reader = read_clip(clip, recording, config, model)
    return triplets_of(clip, reader, left_out=left_out)


def settings_of(clip: Clip, config: PreprocessConfig) -> PreprocessConfig:
    """The settings of a clip: those of its own source come first."""
    return replace(
        config,
        depth=clip.depth or config.depth,
        flow_window_s=clip.flow_window_s or config.flow_window_s,
    )


def read_clip(
    clip: Clip,
    recording: Recording,
    config: PreprocessConfig,
    depth_model: DepthModel | None = None,
) -> ClipReader:
    """Read all of a clip that its triplets are made of; models have not been asked yet.

    Raises:
        ClipRejected: it cannot be read, or has no window.
    """
    if clip.problem:
        raise ClipRejected(*clip.problem)
    _check_for_pretraining(clip)
    config = settings_of(clip, config)
    times_s = recording.times_s()
    transitions = sample_transitions(
        times_s,
        clip.clip_id,
        draws=config.draws_per_clip,
        segment_s=config.segment_s,
        max_segments=config.max_segments,
        flow_window_s=config.flow_window_s,
        min_window_s=config.min_window_s,
        seed=config.seed,
        image_pair=config.image_pair,
    )
    return ClipReader(
        recording, config, transitions, times_s, depth_model, captioned=is_captioned(clip)
    )


def triplets_of(
    clip: Clip, reader: ClipReader, tracker: Any = None, left_out: LeftOut | None = None
) -> pa.Table:
    """Build the triplets of a clip that has been read.

    Args:
        clip: with its caption.
        reader: of the clip, with its depth model.
        tracker: the tracker of whole windows, or its answers; None: loaded where it is named.
        left_out: takes the rejected windows.

    Raises:
        ClipRejected: no window is left.
    """
    rows = []
    reasons: LeftOut = {} if left_out is None else left_out
    for transition in reader.windows:
        try:
            rows.append(_row(clip, reader, transition, tracker))
        except WindowRejected as rejection:
            t_s = float(reader.times_s[transition.start])
            window_s = float(reader.times_s[transition.end]) - t_s
            reasons.setdefault(f"{rejection.stage}: {rejection.reason}", []).append((t_s, window_s))
    if not rows:
        most, windows = max(reasons.items(), key=lambda item: len(item[1]))
        raise ClipRejected(
            "filter", f"no window is left: {most}, {len(windows)} of {len(reader.windows)}"
        )
    unique = {row["triplet_id"]: row for row in rows}
    return _to_table(list(unique.values()))


def _check_for_pretraining(clip: Clip) -> None:
    """Reject perturbation values of the evaluation splits: they must not be learnt from."""
    values = json.loads(clip.factors)
    if values and not belongs_to(values, "pretrain"):
        splits = ", ".join(split for split in ("dev", "test") if belongs_to(values, split))
        raise ClipRejected(
            "perturbation",
            f"its perturbation values are of split {splits or 'none'}, not of pretrain",
        )


def _row(clip: Clip, reader: ClipReader, transition: Transition, tracker: Any) -> dict[str, Any]:
    config, indices = reader.config, reader.windows[transition]
    times_s = reader.times_s[indices]
    frames = reader.tracked_frames(indices)
    check_images(frames, config.filter)
    height, width = frames.shape[1:3]
    if flow_in_3d(config):
        found = _tracked_in_3d(reader, indices, frames, tracker)
    else:
        found = _tracked(clip, reader, indices, frames, tracker)
    flow, median_m = found.flow, found.median_depth
    moving = np.linalg.norm(flow.displacement_m[-1], axis=-1) > MOVING_SHARE_OF_DEPTH * median_m
    moving_share = float((moving & flow.visible[-1]).mean())
    check_flow(flow, moving_share, config.filter)
    stored_w, stored_h = reduced_size(reader.frame_px, config.image_px)
    scale = np.array([stored_w / width, stored_h / height], np.float32)
    follower = transition.r3m_next if config.image_pair == "r3m" else transition.end
    caption = clip.captions[0] if is_captioned(clip) else reader.caption(transition)
    group = clip.caption_group or normalise_caption(caption)
    r3m_s = [float(reader.times_s[i]) for i in transition.r3m]
    t_s, window_s = float(times_s[0]), float(times_s[-1] - times_s[0])
    return {
        "triplet_id": content_hash(clip.clip_id, repr(t_s), repr(window_s), repr(r3m_s), caption),
        **_identity(clip, config),
        "clip_thumbnails": reader.thumbnails,
        "caption": caption,
        "caption_kind": clip.caption_kind,
        "caption_group": group,
        "task": clip.task or group,
        "frame_t": reader.jpeg(transition.start),
        "frame_next": reader.jpeg(follower),
        "frames_r3m": [reader.jpeg(i) for i in transition.r3m],
        "width_px": stored_w,
        "height_px": stored_h,
        "t_s": t_s,
        "window_s": window_s,
        "frames_r3m_s": r3m_s,
        **_flow_columns(flow, scale),
        "flow_measured": measured_steps(
            times_s, config.flow_window_s, config.lifting.measured_within
        ),
        "median_depth_m": median_m,
        "focal_px": float(found.intrinsics_px[0, 0] * scale[0]),
        "focal_kind": found.focal_kind,
        "flow_source": flow_source(config),
        "depth_kind": _depth_kind(config),
        "depth_scale": found.depth_scale,
        "camera_motion": found.camera.kind,
        "camera_inlier_share": found.camera.inlier_share,
        "grid": config.grid,
        "moving_share": moving_share,
    }


def _tracked(
    clip: Clip, reader: ClipReader, indices: list[int], frames: Frames, tracker: Any
) -> TrackedWindow:
    """Flow of a window from 2D tracks and depth, or from the simulator."""
    height, width = frames.shape[1:3]
    config, times_s = reader.config, reader.times_s[indices]
    cameras = reader.cameras(indices, width, height)
    given = _window_of(reader, indices, frames)
    window, camera = compensate_camera(given, config)
    origin_px = grid_on_first_frame(window, config)
    if config.flow_source == "simulator":
        state = reader.simulator_state(indices)
        size_px = (width, height)
        flow = simulator_flow(clip, times_s, cameras.poses, state, origin_px, size_px)
    else:
        flow = flow_of_window(window, times_s, origin_px, config, tracker)
    first_m = None if given.depth_m is None else given.depth_m[0]
    median_m = 1.0 if first_m is None else float(np.median(first_m[np.isfinite(first_m)]))
    scale, focal_kind = given.depth_scale, "assumed" if cameras.assumed else "recorded"
    return TrackedWindow(flow, camera, median_m, scale, cameras.intrinsics_px, focal_kind)


def _tracked_in_3d(
    reader: ClipReader, indices: list[int], frames: Frames, tracker: Any
) -> TrackedWindow:
    """Flow of a window from a 3D tracker, with what was recorded."""
    config, name = reader.config, reader.config.track.tracker
    origin_px = grid_for_3d(reader, indices, frames)
    given, recorded_m = reader.to_track(indices, frames, origin_px.reshape(-1, 2))
    tracker = tracker or load_tracker(name)
    tracks = track_3d(tracker, name, [given])[0]
    return flow_of_tracks(tracks, given, tracker.scale, recorded_m, origin_px, config)


def grid_for_2d(reader: ClipReader, indices: list[int], frames: Frames) -> Floats:
    """(G, G, 2) the points that a 2D tracker is given, on a window's first frame.

    Raises:
        WindowRejected: the window has no triplet, by its camera.
    """
    height, width = frames.shape[1:3]
    if reader.config.grid == "uniform":
        return grid_px(height, width)
    window, _ = compensate_camera(_window_of(reader, indices, frames), reader.config)
    return grid_on_first_frame(window, reader.config)


def _window_of(reader: ClipReader, indices: list[int], frames: Frames) -> RGBDWindow:
    height, width = frames.shape[1:3]
    cameras = reader.cameras(indices, width, height)
    depth_m, depth_scale = reader.depth_m(indices, frames)
    return RGBDWindow(frames, depth_m, cameras.intrinsics_px, cameras.poses, depth_scale)


def grid_for_3d(reader: ClipReader, indices: list[int], frames: Frames) -> Floats:
    """(G, G, 2) the points that a 3D tracker is given, on a window's first frame."""
    height, width = frames.shape[1:3]
    cameras = reader.cameras(indices, width, height)
    # A motion grid asks where colours change, which needs neither depth nor poses.
    window = RGBDWindow(frames, None, cameras.intrinsics_px, None, "relative")
    return grid_on_first_frame(window, reader.config)


def _depth_kind(config: PreprocessConfig) -> str:
    """Value of the column ``depth_kind``."""
    if not flow_in_3d(config):
        return {"auto": "recorded"}.get(config.depth, config.depth)
    return "tracker" if config.depth == "auto" else f"tracker+{config.depth}"


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
