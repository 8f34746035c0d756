"""Exact 3D flow of a simulated scene: the ground truth for the tracking pipeline.

Bodies are rigid, so a point X seen at frame t moves to X' = R1 R0ᵀ (X − p0) + p1
with the poses (R, p) of its body at both times. As a source of training data it is
an upper bound for experiments, never what real video could give.

Legend of shapes: P points, K later states, H and W image height and width.
Camera frames: OpenCV (x right, y down, z forward), metres; pixel centres at +0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from dynaflip.eval.envs.base import Env
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, ENVIRONMENTS

SKY_M = 20.0  # nothing of the scene is further away
# A point counts as seen when it is this close to what is rendered where it should be.
SURFACE_TOLERANCE_M = 0.01


@dataclass(frozen=True)
class ExactFlow:
    """True flow of P points over K later states.

    ``origin_m`` (P, 3) and ``displacement_m`` (K, P, 3): XYZ in the camera frame of
    frame t. ``origin_px`` (P, 2) and ``tracks_px`` (K, P, 2): where the points are in
    the images of the camera as it really moved. ``visible`` (K, P) bool: in the
    image and not occluded. ``body`` (P,) int: id of the body a point is on, 0 for
    what never moves. ``valid`` (P,) bool: False where frame t shows the sky.
    """

    origin_px: np.ndarray
    origin_m: np.ndarray
    displacement_m: np.ndarray
    tracks_px: np.ndarray
    visible: np.ndarray
    body: np.ndarray
    valid: np.ndarray


def exact_flow(
    scene: Env,
    states: Sequence[Any],
    origins_px: np.ndarray,
    camera_poses: Sequence[np.ndarray] | None = None,
) -> ExactFlow:
    """Move points of the first state's image with their bodies through the later states.

    Args:
        scene: the scene in the layout (and with the distractors) of the states; it is
            left in the last state.
        states: K + 1 states, the first being frame t.
        origins_px: (P, 2) x and y in the image of frame t.
        camera_poses: camera → world (4, 4) at each of the K + 1 states; by default the
            camera stays where it is.
    """
    poses = [scene.camera_pose()] * len(states) if camera_poses is None else camera_poses
    if len(poses) != len(states):
        raise ValueError(f"{len(states)} states need as many camera poses, got {len(poses)}")
    matrix = scene.intrinsics()
    _go_to(scene, states[0], poses[0])
    bodies, depth_m = scene.bodies(), scene.depth_m()
    z_m, body = _surface(depth_m, bodies, origins_px)
    valid = z_m < SKY_M
    rays = (np.c_[origins_px, np.ones(len(origins_px))]) @ np.linalg.inv(matrix).T
    origin_m = rays * z_m[:, None]
    world_m = origin_m @ poses[0][:3, :3].T + poses[0][:3, 3]
    position_0, rotation_0 = scene.body_poses()
    # R0ᵀ (X − p0): the point in its body's own frame, where it never moves.
    local_m = np.einsum("pji,pj->pi", rotation_0[body], world_m - position_0[body])
    displacements, tracks, visible = [], [], []
    for state, pose in zip(states[1:], poses[1:], strict=True):
        _go_to(scene, state, pose)
        position, rotation = scene.body_poses()
        moved_m = np.einsum("pij,pj->pi", rotation[body], local_m) + position[body]
        displacements.append((moved_m - poses[0][:3, 3]) @ poses[0][:3, :3] - origin_m)
        seen_m = (moved_m - pose[:3, 3]) @ pose[:3, :3]
        pixels = _project(seen_m, matrix)
        tracks.append(pixels)
        visible.append(_in_sight(scene.depth_m(), pixels, seen_m[:, 2]) & valid)
    return ExactFlow(
        origin_px=np.asarray(origins_px, np.float64),
        origin_m=origin_m,
        displacement_m=np.stack(displacements),
        tracks_px=np.stack(tracks),
        visible=np.stack(visible),
        body=body,
        valid=valid,
    )


def exact_flow_for_episode(
    *,
    task_id: str,
    layout_seed: int,
    factors: dict[str, Any],
    qpos: np.ndarray,
    camera_poses: np.ndarray,
    origins_px: np.ndarray,
    height_px: int,
    width_px: int,
    camera: str | None = None,
    environment: str = DEFAULT_ENVIRONMENT,
) -> ExactFlow:
    """The flow of a recorded episode, restored from its columns.

    Args:
        task_id, layout_seed, factors: from the row of ``meta/episodes``.
        qpos: ``privileged.qpos`` (K + 1, ≥ Q) at frame t and the K later steps; what
            is beyond the task's own Q coordinates is padding.
        camera_poses: ``observation.camera_pose.CAMERA`` there, (K + 1, 16) or (K + 1, 4, 4).
        origins_px: (P, 2) in an image of ``height_px`` × ``width_px``, which need
            not be the recorded size.
        height_px, width_px: see there.
        camera: name of the camera; by default the environment's.
        environment: the simulator's name, as the recording has it.
    """
    scene = _scene(environment, task_id, height_px, width_px, camera)
    scene.reset(layout_seed)
    # Of all factors only distractors (and the camera, whose pose is given) hide anything.
    scene.apply({name: value for name, value in factors.items() if name == "distractors"})
    states = [scene.state_at(row) for row in np.asarray(qpos)]
    poses = np.asarray(camera_poses, np.float64).reshape(-1, 4, 4)
    flow = exact_flow(scene, states, origins_px, list(poses))
    scene.restore()
    return flow


@lru_cache(maxsize=2)
def _scene(name: str, task_id: str, height_px: int, width_px: int, camera: str | None) -> Env:
    # The name is from a recording's files, which may have been downloaded.
    spec = ENVIRONMENTS.resolve(name, "environment", trusted=False)
    return spec.open(task_id, height_px=height_px, width_px=width_px, camera=camera)


def _go_to(scene: Env, state: Any, pose: np.ndarray) -> None:
    scene.set_state(state)
    scene.set_camera_pose(pose)


def _surface(
    depth_m: np.ndarray, bodies: np.ndarray, points_px: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Depth (P,) and body (P,) of the surface under points between pixel centres.

    Inverse depth is linear in the image on a plane: it is interpolated between the
    four pixels about a point where they show one body, and taken from the pixel that
    the point is in elsewhere.
    """
    height, width = depth_m.shape
    column = np.clip(np.floor(points_px[:, 0]).astype(int), 0, width - 1)
    row = np.clip(np.floor(points_px[:, 1]).astype(int), 0, height - 1)
    body, nearest_m = bodies[row, column], depth_m[row, column].astype(np.float64)
    left = np.clip(np.floor(points_px[:, 0] - 0.5).astype(int), 0, width - 2)
    top = np.clip(np.floor(points_px[:, 1] - 0.5).astype(int), 0, height - 2)
    x = np.clip(points_px[:, 0] - 0.5 - left, 0, 1)
    y = np.clip(points_px[:, 1] - 0.5 - top, 0, 1)
    inverse = np.zeros(len(points_px))
    corners_m, same = [], np.ones(len(points_px), bool)
    for down, right, weight in (
        (0, 0, (1 - y) * (1 - x)),
        (0, 1, (1 - y) * x),
        (1, 0, y * (1 - x)),
        (1, 1, y * x),
    ):
        corner_m = depth_m[top + down, left + right].astype(np.float64)
        inverse += weight / corner_m
        corners_m.append(corner_m)
        same &= bodies[top + down, left + right] == body
    # One body can still have an edge here, with another of its faces behind it.
    spread_m = np.max(corners_m, axis=0) - np.min(corners_m, axis=0)
    smooth = same & (spread_m < 0.03 * nearest_m)
    return np.where(smooth, 1 / inverse, nearest_m), body


def _project(points_cam_m: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    z_m = np.maximum(points_cam_m[:, 2:], 1e-6)
    return points_cam_m[:, :2] / z_m * np.diag(matrix)[:2] + matrix[:2, 2]


def _in_sight(depth_m: np.ndarray, points_px: np.ndarray, z_m: np.ndarray) -> np.ndarray:
    height, width = depth_m.shape
    inside = (points_px >= 0).all(1) & (points_px < (width, height)).all(1) & (z_m > 0)
    left = np.clip(np.floor(points_px[:, 0] - 0.5).astype(int), 0, width - 2)
    top = np.clip(np.floor(points_px[:, 1] - 0.5).astype(int), 0, height - 2)
    around_m = np.stack([depth_m[top + d, left + r] for d in (0, 1) for r in (0, 1)])
    hidden = z_m > around_m.max(0) + SURFACE_TOLERANCE_M
    # Before everything that is rendered there: the origin was on a silhouette.
    floating = z_m < around_m.min(0) - SURFACE_TOLERANCE_M
    return inside & ~hidden & ~floating
