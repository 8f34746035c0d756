"""Meta-World's scene, beyond what ``test_simulator_contract.py`` asks of every simulator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from dynaflip.errors import UserError
from dynaflip.eval.envs.metaworld import Scene
from dynaflip.eval.perturbations import sample

pytestmark = pytest.mark.sim
PX = 96


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    scene = Scene("drawer-open-v3", height_px=PX, width_px=PX)
    yield scene
    scene.close()


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
