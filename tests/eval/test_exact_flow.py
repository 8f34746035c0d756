"""Exact flow against what is rendered at the later times."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from simulators import Simulator, parameters

from dynaflip.eval.envs.exact_flow import ExactFlow, exact_flow, exact_flow_for_episode
from dynaflip.eval.envs.mujoco_scene import MujocoScene

pytestmark = pytest.mark.sim
PX = 128
CAMERA = {"u": 0.3, "path": {"period_s": [1.5, 2.0], "phase": [0.1, 0.4]}}
Clip = tuple[MujocoScene, list[Any], list[np.ndarray], ExactFlow]


@pytest.fixture(scope="module", params=parameters())
def simulator(request: pytest.FixtureRequest) -> Simulator:
    found: Simulator = request.param
    return found


@pytest.fixture(scope="module")
def scene(simulator: Simulator) -> Iterator[MujocoScene]:
    scene = simulator.open(PX)
    yield scene
    scene.close()


@pytest.fixture(scope="module", params=["static", "moving"])
def clip(simulator: Simulator, scene: MujocoScene, request: pytest.FixtureRequest) -> Clip:
    scene.restore()
    scene.reset(3)
    states, poses = [], []
    for step in range(simulator.pull_steps[-1] + 1):
        if request.param == "moving":
            scene.follow_camera_path(CAMERA, step / scene.spec.control_hz)
        states.append(scene.state())
        poses.append(scene.camera_pose())
        scene.step(scene.expert_action())
    centres = (np.arange(20) + 0.5) * PX / 20
    origins_px = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
    states = [states[step] for step in simulator.pull_steps]
    poses = [poses[step] for step in simulator.pull_steps]
    return scene, states, poses, exact_flow(scene, states, origins_px, poses)


def in_camera_k(flow: ExactFlow, poses: list[np.ndarray], k: int) -> np.ndarray:
    points = flow.origin_m + flow.displacement_m[k - 1]
    world = points @ poses[0][:3, :3].T + poses[0][:3, 3]
    return (world - poses[k][:3, 3]) @ poses[k][:3, :3]


def test_points_are_where_later_images_have_them(clip: Clip) -> None:
    scene, states, poses, flow = clip
    for k in (1, 4, 7):
        scene.set_state(states[k])
        scene.set_camera_pose(poses[k])
        depth_m, bodies = scene.depth_m(), scene.bodies()
        column, row = np.floor(flow.tracks_px[k - 1]).astype(int).T
        seen = flow.visible[k - 1]
        column, row = column[seen], row[seen]
        error_m = np.abs(in_camera_k(flow, poses, k)[seen, 2] - depth_m[row, column])
        # Half a pixel of sloping table is half a centimetre of depth.
        assert np.median(error_m) < 0.005
        assert (bodies[row, column] == flow.body[seen]).mean() > 0.93


def test_the_world_stands_still_and_the_drawer_moves(clip: Clip) -> None:
    scene, _, _, flow = clip
    motion_m = np.linalg.norm(flow.displacement_m[-1], axis=1)
    assert motion_m[flow.valid & (flow.body == 0)].max() < 1e-9
    drawer = flow.body == scene.model.body("drawer_link").id
    assert drawer.sum() >= 3
    # One rigid slide: the same for all of its points.
    assert np.ptp(flow.displacement_m[-1][drawer], axis=0).max() < 0.002
    assert motion_m[drawer].min() > 0.03


def test_tracks_start_at_their_origins(clip: Clip) -> None:
    scene, states, poses, flow = clip
    again = exact_flow(scene, [states[0], states[0]], flow.origin_px, [poses[0], poses[0]])
    np.testing.assert_allclose(again.tracks_px[0], flow.origin_px, atol=1e-6)
    np.testing.assert_allclose(again.displacement_m, 0, atol=1e-9)
    # All but points on silhouettes, whose surface is between two pixels.
    assert again.visible[0][again.valid].mean() > 0.97


def test_the_sky_is_not_followed(simulator: Simulator, clip: Clip) -> None:
    _, _, _, flow = clip
    assert flow.valid.all() != simulator.sees_sky
    assert not flow.visible[:, ~flow.valid].any()


def test_points_behind_the_arm_are_not_seen(clip: Clip) -> None:
    *_, flow = clip
    hidden = flow.valid & ~flow.visible[-1]
    inside = (flow.tracks_px[-1] > 0).all(1) & (flow.tracks_px[-1] < PX).all(1)
    assert (hidden & inside).any()


def test_as_many_poses_as_states_are_needed(clip: Clip) -> None:
    scene, states, poses, flow = clip
    with pytest.raises(ValueError, match="camera poses"):
        exact_flow(scene, states, flow.origin_px, poses[:-1])


def test_a_recording_gives_the_same_flow(simulator: Simulator, clip: Clip) -> None:
    _, states, poses, flow = clip
    again = exact_flow_for_episode(
        task_id=simulator.task,
        layout_seed=3,
        factors={},
        qpos=np.stack([np.pad(state.qpos, (0, 3)) for state in states]),
        camera_poses=np.stack(poses),
        origins_px=flow.origin_px,
        height_px=PX,
        width_px=PX,
        environment=simulator.name,
    )
    np.testing.assert_allclose(again.displacement_m, flow.displacement_m, atol=1e-5)
