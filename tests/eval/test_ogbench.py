"""OGBench behind the contract: seeds, experts, factors that leave physics alone, exact flow."""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env
from dynaflip.eval.envs.exact_flow import ExactFlow, exact_flow, exact_flow_for_episode
from dynaflip.eval.envs.registry import environment
from dynaflip.eval.perturbations import FACTORS, layout_seed, sample

PX = 96
installed = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None,
    reason="OGBench is not installed: pip install 'dynaflip[ogbench]'",
)
simulated = [pytest.mark.sim, installed]


@pytest.fixture(scope="module")
def scene() -> Iterator[Any]:
    scene = environment("ogbench").open("drawer-open", height_px=PX, width_px=PX)
    yield scene
    scene.close()


def act(scene: Any, seed: int, steps: int) -> np.ndarray:
    observation = scene.reset(seed)
    for _ in range(steps):
        observation = scene.step(scene.expert_action()).observation
    return observation


class TestScene:
    pytestmark = simulated

    def test_an_episode_depends_on_its_seed_alone(self, scene: Any) -> None:
        act(scene, 5, 18)
        first, state = scene.rgb(), scene.state()
        act(scene, 6, 7)
        assert (scene.rgb() != first).any()
        np.random.seed(1)  # OGBench's experts draw from numpy's global generator
        act(scene, 5, 18)
        np.testing.assert_array_equal(scene.state().qpos, state.qpos)
        np.testing.assert_array_equal(scene.rgb(), first)
        fresh = environment("ogbench").open("drawer-open", height_px=PX, width_px=PX)
        act(fresh, 5, 18)
        np.testing.assert_array_equal(fresh.state().qpos, state.qpos)
        np.testing.assert_array_equal(fresh.rgb(), first)
        fresh.close()

    def test_furniture_stands_elsewhere_in_another_layout(self, scene: Any) -> None:
        handles = []
        for seed in range(4):
            scene.reset(seed)
            handles.append(scene.privileged()["object_position_m"])
        assert np.ptp(handles, axis=0)[:2].min() > 0.01

    def test_a_state_brings_its_image_back(self, scene: Any) -> None:
        act(scene, 5, 12)
        state, image, felt = scene.state(), scene.rgb(), scene.proprioception()
        act(scene, 5, 25)
        assert (scene.rgb() != image).any()
        scene.set_state(state)
        np.testing.assert_array_equal(scene.rgb(), image)
        np.testing.assert_allclose(scene.proprioception(), felt, atol=1e-6)

    def test_widths_are_those_of_the_specification(self, scene: Any) -> None:
        scene.reset(0)
        spec = environment("ogbench")
        assert scene.proprioception().shape == (spec.proprioception_dim,)
        assert scene.expert_action().shape == (spec.action_dim,)
        assert scene.proprioception().dtype == scene.expert_action().dtype == np.float32

    def test_depth_pose_and_intrinsics_agree_with_the_drawer(self, scene: Any) -> None:
        act(scene, 5, 30)
        shown = scene.bodies() == scene.model.body("drawer_link").id
        assert shown.sum() > 30
        rows, columns = np.nonzero(shown)
        rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1)
        points = (rays @ np.linalg.inv(scene.intrinsics()).T) * scene.depth_m()[shown][:, None]
        pose = scene.camera_pose()
        world = points @ pose[:3, :3].T + pose[:3, 3]
        assert np.linalg.norm(np.median(world, 0) - scene.data.body("drawer_link").xpos) < 0.1

    @pytest.mark.parametrize("factor", FACTORS)
    def test_a_factor_shows_and_is_taken_back_bit_for_bit(self, scene: Any, factor: str) -> None:
        act(scene, 5, 18)
        scene.restore()
        image, depth_m, state = scene.rgb().astype(int), scene.depth_m(), scene.state()
        changed = []
        for level in (1, 5):
            scene.apply(sample("dev", 3, [factor], level))
            difference = np.abs(scene.rgb().astype(int) - image)
            assert (difference.max(-1) > 10).mean() > 0.003
            changed.append(difference.mean())
            moves_pixels = factor in ("camera", "distractors")
            assert (np.abs(scene.depth_m() - depth_m) > 0.001).any() == moves_pixels
        # The mildest shadows move as much light about as the deepest.
        assert changed[1] > changed[0] or factor == "shadows"
        assert (difference.max(-1) > 10).mean() > 0.02
        np.testing.assert_array_equal(scene.state().qpos, state.qpos)
        scene.restore()
        np.testing.assert_array_equal(scene.rgb(), image)
        np.testing.assert_array_equal(scene.depth_m(), depth_m)

    def test_factors_leave_the_physics_alone_and_outlast_a_step(self, scene: Any) -> None:
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

    def test_distractors_leave_the_task_in_view(self, scene: Any) -> None:
        act(scene, 5, 20)
        robot, drawer = scene.robot_and_object()
        assert robot.mean() > 0.02
        assert drawer.mean() > 0.02
        scene.apply(sample("test", 2, ["distractors"], 5))
        assert (scene.segmentation() <= -2).any()
        seen_robot, seen_drawer = scene.robot_and_object()
        assert seen_robot.sum() > 0.8 * robot.sum()
        assert seen_drawer.sum() > 0.7 * drawer.sum()
        scene.restore()


