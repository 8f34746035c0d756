"""The scene: fast settings, true geometry, perturbation that shows and goes away again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dynaflip.errors import UserError
from dynaflip.eval.envs.metaworld import Scene
from dynaflip.eval.perturbations import FACTORS, sample

pytestmark = pytest.mark.sim
PX = 96


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    scene = Scene("drawer-open-v3", height_px=PX, width_px=PX)
    yield scene
    scene.close()


def act(scene: Scene, layout_seed: int, steps: int) -> np.ndarray:
    observation = scene.reset(layout_seed)
    for _ in range(steps):
        observation = scene.step(scene.expert_action()).observation
    return observation


def test_a_layout_depends_on_its_seed_alone(scene: Scene) -> None:
    act(scene, 5, 20)
    first, state = scene.rgb(), scene.state()
    act(scene, 6, 33)
    assert (scene.rgb() != first).any()
    act(scene, 5, 20)
    np.testing.assert_array_equal(scene.rgb(), first)
    fresh = Scene("drawer-open-v3", height_px=PX, width_px=PX)
    act(fresh, 5, 20)
    np.testing.assert_array_equal(fresh.state().qpos, state.qpos)
    np.testing.assert_array_equal(fresh.rgb(), first)
    fresh.close()


def test_a_state_brings_its_image_back(scene: Scene) -> None:
    act(scene, 5, 40)
    state, image = scene.state(), scene.rgb()
    for _ in range(10):
        scene.step(np.array([1.0, 0, 1, 0]))
    assert (scene.rgb() != image).any()
    scene.set_state(state)
    np.testing.assert_array_equal(scene.rgb(), image)


def test_the_image_is_the_right_way_up(scene: Scene) -> None:
    scene.reset(5)
    down_cam = scene.camera_pose()[:3, :3].T @ np.array([0.0, 0, -1])
    assert down_cam[1] > 0.5  # gravity points down the image
    assert np.linalg.det(scene.camera_pose()[:3, :3]) == pytest.approx(1)


def test_depth_pose_and_intrinsics_agree_with_the_hand(scene: Scene) -> None:
    """Where the hand's pixels lift to is where the simulator says that the hand is."""
    act(scene, 5, 30)
    names = ("hand", "right_hand", "rightpad", "leftpad", "rightclaw", "leftclaw")
    shown = np.isin(scene.bodies(), [scene.model.body(name).id for name in names])
    assert shown.sum() > 30
    rows, columns = np.nonzero(shown)
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones(len(rows))], 1)
    points = (rays @ np.linalg.inv(scene.intrinsics()).T) * scene.depth_m()[shown][:, None]
    pose = scene.camera_pose()
    world = points @ pose[:3, :3].T + pose[:3, 3]
    assert np.linalg.norm(np.median(world, 0) - scene.data.body("hand").xpos) < 0.08


def test_the_camera_can_be_put_anywhere_and_back(scene: Scene) -> None:
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


def test_proprioception_is_hand_and_gripper_and_nothing_else(scene: Scene) -> None:
    """The same hand over another layout gives the same proprioception."""
    scene.reset(5)
    before = scene.proprioception()
    assert before.shape == (4,)
    object_before = scene.privileged()["object_position_m"]
    drawer = scene.model.body("drawer")
    scene.model.body_pos[drawer.id, 0] += 0.05
    scene.set_state(scene.state())
    np.testing.assert_array_equal(scene.proprioception(), before)
    assert not np.array_equal(scene.privileged()["object_position_m"], object_before)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_shows_and_is_taken_back_bit_for_bit(scene: Scene, factor: str) -> None:
    act(scene, 5, 30)
    scene.restore()
    image, depth_m = scene.rgb().astype(int), scene.depth_m()
    changed_share = []
    for level in (1, 5):
        scene.apply(sample("dev", 3, [factor], level))
        changed_share.append((np.abs(scene.rgb().astype(int) - image).max(-1) > 10).mean())
        moves_pixels = factor in ("camera", "distractors")
        assert (np.abs(scene.depth_m() - depth_m) > 0.001).any() == moves_pixels
    # One small thing on the table at the least, and more of the image (or as much, where a
    # factor is about one part of it) when it is strong.
    assert changed_share[0] > 0.003
    assert changed_share[1] >= changed_share[0]
    assert changed_share[1] > 0.03
    scene.restore()
    np.testing.assert_array_equal(scene.rgb(), image)
    np.testing.assert_array_equal(scene.depth_m(), depth_m)


