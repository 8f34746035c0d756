"""OGBench's scene, beyond what ``test_simulator_contract.py`` asks of every simulator."""

from __future__ import annotations

import builtins
import importlib.util
from typing import Any

import numpy as np
import pytest

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env
from dynaflip.eval.envs.registry import environment
from dynaflip.eval.perturbations import layout_seed, sample

PX = 96
installed = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None,
    reason="OGBench is not installed: pip install 'dynaflip[ogbench]'",
)


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


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = environment("ogbench")
    real = builtins.__import__

    def without_ogbench(name: str, *rest: Any, **words: Any) -> Any:
        if name.startswith("ogbench"):
            raise ImportError("No module named 'ogbench'")
        return real(name, *rest, **words)

    monkeypatch.setattr(builtins, "__import__", without_ogbench)
    with pytest.raises(UserError, match=r"run `pip install 'dynaflip\[ogbench\]'`"):
        spec.open("drawer-open")
