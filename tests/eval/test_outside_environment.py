"""What an outsider adds without touching this package: an environment, a factor."""

from __future__ import annotations

import numpy as np
import outside_environment as outside
import pytest

from dynaflip.errors import UserError
from dynaflip.eval import perturbations
from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.envs.gymnasium_env import GymnasiumEnv
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, ENVIRONMENTS, environment
from dynaflip.eval.policies.random_policy import RandomPolicy
from dynaflip.eval.rollout import EpisodeStart, Observation, roll_out

REACH = "class:outside_environment:ENVIRONMENT"
FOG, NOTHING = "class:outside_environment:FOG", "class:outside_environment:NOTHING"


def test_settings_that_name_no_environment_mean_the_one_marked_as_default() -> None:
    assert DEFAULT_ENVIRONMENT == "metaworld"
    assert list(ENVIRONMENTS.table) == ["metaworld", "ogbench"]


def test_what_is_known_of_the_built_in_environment_needs_no_simulator() -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from dynaflip.eval.envs.registry import environment\n"
        "spec = environment('metaworld')\n"
        "assert len(spec.tasks_of(['mw15'])) == 15 and spec.tasks_of(['reach']) == ('reach-v3',)\n"
        "print({'numpy', 'torch', 'mujoco', 'metaworld'} & set(sys.modules))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_an_outsiders_environment_is_rolled_out_by_its_expert_and_by_a_policy() -> None:
    spec = environment(REACH)
    scenes = [spec.open("reach", height_px=32, width_px=32) for _ in range(3)]
    starts = [EpisodeStart(perturbations.layout_seed("dev", i), {}) for i in range(5)]
    options = {"horizon_steps": 30, "steps_after_success": 2}
    by_expert = roll_out(scenes, starts, None, record_first=True, **options)
    assert all(result.success_ever and result.steps < 20 for result in by_expert)
    assert by_expert[0].images[0].shape == (32, 32, 3)
    for result in by_expert:
        assert result.goal.start_m > 0.15 >= result.goal.nearest_m
        assert result.goal.nearest_step > 0
        assert result.goal.nearest_m <= result.goal.end_m
    blind = roll_out(scenes, starts, RandomPolicy(0, spec.action_dim), **options)
    assert sum(result.success_ever for result in blind) < 5


def test_a_policy_of_another_width_is_refused() -> None:
    spec = environment(REACH)
    scenes = [spec.open("reach", height_px=32, width_px=32)]
    with pytest.raises(UserError, match=r"not \(1, steps, 2\)"):
        roll_out(
            scenes,
            [EpisodeStart(0, {})],
            RandomPolicy(0, 4),
            horizon_steps=5,
            steps_after_success=0,
        )


def test_an_outsiders_factor_is_drawn_applied_recorded_and_taken_back() -> None:
    scene = environment(REACH).open("reach", height_px=32, width_px=32)
    scene.reset(1)
    plain = scene.rgb()
    for split in perturbations.SPLITS:
        values = perturbations.sample(split, 3, [FOG], 5)
        assert [s for s in perturbations.SPLITS if perturbations.belongs_to(values, s)] == [split]
        scene.apply(values)
        assert scene.rgb().mean() > plain.mean()
        scene.restore()
        np.testing.assert_array_equal(scene.rgb(), plain)
    # It does not shift the draws of the others.
    alone = perturbations.sample("dev", 3, ["camera"], 5)
    assert perturbations.sample("dev", 3, [FOG, "camera"], 5)["camera"] == alone["camera"]


def test_a_factor_that_changes_no_pixel_is_refused() -> None:
    scene = environment(REACH).open("reach", height_px=32, width_px=32)
    with pytest.raises(UserError, match="NOTHING changes no pixel of reach's task reach"):
        scene.apply(perturbations.sample("dev", 0, [NOTHING]))


