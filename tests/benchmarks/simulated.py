"""Simulated recordings with exact truth, recorded once and kept under DYNAFLIP_HOME.

P points of the 20 × 20 grid, N frames of a window.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynaflip.platform.config_loader import config_digest
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.paths import home
from dynaflip.platform.triplets.clips import Cameras, Clip, content_hash
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.flow.estimate import Flow
from dynaflip.platform.triplets.flow.simulator import simulator_flow
from dynaflip.platform.triplets.flow.tracking import grid_px
from dynaflip.platform.triplets.flow.window import RGBDWindow
from dynaflip.platform.triplets.sources.formats import open_source

TASKS = (
    "door-open-v3",
    "plate-slide-v3",
    "drawer-open-v3",
    "assembly-v3",
    "bin-picking-v3",
    "button-press-topdown-v3",
    "hammer-v3",
    "button-press-v3",
    "drawer-close-v3",
    "faucet-open-v3",
    "window-close-v3",
    "window-open-v3",
)
IMAGE_PX = 224


@dataclass(frozen=True)
class Window:
    """``frames`` (N, H, W, 3) uint8, ``times_s`` (N,), ``depth_m`` (N, H, W), ``cameras`` of
    the frames, ``truth`` the exact flow, whose last step is the last frame."""

    name: str
    frames: np.ndarray
    times_s: np.ndarray
    depth_m: np.ndarray
    cameras: Cameras
    truth: Flow

    def window(self, kept: list[int], *, hide_pose: bool = False) -> RGBDWindow:
        """Some of the frames, as the pipeline's stages take them."""
        poses = self.cameras.poses
        assert poses is not None
        known = None if hide_pose else poses[kept]
        intrinsics_px = self.cameras.intrinsics_px[kept]
        return RGBDWindow(self.frames[kept], self.depth_m[kept], intrinsics_px, known)


def recordings(
    tasks: tuple[str, ...], *, moving_camera: bool, episodes: int = 1, seed: int = 7
) -> Path:
    """A LeRobot data set with episodes of each task, as ``jobs/collect.py`` writes it."""
    config = CollectConfig(
        tasks=tasks,
        episodes_per_task=episodes,
        image_px=IMAGE_PX,
        perturbed_share=0.0,
        moving_camera_share=float(moving_camera),
        max_steps=110,
        seed=seed,
    )
    target = Path(home()) / "benchmarks" / f"recordings-{config_digest(config)}"
    if not target.exists():
        _record(target, config)
    return target


def _record(target: Path, config: CollectConfig) -> None:
    from dynaflip.eval.envs.metaworld import Scene
    from dynaflip.platform.demonstrations.lerobot_dataset import assemble
    from dynaflip.platform.demonstrations.lerobot_episode import write_episode
    from dynaflip.platform.demonstrations.plan import plan_episodes
    from dynaflip.platform.demonstrations.record import record_episode

    staging = target.with_name(f".{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    folders = []
    for plan in plan_episodes(config):
        print(f"recording {plan.task}", flush=True)
        scene = Scene(plan.task, height_px=config.image_px, width_px=config.image_px)
        folders.append(staging / f"episode{plan.index}")
        write_episode(folders[-1], plan, record_episode(scene, plan, config), scene.spec)
        scene.close()
    assemble(staging / "set", folders, Scene.spec)
    os.replace(staging / "set", target)
    shutil.rmtree(staging)


def windows(root: Path, frames: int, *, per_clip: int) -> Iterator[Window]:
    """Windows of so many consecutive frames, evenly over each clip, with their truth.

    Truth takes seconds of rendering; it is kept beside the recordings.
    """
    source = open_source(SourceConfig(path=str(root)))
    for clip in source.list_clips():
        recording = source.open(clip)
        times_s = recording.times_s()
        if len(times_s) < frames:
            continue
        starts = np.linspace(0, len(times_s) - frames, per_clip + 2).astype(int)[1:-1]
        for start in sorted({int(s) for s in starts}):
            indices = list(range(start, start + frames))
            images = recording.read_frames(indices, IMAGE_PX)
            depth_m, cameras = recording.read_depth_m(indices), recording.cameras(indices)
            assert depth_m is not None
            assert cameras is not None
            truth = _truth(root, clip, recording, indices, cameras)
            name = f"{clip.task}/{start}+{frames}"
            yield Window(name, images, times_s[indices], depth_m, cameras, truth)


def _truth(root: Path, clip: Clip, recording, indices: list[int], cameras: Cameras) -> Flow:
    key = content_hash(clip.clip_id, str(indices))[:24]
    path = root.with_name(f"{root.name}-truth") / f"{key}.npz"
    if path.exists():
        with np.load(path) as kept:
            return Flow(**{name: kept[name] for name in kept.files})
    # At eight frames alone: rendering the others would cost minutes and serve nobody.
    some = sorted({round(i) for i in np.linspace(0, len(indices) - 1, 8)})
    assert cameras.poses is not None
    times_s = recording.times_s()[indices]
    state = recording.simulator_state(indices)
    size_px = cameras.frame_px
    origin_px = grid_px(size_px[1], size_px[0])
    flow = simulator_flow(clip, times_s[some], cameras.poses[some], state[some], origin_px, size_px)
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(
        part,
        origin_m=flow.origin_m,
        displacement_m=flow.displacement_m,
        visible=flow.visible,
        origin_px=flow.origin_px,
        tracks_px=flow.tracks_px,
        misfit=flow.misfit,
    )
    os.replace(part, path)
    return flow
