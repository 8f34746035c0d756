"""The harness is right: the scripted expert solves what it should through it."""

from __future__ import annotations

import pytest

from dynaflip.eval.envs.metaworld import Scene
from dynaflip.eval.envs.metaworld_tasks import TASK_SETS
from dynaflip.eval.perturbations import layout_seed
from dynaflip.eval.policies.random_policy import RandomPolicy
from dynaflip.eval.rollout import EpisodeStart, roll_out

ALL = sorted({task for tasks in TASK_SETS.values() for task in tasks})
EPISODES = 20


def expert_success(task: str, horizon_steps: int) -> float:
    """Share of ``dev``'s initial states that the expert solves."""
    scene = Scene(task, height_px=32, width_px=32)
    starts = [EpisodeStart(layout_seed("dev", index), {}) for index in range(EPISODES)]
    results = roll_out([scene], starts, None, horizon_steps=horizon_steps, steps_after_success=0)
    scene.close()
    solved = [result for result in results if result.success_ever]
    for goal in (result.goal for result in solved):
        assert goal.nearest_m < goal.start_m, f"{task}: solved, and further from the goal"
    return len(solved) / EPISODES


@pytest.mark.slow
@pytest.mark.sim
def test_random_actions_solve_next_to_nothing() -> None:
    rates = {}
    for task in ALL:
        scene = Scene(task, height_px=32, width_px=32)
        starts = [EpisodeStart(layout_seed("dev", index), {}) for index in range(10)]
        policy = RandomPolicy(0, scene.spec.action_dim)
        results = roll_out([scene], starts, policy, horizon_steps=150, steps_after_success=0)
        scene.close()
        rates[task] = sum(result.success_ever for result in results) / len(results)
    print(f"\n{rates}")
    assert sum(rates[task] for task in TASK_SETS["r3m5"]) / 5 <= 0.02
    assert sum(rates.values()) / len(rates) <= 0.1, rates


@pytest.mark.slow
@pytest.mark.sim
def test_the_expert_solves_the_suites_within_the_horizon() -> None:
    rates = {}
    for task in ALL:
        rates[task] = expert_success(task, horizon_steps=150)
        print(f"\n{task}: {rates[task]:.2f}")
    assert min(rates.values()) >= 0.75, rates
    for name in ("r3m5", "mt10"):
        tasks = TASK_SETS[name]
        assert sum(rates[task] for task in tasks) / len(tasks) >= 0.95, name
