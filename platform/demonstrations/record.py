"""One episode: the expert acts, every step is imaged and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.eval.envs.base import Env
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.demonstrations.plan import EpisodePlan

# Long enough for every task of Meta-World; shorter states are padded with zeros.
QPOS_LENGTH = 20
QVEL_LENGTH = 20


@dataclass
class Recording:
    """An episode of N steps.

    ``rgb`` (N, H, W, 3) uint8, ``depth_m`` (N, H, W) float32, and ``columns`` with
    one array (N, …) for each per-frame feature.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    columns: dict[str, np.ndarray]
    success: bool


def record_episode(scene: Env, plan: EpisodePlan, config: CollectConfig) -> Recording:
    """Record the planned episode; ``scene`` must be of its task."""
    assert scene.task == plan.task, (scene.task, plan.task)
    rng = np.random.default_rng(plan.noise_seed)
    scene.reset(plan.layout_seed)
    scene.apply(plan.factors)
    frames: list[dict[str, np.ndarray]] = []
    solved_at: int | None = None
    for step in range(config.max_steps):
        if plan.moving_camera:
            scene.follow_camera_path(plan.factors["camera"], step / scene.spec.control_hz)
        action = scene.expert_action()
        noise = config.action_noise * rng.standard_normal(3)
        action[:3] = np.clip(action[:3] + noise, -1, 1)
        frames.append(_observe(scene, action))
        if scene.step(action).success and solved_at is None:
            solved_at = step
        if solved_at is not None and step >= solved_at + config.steps_after_success:
            break
    scene.restore()
    columns = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
    rgb, depth_m = columns.pop("rgb"), columns.pop("depth_m")
    return Recording(rgb, depth_m, columns, solved_at is not None)


def _observe(scene: Env, action: np.ndarray) -> dict[str, np.ndarray]:
    rgb, depth_m = scene.rgb_and_depth()
    camera = scene.camera
    matrix = scene.intrinsics()
    state = scene.state()
    frame: dict[str, Any] = {
        "rgb": rgb,
        "depth_m": depth_m,
        "observation.state": scene.proprioception(),
        "action": action.astype(np.float32),
        f"observation.camera_pose.{camera}": scene.camera_pose().ravel().astype(np.float32),
        f"observation.intrinsics.{camera}": np.array(
            [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]], np.float32
        ),
        "privileged.qpos": _padded(state.qpos, QPOS_LENGTH),
        "privileged.qvel": _padded(state.qvel, QVEL_LENGTH),
        "privileged.mocap_pose": np.concatenate([state.mocap_pos_m, state.mocap_quat]),
    }
    for name, value in scene.privileged().items():
        frame[f"privileged.{name}"] = value
    return frame


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    assert len(values) <= length, f"{len(values)} coordinates do not fit {length}"
    return np.pad(values, (0, length - len(values)))