@pytest.mark.sim
@installed
@pytest.mark.parametrize("task", ["window-close", "button-left", "cube-left"])
def test_the_expert_solves_a_task_and_random_actions_do_not(task: str) -> None:
    scene = environment("ogbench").open(task, height_px=32, width_px=32)
    rng = np.random.default_rng(0)
    for index in range(2):
        assert solved(scene, layout_seed("dev", index), None)
        solved_m = scene.goal_distance_m()
        scene.reset(layout_seed("dev", index))
        assert solved_m < min(0.05, scene.goal_distance_m())
        assert not solved(scene, layout_seed("dev", index), rng)
    scene.close()


def solved(scene: Env, seed: int, rng: np.random.Generator | None) -> bool:
    """Whether an episode of at most 80 steps succeeds, by the expert or at random."""
    scene.reset(seed)
    for _ in range(80):
        action = scene.expert_action() if rng is None else rng.uniform(-1, 1, 5)
        if scene.step(action).success:
            return True
    return False


@pytest.mark.sim
@installed
def test_a_pressed_button_changes_its_colour_under_perturbation_too() -> None:
    scene: Any = environment("ogbench").open("button-left", height_px=PX, width_px=PX)
    assert solved(scene, 3, None)
    pressed = scene.state()
    scene.apply(sample("dev", 0, ["object_colour"], 5))
    looks = []
    for buttons in (pressed.buttons, np.array([0, 1])):
        scene.set_state(type(pressed)(pressed.qpos, pressed.qvel, buttons, 0.0))
        looks.append(scene.model.geom("btngeom_0").rgba.copy())
    assert (looks[0] != looks[1]).any()
    scene.restore()
    np.testing.assert_allclose(scene.model.geom("btngeom_0").rgba[:3], (0.96, 0.26, 0.33))
    scene.close()


CAMERA = {"u": 0.3, "path": {"period_s": [1.5, 2.0], "phase": [0.1, 0.4]}}


@pytest.fixture(scope="module", params=["static", "moving"])
def clip(scene: Any, request: pytest.FixtureRequest) -> Any:
    scene.restore()
    scene.reset(3)
    states, poses = [], []
    for step in range(33):
        if request.param == "moving":
            scene.follow_camera_path(CAMERA, step / 20)
        states.append(scene.state())
        poses.append(scene.camera_pose())
        scene.step(scene.expert_action())
    steps = [4 + 4 * k for k in range(8)]
    centres = (np.arange(20) + 0.5) * PX / 20
    origins_px = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
    states, poses = [states[i] for i in steps], [poses[i] for i in steps]
    yield scene, states, poses, exact_flow(scene, states, origins_px, poses)
    scene.restore()


class TestExactFlow:
    """Within the tolerances of the other simulator's test."""

    pytestmark = simulated

    def test_points_are_where_later_images_have_them(self, clip: Any) -> None:
        scene, states, poses, flow = clip
        for k in (1, 4, 7):
            scene.set_state(states[k])
            scene.set_camera_pose(poses[k])
            depth_m, bodies = scene.depth_m(), scene.bodies()
            seen = flow.visible[k - 1]
            column, row = np.floor(flow.tracks_px[k - 1][seen]).astype(int).T
            error_m = np.abs(in_camera_k(flow, poses, k)[seen, 2] - depth_m[row, column])
            assert np.median(error_m) < 0.005
            assert (bodies[row, column] == flow.body[seen]).mean() > 0.93

    def test_the_world_stands_still_and_the_drawer_moves(self, clip: Any) -> None:
        scene, _, _, flow = clip
        motion_m = np.linalg.norm(flow.displacement_m[-1], axis=1)
        assert motion_m[flow.valid & (flow.body == 0)].max() < 1e-9
        drawer = flow.body == scene.model.body("drawer_link").id
        assert drawer.sum() >= 3
        assert np.ptp(flow.displacement_m[-1][drawer], axis=0).max() < 0.002
        assert motion_m[drawer].min() > 0.03

    def test_tracks_start_at_their_origins(self, clip: Any) -> None:
        scene, states, poses, flow = clip
        again = exact_flow(scene, [states[0], states[0]], flow.origin_px, [poses[0], poses[0]])
        np.testing.assert_allclose(again.tracks_px[0], flow.origin_px, atol=1e-6)
        np.testing.assert_allclose(again.displacement_m, 0, atol=1e-9)
        assert again.visible[0][again.valid].mean() > 0.97

    def test_a_recording_gives_the_same_flow(self, clip: Any) -> None:
        _, states, poses, flow = clip
        again = exact_flow_for_episode(
            task_id="drawer-open",
            layout_seed=3,
            factors={},
            qpos=np.stack([np.pad(state.qpos, (0, 3)) for state in states]),
            camera_poses=np.stack(poses),
            origins_px=flow.origin_px,
            height_px=PX,
            width_px=PX,
            environment="ogbench",
        )
        np.testing.assert_allclose(again.displacement_m, flow.displacement_m, atol=1e-5)


def in_camera_k(flow: ExactFlow, poses: list[np.ndarray], k: int) -> np.ndarray:
    points = flow.origin_m + flow.displacement_m[k - 1]
    world = points @ poses[0][:3, :3].T + poses[0][:3, 3]
    return (world - poses[k][:3, 3]) @ poses[k][:3, :3]


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = environment("ogbench")
    with pytest.raises(UserError, match="did you mean drawer-open"):
        spec.open("drawer-opn")
    real = builtins.__import__

    def without_ogbench(name: str, *rest: Any, **words: Any) -> Any:
        if name.startswith("ogbench"):
            raise ImportError("No module named 'ogbench'")
        return real(name, *rest, **words)

    monkeypatch.setattr(builtins, "__import__", without_ogbench)
    with pytest.raises(UserError, match=r"run `pip install 'dynaflip\[ogbench\]'`"):
        spec.open("drawer-open")
