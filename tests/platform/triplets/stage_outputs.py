"""Outputs of every preprocessing stage on small made-up inputs, for test_stage_versions.py.

Inputs come from numpy's generators and are equal on every machine. Outputs are numbers (compared
with a tolerance, because libraries round differently on other processors) or texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rgbd_windows import HEIGHT, INTRINSICS_PX, WIDTH, egg, wall
from scene_3d import SceneRecording, UnknownScale, true_tracks
from scene_3d import depth_m as scene_depth_m
from shaken_videos import shaken_square
from triplet_recordings import moving_square, numbered, textured, write_video

from dynaflip.platform.lerobot.depth_codec import decode_depth_m
from dynaflip.platform.triplets import filters, windows
from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.clips import Cameras, Clip, normalise_caption
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.flow import (
    dragged_points,
    lifting,
    rigid_smoothing,
    static_points,
    surface_tracking,
    tracking,
)
from dynaflip.platform.triplets.flow.camera_motion import compensate_camera, fit_camera
from dynaflip.platform.triplets.flow.config import TrackConfig
from dynaflip.platform.triplets.flow.estimate import flow_of_window
from dynaflip.platform.triplets.flow.flow_of_tracks import flow_of_tracks
from dynaflip.platform.triplets.flow.grid import grid_on_first_frame
from dynaflip.platform.triplets.flow.image_motion import fit_background
from dynaflip.platform.triplets.flow.simulator import simulator_flow
from dynaflip.platform.triplets.flow.tracker_3d import WindowToTrack
from dynaflip.platform.triplets.flow.window import RGBDWindow
from dynaflip.platform.triplets.models.depth import align_depth, depth_of_inverse
from dynaflip.platform.triplets.schema import TRIPLET_SCHEMA
from dynaflip.platform.triplets.sources import video
from dynaflip.platform.triplets.sources.depth_file import read_depth_file_m
from dynaflip.platform.triplets.sources.ego4d import plain_narration
from dynaflip.platform.triplets.sources.formats import open_sources
from dynaflip.platform.triplets.split import split_of

Outputs = dict[str, Any]  # name → array, or list of texts

POINTS_PX = tracking.grid_px(HEIGHT, WIDTH).reshape(-1, 2)
CONFIG = PreprocessConfig()
CLIP = Clip(
    clip_id="clip",
    recording_id="recording",
    source="made up",
    path="clip.mp4",
    camera="top",
    captions=("Push the egg!",),
    caption_group="",
    task="",
    embodiment="robot",
    licence="CC0",
)


def noisy(window: RGBDWindow, step: float = 0.06) -> RGBDWindow:
    """A window with noise of colour and depth, and with steps of 6 % in its depth."""
    rng = np.random.default_rng(2)
    assert window.depth_m is not None
    colours = window.frames + rng.normal(0, 3, window.frames.shape)
    stairs = 1 - step * (np.arange(WIDTH) // 20 % 2)
    depth_m = window.depth_m * stairs * (1 + rng.normal(0, 0.004, window.depth_m.shape))
    frames = colours.round().clip(0, 255).astype(np.uint8)
    return replace(window, frames=frames, depth_m=depth_m.astype(np.float32))


class MadeUpRecording:
    """The egg as a recording of 30 frames a second, with depth and intrinsics."""

    def __init__(self) -> None:
        self.window = egg(24)

    def times_s(self) -> np.ndarray:
        return np.arange(24) / 30

    def read_frames(self, indices: list[int], short_side_px: int) -> np.ndarray:
        return self.window.frames[indices]

    def read_depth_m(self, indices: list[int]) -> np.ndarray:
        assert self.window.depth_m is not None
        return self.window.depth_m[indices]

    def cameras(self, indices: list[int]) -> Cameras:
        return Cameras(self.window.intrinsics_px[indices], (WIDTH, HEIGHT), None, assumed=False)

    def simulator_state(self, indices: list[int]) -> None:
        return None

    def caption_at(self, index: int, draw: int) -> str:
        return CLIP.captions[0]


def _listing(root: Path, **settings: Any) -> list[str]:
    source = SourceConfig(path=str(root), name=root.name, **settings)
    return [
        f"{c.clip_id} {c.recording_id} {c.path} {c.camera} {c.captions} {c.caption_group} {c.task} "
        f"{c.embodiment} {c.licence} {c.start_s} {c.end_s} {c.factors} {c.problem}"
        for c in open_sources(PreprocessConfig(source=source)).list_clips()
    ]


def sources(folder: Path) -> Outputs:
    videos = folder / "videos"
    videos.mkdir()
    for n in range(3):
        (videos / f"clip{n}.mp4").write_bytes(bytes([n]) * 1000)
    rows = "clip0.mp4,Push it.,,one,,\nclip1.mp4,pull it,move,one,0.5,2\nclip1.mp4,turn,,,2,3\n"
    (videos / "captions.csv").write_text(f"file,caption,task,recording,start_s,end_s\n{rows}")
    something = folder / "something"
    (something / "labels").mkdir(parents=True)
    (something / "7.webm").write_bytes(b"webm" * 100)
    label = {"id": "7", "label": "Putting a cup", "template": "Putting [something]"}
    (something / "labels" / "train.json").write_text(json.dumps([label]))
    ego4d = folder / "ego4d"
    ego4d.mkdir()
    (ego4d / "day.mp4").write_bytes(b"day" * 100)
    moments = [{"narration_text": "#C C picks up a cup", "timestamp_sec": 12.3}]
    content = {"videos": {"day": {"narration_pass_1": {"narrations": moments}}}}
    (ego4d / "narration.json").write_text(json.dumps(content))
    return {
        "folder": _listing(videos),
        "something": _listing(something),
        "ego4d": _listing(ego4d),
        "lerobot": _listing(_lerobot(folder / "lerobot")),
    }


def _lerobot(root: Path) -> Path:
    key = "observation.images.top"
    for name in ("meta/episodes/chunk-000", "data/chunk-000", f"videos/{key}/chunk-000"):
        (root / name).mkdir(parents=True)
    (root / f"videos/{key}/chunk-000/file-000.mp4").write_bytes(b"video" * 100)
    feature = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    info = {"codebase_version": "v3.0", "fps": 30, "features": {key: feature}}
    (root / "meta/info.json").write_text(json.dumps(info))
    columns = {
        "episode_index": [0, 1],
        "length": [20, 21],
        "tasks": [["open it"], ["open it", "close it"]],
        "task_id": ["open", "both"],
        "factors": ['{"camera": {"u": 0.1}}', "{}"],
        "stats/action/mean": [[0.0, 0.5], [1.0, 0.5]],
        f"videos/{key}/from_timestamp": [0.0, 20 / 30],
        f"videos/{key}/to_timestamp": [20 / 30, 41 / 30],
    }
    pq.write_table(pa.table(columns), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"index": [0]}), root / "data/chunk-000/file-000.parquet")
    pq.write_table(pa.table({"task_index": [0], "task": ["open it"]}), root / "meta/tasks.parquet")
    return root


def decode(folder: Path) -> Outputs:
    path = write_video(folder / "clip.mp4", numbered(24, 48, 64), options={"qp": "0"})
    timeline = video.read_timeline(path, 0.2, 0.7)
    frames = video.read_frames(path, timeline, [0, 3, 9], 24)
    np.save(folder / "depth.npy", np.arange(4 * 6, dtype=np.uint16).reshape(4, 2, 3) * 100)
    info = {"video.depth_min": 0.25, "video.depth_max": 7.0, "video.shift": 0.0}
    codes = np.arange(0, 4096, 273, dtype=np.uint16).reshape(1, 4, 4)
    return {
        "times_s": timeline.times_s(),
        "shape": frames.shape,
        "brightness": frames.mean((1, 2, 3)),
        "depth_file_m": read_depth_file_m(folder / "depth.npy", [0, 3], 4),
        "depth_log_m": decode_depth_m(codes, info),
        "depth_linear_m": decode_depth_m(codes, {**info, "video.use_log": False}),
        "depth_default_m": decode_depth_m(codes, {}),
    }


def draws(folder: Path) -> Outputs:
    found = windows.sample_transitions(
        np.arange(90) / 30, "clip", draws=3, flow_window_s=0.5, min_window_s=0.1, seed=0
    )
    found += windows.sample_transitions(
        np.arange(500) / 10,
        "long clip",
        draws=1,
        flow_window_s=0.5,
        min_window_s=0.1,
        seed=0,
        segment_s=20.0,
        max_segments=10,
    )
    every = [[t.start, t.end, *t.r3m, t.position, t.draw] for t in found]
    return {"transitions": [" ".join(map(str, one)) for one in every]}


def split(folder: Path) -> Outputs:
    return {"split": [split_of(f"recording {n}", 0.2) for n in range(40)]}


def filter_scores(folder: Path) -> Outputs:
    frames = moving_square(6, step_px=3.0)
    cut = np.concatenate([frames[:3], np.stack([textured(120, 160, 8)] * 3)])
    blurred = cv2.GaussianBlur(frames[0], (0, 0), 3)
    return {
        "cut_score": np.array([filters.cut_score(frames), filters.cut_score(cut)]),
        "sharpness": np.array([filters.sharpness(frames[0]), filters.sharpness(blurred)]),
    }


def grid(folder: Path) -> Outputs:
    window = RGBDWindow(moving_square(6, step_px=2.0), None, np.tile(INTRINSICS_PX, (6, 1)), None)
    return {
        "uniform_px": grid_on_first_frame(window, CONFIG),
        "motion_px": grid_on_first_frame(window, replace(CONFIG, grid="motion")),
    }


def tracks(folder: Path) -> Outputs:
    window = wall()
    out: Outputs = {
        "thinned": np.array(tracking.thin_frames(np.arange(41) / 80, 0.024)),
        "grid_px": tracking.grid_px(100, 200),
    }
    for tracker, depth_m in (("lk", None), ("lk", window.depth_m), ("dis", None)):
        images = tracking.tracker_images(window.frames, depth_m)
        found = tracking.track_points(images, POINTS_PX, TrackConfig(tracker=tracker))
        name = f"{tracker}{'' if depth_m is None else '_depth'}"
        out |= {f"{name}_px": found[0], f"{name}_known": np.isfinite(found[1])}
    return out


def lifted(folder: Path) -> Outputs:
    window = noisy(egg())
    poses = np.tile(np.eye(4), (8, 1, 1))
    poses[:, 0, 3] = 0.01 * np.arange(8)
    tracks_px = POINTS_PX + np.arange(8, dtype=np.float32)[:, None, None] * 0.7
    xyz_m, visible = lifting.lift_tracks(
        tracks_px.reshape(8, 20, 20, 2),
        np.ones((8, 20, 20), bool),
        window.depth_m,
        window.intrinsics_px,
        poses,
        CONFIG.lifting,
    )
    steps_m, steps_visible = lifting.at_steps(xyz_m, visible, np.arange(8) / 30)
    return {
        "xyz_m": xyz_m,
        "visible": visible,
        "steps_m": steps_m,
        "steps_visible": steps_visible,
        "assumed_intrinsics_px": lifting.assumed_intrinsics_px(120, 160),
    }


def static(folder: Path) -> Outputs:
    out: Outputs = {}
    for name, window in (("depth", noisy(wall())), ("colour", replace(wall(), depth_m=None))):
        window = replace(window, poses=None)
        found = static_points.compare_with_static_scene(
            window, POINTS_PX, CONFIG.static_points, CONFIG.lifting.search_px
        )
        out |= {
            f"{name}_static": found.is_static(),
            f"{name}_hidden": found.hidden,
            f"{name}_misfit": found.misfit,
        }
    window = noisy(egg())
    found = static_points.compare_with_static_scene(window, POINTS_PX, CONFIG.static_points, 1)
    tracks_px = POINTS_PX + np.arange(8, dtype=np.float32)[:, None, None] * 0.5
    xyz_m, visible = lifting.lift_tracks(
        tracks_px.reshape(8, 20, 20, 2),
        np.ones((8, 20, 20), bool),
        window.depth_m,
        window.intrinsics_px,
        None,
        CONFIG.lifting,
    )
    after_all = static_points.static_explains_better(
        window, found, xyz_m.reshape(8, -1, 3), tracks_px, CONFIG.static_points, 1
    )
    pinned_m, pinned = static_points.pin_static_points(xyz_m, visible, found, found.is_static())
    return out | {"after_all": after_all, "pinned_m": pinned_m, "pinned_visible": pinned}


def alignment(folder: Path) -> Outputs:
    window = noisy(wall(5, shift_m=0.0), step=0.0)
    assert window.depth_m is not None
    z_m = lifting.sample_depth_m(window.depth_m[0], POINTS_PX, None, 1)
    origin_m = lifting.back_project(POINTS_PX, z_m, INTRINSICS_PX)
    chosen = z_m < 1.8  # on the square
    found = surface_tracking.track_surfaces(
        window,
        POINTS_PX,
        chosen,
        np.repeat(origin_m[None], 5, 0),
        np.zeros((5, 400), bool),
        CONFIG,
        0.0,
    )
    return {
        "known": found.known,
        "xyz_fitted": found.xyz_m[:, found.known],
        "misfit": found.misfit[:, found.known],
        "in_sight": found.in_sight[:, found.known],
    }


def smoothing(folder: Path) -> Outputs:
    rng = np.random.default_rng(0)
    origin_m = lifting.back_project(POINTS_PX.reshape(20, 20, 2), np.ones((20, 20)), INTRINSICS_PX)
    moves = np.zeros((20, 20), bool)
    moves[5:12, 6:15] = True
    moves[0, 0] = moves[18, 18] = True
    moves[8, 8] = False
    displacement_m = 0.05 * moves[..., None] + rng.normal(0, 0.003, (7, 20, 20, 3))
    displacement_m += (rng.random((7, 20, 20, 1)) < 0.2) * rng.normal(0, 0.03, (7, 20, 20, 3))
    config = CONFIG.rigid_smoothing
    moving = np.broadcast_to(moves, (7, 20, 20))
    outvoted = rigid_smoothing.outvoted(origin_m, moves, np.ones_like(moves), config)
    smooth_m = rigid_smoothing.smooth_rigidly(origin_m, displacement_m, moving, config)
    return {"outvoted": outvoted, "smooth_m": smooth_m[:, moves]}


def camera(folder: Path) -> Outputs:
    window = noisy(wall(shift_m=0.06), step=0.0)
    fit = fit_camera(window, CONFIG)
    assert fit is not None
    moved, known = compensate_camera(window, CONFIG)
    assert moved.poses is not None
    shaken = shaken_square(8)
    image = fit_background(shaken.frames, CONFIG.track, CONFIG.camera)
    assert image.background is not None
    moved_px = np.stack([image.background.moved(POINTS_PX, n) for n in range(8)])
    return {
        "image_kind": [image.kind],
        "image_inlier_share": np.array([image.inlier_share]),
        "image_moved_px": moved_px,
        "rotations_fitted": fit.poses[:, :3, :3],
        "shifts_fitted": fit.poses[:, :3, 3],
        "inlier_share": np.array([fit.inlier_share]),
        "kind": [known.kind],
        "compensated_fitted": moved.poses[:, :3, 3],
    }


def dragged(folder: Path) -> Outputs:
    """An egg of one colour over ground that is half plain, and points on both as if they moved."""
    window = noisy(egg(), step=0.0)
    window.frames[:, HEIGHT // 2 :][window.depth_m[:, HEIGHT // 2 :] > 1.9] = (90, 110, 90)
    moves = np.zeros(len(POINTS_PX), bool)
    moves[::3] = True
    found = dragged_points.dragged_along(window, POINTS_PX, moves, 0.0, CONFIG)
    return {
        "dragged": found,
        "corners": dragged_points.corner_strength(window.frames[0], POINTS_PX),
    }


def simulator(folder: Path) -> Outputs:
    recorded = json.loads(Path(__file__).with_name("simulated_episode.json").read_text())
    clip = replace(
        CLIP,
        task=recorded["task"],
        camera="corner4",
        episode_index=0,
        extra=json.dumps({"layout_seed": recorded["layout_seed"]}),
    )
    origin_px = tracking.grid_px(120, 120)
    poses = np.array(recorded["poses"]).reshape(-1, 4, 4)
    qpos = np.array(recorded["qpos"])
    flow = simulator_flow(clip, np.array([0, 0.1, 0.2]), poses, qpos, origin_px, (120, 120))
    return {
        "origin_m": flow.origin_m,
        "displacement_m": flow.displacement_m,
        "visible": flow.visible,
        "tracks_px": flow.tracks_px[flow.visible],
    }


def tracks_in_3d(folder: Path) -> Outputs:
    indices = list(range(11))
    recording = SceneRecording()
    frames, times_s = recording.read_frames(indices, HEIGHT), recording.times_s()[indices]
    origin_px = tracking.grid_px(*frames.shape[1:3])
    window = WindowToTrack(frames, origin_px.reshape(-1, 2), times_s)
    truth, name = true_tracks(window), "class:scene_3d:Truth"
    config = replace(CONFIG, track=TrackConfig(tracker=name))
    smaller = UnknownScale()(window)
    made = {
        "poses_m": flow_of_tracks(truth, window, "metric", None, origin_px, config),
        "camera_fitted": flow_of_tracks(
            replace(truth, poses=None), window, "metric", None, origin_px, config
        ),
        "aligned_m": flow_of_tracks(
            smaller, window, "relative", scene_depth_m(0)[None], origin_px, config
        ),
    }
    return {
        "labels": [f"{m.camera.kind} {m.depth_scale} {m.focal_kind}" for m in made.values()],
        "visible": np.stack([m.flow.visible for m in made.values()]),
        **{name: m.flow.displacement_m[m.flow.visible] for name, m in made.items()},
    }


def depth_models(folder: Path) -> Outputs:
    depth_m = egg(2).depth_m
    assert depth_m is not None
    inverse = 3.0 / depth_m + 0.2
    inverse[:, :20] *= 0.02  # further away than depth is told apart
    rng = np.random.default_rng(0)
    measured = (depth_m[0] * (1 + rng.normal(0, 0.05, depth_m[0].shape))).astype(np.float32)
    measured[::2] = np.nan
    measured[1:40:6] = 0.5  # reflections
    relative = depth_of_inverse(inverse.astype(np.float32))
    aligned = align_depth(relative, measured)
    assert aligned is not None
    return {"relative": relative[:, ::9, ::9], "aligned_m": aligned[:, ::9, ::9]}


def captions(folder: Path) -> Outputs:
    videos = folder / "videos"
    videos.mkdir()
    (videos / "open_the_box.mp4").write_bytes(b"box" * 100)
    return {
        "template": _listing(videos, caption_template="{name} in {folder}, {source}"),
        "narration": [plain_narration("#C C picks up a cup #unsure"), plain_narration("Cup.")],
        "normalised": [normalise_caption("Open the  box, please!")],
    }


def _rows() -> list[dict[str, Any]]:
    config = replace(CONFIG, draws_per_clip=1, image_px=64, flow_window_s=0.2)
    return clip_table(CLIP, MadeUpRecording(), config).to_pylist()


def images(folder: Path) -> Outputs:
    row, area = _rows()[0], cv2.INTER_AREA
    stored = [row["frame_t"], row["frame_next"], *row["frames_r3m"]]
    decoded: list[Any] = [cv2.imdecode(np.frombuffer(data, np.uint8), 1) for data in stored]
    return {
        "size_px": np.array([row["width_px"], row["height_px"], *np.shape(decoded[0])]),
        "colours": np.stack([cv2.resize(one, (8, 6), interpolation=area) for one in decoded]),
        "kilobytes": np.array([len(data) / 1000 for data in stored]),
    }


def rows(folder: Path) -> Outputs:
    made = _rows()
    texts = ("triplet_id", "split", "caption", "caption_group", "task", "flow_source")
    texts += ("depth_kind", "depth_scale", "camera_motion", "grid", "focal_kind", "factors")
    numbers = ("t_s", "window_s", "visible_share", "moving_share", "median_depth_m", "focal_px")
    window = noisy(wall(shift_m=0.0), step=0.0)
    flow = flow_of_window(window, np.arange(6) / 30, POINTS_PX.reshape(20, 20, 2), CONFIG)
    return {
        "schema": [f"{field.name}: {field.type}" for field in TRIPLET_SCHEMA],
        "texts": [" | ".join(str(row[name]) for name in texts) for row in made],
        "numbers": np.array([[row[name] for name in numbers] for row in made]),
        "flow_fitted": flow.displacement_m,
        "flow_visible": flow.visible,
        "flow_measured": np.stack(
            [lifting.measured_steps(np.arange(n) / hz, 0.5, 0.5) for n, hz in ((3, 5), (6, 10))]
        ),
    }


# Stage of STAGE_VERSIONS → its outputs.
OUTPUTS: dict[str, Callable[[Path], Outputs]] = {
    "sources": sources,
    "decode": decode,
    "windows": draws,
    "split": split,
    "filters": filter_scores,
    "grid": grid,
    "tracking": tracks,
    "lifting": lifted,
    "static_points": static,
    "rgbd_alignment": alignment,
    "rigid_smoothing": smoothing,
    "dragged_points": dragged,
    "camera_motion": camera,
    "tracker_3d": tracks_in_3d,
    "simulator_flow": simulator,
    "depth_models": depth_models,
    "captions": captions,
    "images": images,
    "rows": rows,
}

_MOST_VALUES = 150


def summarised(outputs: Outputs) -> dict[str, list[Any]]:
    """Outputs as JSON: every text, and at most 150 evenly spaced values of each array."""
    out: dict[str, list[Any]] = {}
    for name, values in outputs.items():
        if isinstance(values, list):
            out[name] = values
            continue
        flat = np.asarray(values, np.float64).ravel()
        step = -(-len(flat) // _MOST_VALUES)
        # An odd step, so that the samples are not all of one coordinate.
        step += step % 2 == 0
        out[name] = [len(flat), *(_rounded(value) for value in flat[::step])]
    return out


def _rounded(value: float) -> float | str:
    return float(f"{value:.6g}") if np.isfinite(value) else str(value)