def test_pretraining_looks_show_too(scene: Scene) -> None:
    scene.reset(5)
    image = scene.rgb().astype(int)
    for seed in range(3):
        scene.apply(sample("pretrain", seed))
        assert np.abs(scene.rgb().astype(int) - image).mean() > 2
    scene.restore()
    np.testing.assert_array_equal(scene.rgb(), image)


def test_applying_replaces_what_was_applied(scene: Scene) -> None:
    scene.reset(5)
    scene.apply(sample("dev", 0, ["light_tint"]))
    once = scene.rgb()
    scene.apply(sample("dev", 1))
    scene.apply(sample("dev", 0, ["light_tint"]))
    np.testing.assert_array_equal(scene.rgb(), once)
    scene.restore()


FOG, NOTHING = "class:outside_environment:FOG", "class:outside_environment:NOTHING"


def test_an_outsiders_factor_acts_on_the_image_and_not_on_its_depth(scene: Scene) -> None:
    scene.reset(5)
    scene.restore()
    image, depth_m = scene.rgb_and_depth()
    scene.apply(sample("dev", 0, [FOG], 5))
    fogged, same_m = scene.rgb_and_depth()
    assert fogged.mean() > image.mean() + 20
    np.testing.assert_array_equal(same_m, depth_m)
    scene.restore()
    np.testing.assert_array_equal(scene.rgb(), image)
    with pytest.raises(UserError, match="NOTHING changes no pixel of metaworld's task drawer-open"):
        scene.apply(sample("dev", 0, [NOTHING]))
    np.testing.assert_array_equal(scene.rgb(), image)


def test_distractors_are_in_the_segmentation_and_leave_the_task_in_view(scene: Scene) -> None:
    act(scene, 5, 40)
    scene.restore()
    plain = scene.segmentation()
    scene.apply(sample("test", 2, ["distractors"], 5))
    ids = scene.segmentation()
    assert (ids <= -2).any()
    assert (scene.bodies()[ids <= -2] == 0).all()
    untouched = ids > -2
    np.testing.assert_array_equal(ids[untouched], plain[untouched])
    hand_and_object = [scene.model.body(n).id for n in ("hand", "drawer_link", "drawercase_link")]
    scene.restore()
    task = np.isin(scene.bodies(), hand_and_object)
    assert (untouched & task).sum() > 0.8 * task.sum()


def test_perturbed_images_cost_what_plain_ones_do(scene: Scene) -> None:
    import time

    def cost_s(images: int = 12) -> float:
        times = []
        for _ in range(images):
            start = time.process_time()
            scene.rgb()
            times.append(time.process_time() - start)
        return float(np.median(times))

    scene.reset(5)
    scene.restore()
    plain_s = cost_s()
    scene.apply(sample("pretrain", 0))
    assert cost_s() < 2 * plain_s
    scene.restore()


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean drawer-open-v3"):
        Scene("drawer-opn-v3")
    with pytest.raises(UserError, match="no camera corner9"):
        Scene("drawer-open-v3", camera="corner9")


def test_without_a_display_one_line_says_what_to_install() -> None:
    import os
    import subprocess
    import sys

    code = (
        "from dynaflip.errors import UserError\n"
        "from dynaflip.eval.envs.metaworld import Scene\n"
        "try:\n    Scene('drawer-open-v3')\nexcept UserError as e:\n    print(e)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "__EGL_VENDOR_LIBRARY_DIRS": "/nowhere"},  # no driver is found there
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "apt-get install -y libegl1 libgl1-mesa-dri" in result.stdout
    assert len((result.stdout + result.stderr).strip().splitlines()) == 1, result.stderr
