"""What every simulator must keep: seeds, states, true geometry, factors that come and go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from simulators import Simulator, act, parameters

from dynaflip.errors import UserError
from dynaflip.eval.envs.mujoco_scene import MujocoScene
from dynaflip.eval.envs.registry import environment
from dynaflip.eval.perturbations import FACTORS, sample

pytestmark = pytest.mark.sim
PX = 96


@pytest.fixture(scope="module", params=parameters())
def simulator(request: pytest.FixtureRequest) -> Simulator:
    found: Simulator = request.param
    return found


@pytest.fixture(scope="module")
def scene(simulator: Simulator) -> Iterator[MujocoScene]:
    scene = simulator.open(PX)
    yield scene
    scene.close()


def test_an_episode_depends_on_its_seed_alone(simulator: Simulator, scene: MujocoScene) -> None:
    steps = simulator.approach_steps
    act(scene, 5, steps)
    first, state = scene.rgb(), scene.state()
    act(scene, 6, steps // 2)
    assert (scene.rgb() != first).any()
    np.random.seed(1)  # OGBench's experts draw from numpy's global generator
    act(scene, 5, steps)
    np.testing.assert_array_equal(scene.rgb(), first)
    fresh = simulator.open(PX)
    act(fresh, 5, steps)
    np.testing.assert_array_equal(fresh.state().qpos, state.qpos)
    np.testing.assert_array_equal(fresh.rgb(), first)
    fresh.close()


def test_a_state_brings_its_image_back(simulator: Simulator, scene: MujocoScene) -> None:
    act(scene, 5, simulator.approach_steps)
    state, image, felt = scene.state(), scene.rgb(), scene.proprioception()
    act(scene, 5, 2 * simulator.approach_steps)
    assert (scene.rgb() != image).any()
    scene.set_state(state)
    np.testing.assert_array_equal(scene.rgb(), image)
    np.testing.assert_allclose(scene.proprioception(), felt, atol=1e-6)


def test_the_object_stands_elsewhere_in_another_layout(scene: MujocoScene) -> None:
    places = []
    for seed in range(4):
        scene.reset(seed)
        places.append(scene.privileged()["object_position_m"])
    assert np.ptp(places, axis=0)[:2].max() > 0.01


def test_widths_are_those_of_the_specification(scene: MujocoScene) -> None:
    scene.reset(0)
    assert scene.proprioception().shape == (scene.spec.proprioception_dim,)
    assert scene.expert_action().shape == (scene.spec.action_dim,)
    assert scene.proprioception().dtype == scene.expert_action().dtype == np.float32


def test_the_image_is_the_right_way_up(scene: MujocoScene) -> None:
    scene.reset(5)
    down_cam = scene.camera_pose()[:3, :3].T @ np.array([0.0, 0, -1])
    assert down_cam[1] > 0.5  # gravity points down the image
    assert np.linalg.det(scene.camera_pose()[:3, :3]) == pytest.approx(1)


def test_depth_pose_and_intrinsics_agree_with_a_body(
    simulator: Simulator, scene: MujocoScene
) -> None:
    """Where a body's pixels lift to is where the simulator says that it is."""
    act(scene, 5, 30)
    shown = np.isin(scene.bodies(), [scene.model.body(name).id for name in simulator.bodies])
    assert shown.sum() > 30
    rows, columns = np.nonzero(shown)
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1)
    points = (rays @ np.linalg.inv(scene.intrinsics()).T) * scene.depth_m()[shown][:, None]
    pose = scene.camera_pose()
    world = np.median(points @ pose[:3, :3].T + pose[:3, 3], 0)
    where = scene.data.body(simulator.bodies[0]).xpos
    assert np.linalg.norm(world - where) < simulator.body_reach_m


def test_the_camera_can_be_put_anywhere_and_back(scene: MujocoScene) -> None:
    scene.reset(5)
    before, image = scene.camera_pose(), scene.rgb()
    moved = before.copy()
    moved[:3, 3] += 0.05
    scene.set_camera_pose(moved)
    np.testing.assert_allclose(scene.camera_pose(), moved, atol=1e-9)
    assert (scene.rgb() != image).any()
    scene.restore()
    np.testing.assert_array_equal(scene.camera_pose(), before)
    np.testing.assert_array_equal(scene.rgb(), image)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_shows_and_is_taken_back_bit_for_bit(
    simulator: Simulator, scene: MujocoScene, factor: str
) -> None:
    act(scene, 5, simulator.approach_steps)
    scene.restore()
    image, depth_m, state = scene.rgb().astype(int), scene.depth_m(), scene.state()
    changed, mean_change = [], []
    for level in (1, 5):
        scene.apply(sample("dev", 3, [factor], level))
        difference = np.abs(scene.rgb().astype(int) - image)
        changed.append((difference.max(-1) > 10).mean())
        mean_change.append(difference.mean())
        moves_pixels = factor in ("camera", "distractors")
        assert (np.abs(scene.depth_m() - depth_m) > 0.001).any() == moves_pixels
    # One small thing on the table at the least, and more of the image, or by more, when it is
    # strong. The mildest shadows move as much light about as the deepest.
    assert changed[0] > 0.003
    stronger = changed[1] >= changed[0] or mean_change[1] > mean_change[0]
    assert stronger or factor == "shadows"
    assert changed[1] > simulator.strong_share
    np.testing.assert_array_equal(scene.state().qpos, state.qpos)
    scene.restore()
    np.testing.assert_array_equal(scene.rgb(), image)
    np.testing.assert_array_equal(scene.depth_m(), depth_m)


def test_factors_leave_the_physics_alone_and_outlast_a_step(scene: MujocoScene) -> None:
    scene.restore()
    act(scene, 7, 15)
    plain, state = scene.rgb(), scene.state()
    scene.reset(7)
    scene.apply(sample("test", 1, FACTORS, 5))
    first = np.abs(scene.rgb().astype(int) - plain).mean()
    for _ in range(15):
        scene.step(scene.expert_action())
    np.testing.assert_array_equal(scene.state().qpos, state.qpos)
    assert np.abs(scene.rgb().astype(int) - plain).mean() > 0.5 * first
    scene.restore()
    np.testing.assert_array_equal(scene.rgb(), plain)


def test_distractors_leave_the_task_in_view(simulator: Simulator, scene: MujocoScene) -> None:
    act(scene, 5, simulator.approach_steps)
    scene.restore()
    plain, (robot, drawer) = scene.segmentation(), scene.robot_and_object()
    assert robot.mean() > 0.02
    assert drawer.mean() > 0.02
    scene.apply(sample("test", 2, ["distractors"], 5))
    ids = scene.segmentation()
    distractors = ids <= -2
    assert distractors.any()
    assert (scene.bodies()[distractors] == 0).all()
    np.testing.assert_array_equal(ids[~distractors], plain[~distractors])
    seen_robot, seen_drawer = scene.robot_and_object()
    assert seen_robot.sum() > 0.8 * robot.sum()
    assert seen_drawer.sum() > 0.7 * drawer.sum()
    scene.restore()


def test_mistakes_are_named(simulator: Simulator) -> None:
    spec = environment(simulator.name)
    with pytest.raises(UserError, match=f"did you mean {simulator.task}"):
        spec.open(simulator.task.replace("open", "opn"))
    with pytest.raises(UserError, match="no camera corner9"):
        spec.open(simulator.task, camera="corner9")
