"""Record one episode: the expert acts, every step is rendered and measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaflip.eval.envs.base import Env
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.demonstrations.plan import EpisodePlan


@dataclass
class Recording:
    """An episode of N steps.

    ``rgb`` (N, H, W, 3) uint8, ``depth_m`` (N, H, W) float32 (None of an environment without
    depth), and ``columns`` with one array (N, …) for each per-frame feature.
    """

    rgb: np.ndarray
    depth_m: np.ndarray | None
    columns: dict[str, np.ndarray]
    success: bool


def record_episode(scene: Env, plan: EpisodePlan, config: CollectConfig) -> Recording:
    """Record the planned episode; ``scene`` must be of its task."""
    assert scene.task == plan.task, (scene.task, plan.task)
    rng = np.random.default_rng(plan.noise_seed)
    scene.reset(plan.layout_seed)
    scene.apply(plan.factors)
    noisy = scene.spec.noise_dims
    frames: list[dict[str, np.ndarray]] = []
    solved_at: int | None = None
    assert config.max_steps is not None, "filled in by the settings"
    for step in range(config.max_steps):
        if plan.moving_camera:
            scene.follow_camera_path(plan.factors["camera"], step / scene.spec.control_hz)
        action = scene.expert_action()
        noise = config.action_noise * rng.standard_normal(noisy)
        action[:noisy] = np.clip(action[:noisy] + noise, -1, 1)
        frames.append(_observe(scene, action))
        after = scene.step(action)
        if after.success and solved_at is None:
            solved_at = step
        if after.ended or (
            solved_at is not None and step >= solved_at + config.steps_after_success
        ):
            break
    scene.restore()
    columns = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
    rgb, depth_m = columns.pop("rgb"), columns.pop("depth_m", None)
    return Recording(rgb, depth_m, columns, solved_at is not None)


def _observe(scene: Env, action: np.ndarray) -> dict[str, np.ndarray]:
    frame: dict[str, np.ndarray] = {}
    if scene.spec.has_depth:
        frame["rgb"], frame["depth_m"] = scene.rgb_and_depth()
    else:
        frame["rgb"] = scene.rgb()
    if scene.spec.proprioception_names:
        frame["observation.state"] = scene.proprioception()
    frame["action"] = action.astype(np.float32)
    if scene.spec.has_depth:
        camera, matrix = scene.camera, scene.intrinsics()
        pose = scene.camera_pose().ravel().astype(np.float32)
        frame[f"observation.camera_pose.{camera}"] = pose
        frame[f"observation.intrinsics.{camera}"] = np.array(
            [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]], np.float32
        )
    for name, value in {**scene.recorded_state(), **scene.privileged()}.items():
        frame[f"privileged.{name}"] = value
    return frame
