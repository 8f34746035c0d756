"""The simulator as recording and as 3D tracker, as an outsider's module for tests and jobs.

A few states of a recorded episode, with states between them, so that there are windows. Images
hold the number of their frame in the first pixel, by which the tracker finds its place.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from triplet_recordings import textured

from dynaflip.eval.envs.exact_flow import exact_flow_for_episode
from dynaflip.platform.triplets.clips import Cameras, Clip, content_hash
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.flow.tracker_3d import WindowToTrack, WindowTracks3D

FRAMES, RATE_HZ, SIDE_PX = 17, 20.0, 120
CAMERA = "corner4"
_RECORDED = json.loads(Path(__file__).with_name("simulated_episode.json").read_text())
TASK, SEED = _RECORDED["task"], _RECORDED["layout_seed"]


def _between(states: np.ndarray) -> np.ndarray:
    """(FRAMES, …) states, linear between the recorded ones."""
    at = np.linspace(0, len(states) - 1, FRAMES)
    before = np.minimum(at.astype(int), len(states) - 2)
    share = (at - before).reshape(-1, *[1] * (states.ndim - 1))
    return (1 - share) * states[before] + share * states[before + 1]


def _poses() -> np.ndarray:
    poses = _between(np.array(_RECORDED["poses"]).reshape(-1, 4, 4))
    u, _, vt = np.linalg.svd(poses[:, :3, :3])
    poses[:, :3, :3] = u @ vt
    return poses


POSES, QPOS = _poses(), _between(np.array(_RECORDED["qpos"]))


class TrueTracker:
    """The simulator's exact tracks."""

    dimensions = 3
    scale = "metric"

    def __call__(self, window: WindowToTrack) -> WindowTracks3D:
        numbers = window.frames[:, 0, 0, 0].astype(int)
        height, width = window.frames.shape[1:3]
        poses = POSES[numbers]
        flow = exact_flow_for_episode(
            task_id=TASK,
            layout_seed=SEED,
            factors={},
            qpos=QPOS[numbers],
            camera_poses=poses,
            origins_px=window.points_px.astype(np.float64),
            height_px=height,
            width_px=width,
            camera=CAMERA,
        )
        moved_m = flow.origin_m + np.concatenate([0 * flow.origin_m[None], flow.displacement_m])
        to_camera = np.linalg.inv(poses) @ poses[0]
        points_m = np.einsum("nij,npj->npi", to_camera[:, :3, :3], moved_m)
        points_m += to_camera[:, None, :3, 3]
        visible = np.concatenate([flow.valid[None], flow.visible])
        # Focal length and middle of the simulator's camera, from where the tracks are.
        focal_px = _focal_px(points_m[0], flow.origin_px, flow.valid, width)
        intrinsics_px = np.tile([focal_px, focal_px, width / 2, height / 2], (len(numbers), 1))
        return WindowTracks3D(points_m, visible, poses, intrinsics_px)


def _focal_px(points_m: np.ndarray, pixels: np.ndarray, valid: np.ndarray, width_px: int) -> float:
    x = points_m[valid, 0] / points_m[valid, 2]
    return float((x * (pixels[valid, 0] - width_px / 2)).sum() / (x * x).sum())


class InMillimetres(TrueTracker):
    """The exact tracks in another unit than it says."""

    def __call__(self, window: WindowToTrack) -> WindowTracks3D:
        tracks = super().__call__(window)
        return replace(tracks, points_cam_m=1000 * tracks.points_cam_m, poses=None)


class Simulated:
    """A source of the episode, as two clips or as many as ``source.max_clips``."""

    format = "simulated"

    def __init__(self, config: SourceConfig) -> None:
        self.name, self.count = "simulated", config.max_clips or 2

    def list_clips(self) -> list[Clip]:
        return [
            Clip(
                clip_id=content_hash("clip", str(n)),
                recording_id=content_hash("recording", str(n)),
                source=self.name,
                path=f"{n}.npy",
                camera=CAMERA,
                captions=("open it",),
                caption_group="open it",
                task=TASK,
                embodiment="robot",
                licence="CC0",
                episode_index=n,
                extra=json.dumps({"layout_seed": SEED}),
            )
            for n in range(self.count)
        ]

    def open(self, clip: Clip) -> SimulatedRecording:
        return SimulatedRecording()


class SimulatedRecording:
    """Images that nobody looks at, with the poses and states of the simulator."""

    def __init__(self) -> None:
        self.frames = np.stack([textured(SIDE_PX, SIDE_PX, 3)] * FRAMES)
        self.frames[:, 0, 0] = np.arange(FRAMES)[:, None]

    def times_s(self) -> np.ndarray:
        return np.arange(FRAMES) / RATE_HZ

    def read_frames(self, indices: list[int], short_side_px: int) -> np.ndarray:
        return self.frames[indices]

    def read_depth_m(self, indices: list[int]) -> None:
        return None

    def cameras(self, indices: list[int]) -> Cameras:
        guess = np.tile([SIDE_PX, SIDE_PX, SIDE_PX / 2, SIDE_PX / 2], (len(indices), 1))
        return Cameras(guess.astype(float), (SIDE_PX, SIDE_PX), POSES[indices], assumed=True)

    def simulator_state(self, indices: list[int]) -> np.ndarray:
        return QPOS[indices]

    def caption_at(self, index: int, draw: int) -> str:
        return "open it"