def test_what_an_environment_lacks_is_one_line() -> None:
    spec = environment(REACH)
    scene = spec.open("reach", height_px=32, width_px=32)
    with pytest.raises(UserError, match="reach has no depth"):
        scene.rgb_and_depth()
    with pytest.raises(UserError, match="reach cannot show the factor camera"):
        spec.check_factors(["camera"])
    with pytest.raises(UserError, match="did you mean camera"):
        environment("metaworld").check_factors(["camra"])
    with pytest.raises(UserError, match=r"tasks: reach has no task or set fly.*tasks: reach"):
        spec.tasks_of(["fly"])
    with pytest.raises(UserError, match="no task or set drawer-opne; did you mean drawer-open-v3"):
        environment("metaworld").tasks_of(["drawer-opne"])
    with pytest.raises(UserError, match=r"no environment 'metawrld'; did you mean metaworld.*gym:"):
        environment("metawrld")
    with pytest.raises(UserError, match="FOG is a Factor, not an EnvironmentSpec"):
        environment(FOG)
    assert outside.FOG is perturbations.factor(FOG)


def test_a_factor_of_a_downloaded_recording_runs_no_code() -> None:
    """Its magnitude still tells the split, so that evaluation's looks are not learnt from."""
    values = {"class:not_installed_anywhere:FOG": {"u": 0.1}}
    assert perturbations.belongs_to(values, "pretrain")
    assert not perturbations.belongs_to(values, "dev")
    assert not perturbations.belongs_to({"unheard_of": {"u": 0.1}}, "pretrain")


def test_evaluations_of_before_a_factor_need_not_cover_it() -> None:
    before = perturbations.recorded_factors(None)
    assert before == perturbations.recorded_factors(perturbations.factors_to_record(before))
    assert len(before) == 10


class Corridor:
    """As Gymnasium has its environments: walk to the right end of a line."""

    def __init__(self, height: int, width: int) -> None:
        self.size, self.x, self.closed = (height, width), 0.0, False

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict]:
        self.x = np.random.default_rng(seed).uniform(-0.9, 0.0)
        return np.array([self.x]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.x += 0.3 * float(action[0])
        lost = self.x < -1
        info = {"is_success": self.x > 1, "goal_distance_m": max(0.0, 1 - self.x)}
        return np.array([self.x]), self.x, lost, False, info

    def render(self) -> np.ndarray:
        image = np.zeros((*self.size, 3), np.uint8)
        image[:, : int((self.x + 1) / 2.5 * self.size[1])] = 200
        return image

    def close(self) -> None:
        self.closed = True


def corridor(px: int) -> GymnasiumEnv:
    def make(task: str, *, height_px: int, width_px: int, camera: str) -> GymnasiumEnv:
        return GymnasiumEnv(
            Corridor(px, px),
            task,
            height_px=height_px,
            width_px=width_px,
            camera=camera,
            success=lambda info: info["is_success"],
            proprioception=lambda observation, info: observation,
            expert=lambda observation, info: np.ones(1),
        )

    spec = EnvironmentSpec(
        name="corridor",
        make=make,
        captions={"right": ("walk to the right",)},
        action_names=("speed",),
        proprioception_names=("x",),
        control_hz=10.0,
        horizon_steps=20,
        camera="side",
    )
    return spec.open("right", height_px=32, width_px=32)


def test_a_gymnasium_environment_is_rolled_out_and_its_end_ends_the_episode() -> None:
    scene = corridor(32)
    starts = [EpisodeStart(seed, {}) for seed in range(3)]
    options = {"horizon_steps": 20, "steps_after_success": 0}
    assert all(result.success_ever for result in roll_out([scene], starts, None, **options))

    class Left:
        def act(self, observation: Observation) -> np.ndarray:
            return -np.ones((len(observation.images), 5, 1), np.float32)

    for result in roll_out([scene], starts, Left(), **options):
        assert not result.success_ever
        assert result.steps <= 4  # it left the corridor
        assert result.goal.end_m > 2 > result.goal.nearest_m
    scene.close()
    assert scene.raw.closed
    with pytest.raises(UserError, match=r"renders uint8 of shape \(16, 16, 3\)"):
        corridor(16).rgb()
