"""Policies in the simulator: many episodes in lockstep, one batch of images a step.

A policy sees an :class:`Observation` and nothing else. The one exception is the scripted
expert (policy None), which reads the simulator's state and is there to check the harness.
Legend of shapes: B episodes, H, W image size, T steps of a chunk, A action width, P width of
proprioception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env


@dataclass(frozen=True)
class Observation:
    """What policies may know."""

    images: np.ndarray  # (B, H, W, 3) uint8
    proprioception: np.ndarray  # (B, P) float32


class Policy(Protocol):
    """Acts for a batch of episodes; has no memory of its own."""

    def act(self, observation: Observation) -> np.ndarray:
        """(B, T, A) float32: the actions of the next T steps; then the next image is read."""
        ...


@dataclass(frozen=True)
class EpisodeStart:
    """The initial state of an episode and its perturbation: the same for every policy."""

    layout_seed: int
    factors: dict[str, Any]  # of dynaflip.eval.perturbations; {} is unperturbed


@dataclass
class GoalDistance:
    """How far the object was from its goal in an episode, metres."""

    start_m: float
    nearest_m: float
    nearest_step: int  # after so many steps
    end_m: float


@dataclass
class EpisodeResult:
    """How an episode went."""

    success_ever: bool = False
    success_last: bool = False
    steps: int = 0
    goal: GoalDistance | None = None  # where the environment knows it
    images: list[np.ndarray] = field(default_factory=list)  # (H, W, 3) uint8, where asked for


def roll_out(
    scenes: Sequence[Env],
    starts: Sequence[EpisodeStart],
    policy: Policy | None,
    *,
    horizon_steps: int,
    steps_after_success: int,
    record_first: bool = False,
    record_every: int = 3,
) -> list[EpisodeResult]:
    """Run episodes, as many at a time as there are scenes.

    An episode ends ``steps_after_success`` steps after it is first solved, and after
    ``horizon_steps`` at the latest; ``success_last`` is whether it is solved at its last step.

    Args:
        scenes: of one task, unperturbed; unperturbed again afterwards.
        starts: the episodes.
        policy: None lets the scripted expert act, which is told where everything is.
        horizon_steps: longest episode, control steps.
        steps_after_success: see above.
        record_first: keep images of the first episode.
        record_every: one image in so many steps.
    """
    results = [EpisodeResult() for _ in starts]
    for begin in range(0, len(starts), len(scenes)):
        chosen = range(begin, min(begin + len(scenes), len(starts)))
        running = [
            _Running(scenes[i - begin], starts[i], results[i], record_first and i == 0)
            for i in chosen
        ]
        try:
            for episode in running:
                episode.begin()
            _run_together(running, policy, horizon_steps, steps_after_success, record_every)
        finally:
            for episode in running:
                episode.scene.restore()
    return results


def see(scene: Env) -> np.ndarray:
    """What policies are shown of a scene: (H, W, 3) uint8, as videos of demonstrations store it."""
    # Here, so that a policy in use needs no video library.
    from dynaflip.eval.labelled_frames import as_recorded

    return as_recorded(scene.rgb())


class _Running:
    """One episode under way."""

    def __init__(
        self, scene: Env, start: EpisodeStart, result: EpisodeResult, recorded: bool
    ) -> None:
        self.scene, self.start, self.result, self.recorded = scene, start, result, recorded
        self.solved_at: int | None = None
        self.ended = False  # by the simulator

    def begin(self) -> None:
        self.scene.reset(self.start.layout_seed)
        self._measure()
        self.scene.apply(self.start.factors)

    def step(self, action: np.ndarray) -> None:
        after = self.scene.step(action)
        solved, result = after.success, self.result
        self.ended |= after.ended
        result.steps += 1
        result.success_last = solved
        result.success_ever |= solved
        self._measure()
        if solved and self.solved_at is None:
            self.solved_at = result.steps

    def _measure(self) -> None:
        """Note how far the object is from its goal."""
        distance_m, result = self.scene.goal_distance_m(), self.result
        if distance_m is None:
            return
        if result.goal is None:
            result.goal = GoalDistance(distance_m, distance_m, result.steps, distance_m)
        result.goal.end_m = distance_m
        if distance_m < result.goal.nearest_m:
            result.goal.nearest_m, result.goal.nearest_step = distance_m, result.steps

    def over(self, horizon_steps: int, steps_after_success: int) -> bool:
        if self.ended:
            return True
        if self.solved_at is not None:
            return self.result.steps >= min(horizon_steps, self.solved_at + steps_after_success)
        return self.result.steps >= horizon_steps


def _run_together(
    running: list[_Running],
    policy: Policy | None,
    horizon_steps: int,
    steps_after_success: int,
    record_every: int,
) -> None:
    active = list(running)
    while active:
        plans = _expert(active) if policy is None else _ask(policy, active)
        for step in range(plans.shape[1]):
            for episode, plan in zip(active, plans, strict=True):
                if episode.over(horizon_steps, steps_after_success):
                    continue
                if episode.recorded and episode.result.steps % record_every == 0:
                    episode.result.images.append(episode.scene.rgb())
                episode.step(plan[step])
        active = [e for e in active if not e.over(horizon_steps, steps_after_success)]


def _expert(active: list[_Running]) -> np.ndarray:
    return np.stack([episode.scene.expert_action() for episode in active])[:, None]


def _ask(policy: Policy, active: list[_Running]) -> np.ndarray:
    images = np.stack([see(episode.scene) for episode in active])
    proprioception = np.stack([episode.scene.proprioception() for episode in active])
    plans = policy.act(Observation(images, proprioception))
    width = active[0].scene.spec.action_dim
    if plans.ndim != 3 or plans.shape[0] != len(active) or plans.shape[2] != width:
        raise UserError(
            f"policy: for {len(active)} episodes it gave actions of shape {plans.shape}, "
            f"not ({len(active)}, steps, {width})"
        )
    return plans
