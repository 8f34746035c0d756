"""Policies in the simulator: many episodes in lockstep, one batch of images a step.

Where images are encoded elsewhere, scenes are in several groups: while one group's images are on
their way, the others step and render.

A policy sees an :class:`Observation` and nothing else. The one exception is the scripted
expert (policy None), which reads the simulator's state and is there to check the harness.
Legend of shapes: B episodes, H, W image size, T steps of a chunk, A action width, P width of
proprioception.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env


@dataclass(frozen=True)
class Observation:
    """The observation that policies act on."""

    images: np.ndarray  # (B, H, W, 3) uint8
    proprioception: np.ndarray  # (B, P) float32


class Policy(Protocol):
    """Acts for a batch of episodes; has no memory of its own.

    One whose images are encoded elsewhere also has ``ask(observation)``: it sends them off, and
    returns a function that waits for what :meth:`act` gives.
    """

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
    """Distances of the object from its goal in an episode, metres."""

    start_m: float
    nearest_m: float
    nearest_step: int  # after so many steps
    end_m: float


@dataclass
class EpisodeResult:
    """Result of an episode."""

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
    groups: int = 1,
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
        groups: of scenes, each in lockstep: while one waits for its images, the others go on.
    """
    episodes = [_Running(one, record_first and i == 0) for i, one in enumerate(starts)]
    waiting, length = iter(episodes), _Length(horizon_steps, steps_after_success, record_every)
    shares = [scenes[i::groups] for i in range(min(groups, len(scenes)))]
    turns = [_run_in_turn(share, waiting, policy, length) for share in shares]
    under_way = list(turns)
    try:
        while under_way:
            under_way = [turn for turn in under_way if next(turn, _OVER) is not _OVER]
    finally:
        for turn in turns:
            turn.close()
    return [episode.result for episode in episodes]


class _Length(NamedTuple):
    """How long episodes are, and how often they are recorded."""

    horizon_steps: int
    steps_after_success: int
    record_every: int


_OVER = object()


def see(scene: Env) -> np.ndarray:
    """The image that policies are shown of a scene: (H, W, 3) uint8, as videos store it."""
    # Here, so that a policy in use needs no video library.
    from dynaflip.eval.labelled_frames import as_recorded

    return as_recorded(scene.rgb())


class _Running:
    """An episode to come, under way, or over."""

    scene: Env  # once it has begun

    def __init__(self, start: EpisodeStart, recorded: bool) -> None:
        self.start, self.recorded, self.result = start, recorded, EpisodeResult()
        self.solved_at: int | None = None
        self.ended = False  # by the simulator

    def begin(self, scene: Env) -> None:
        self.scene = scene
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

    def over(self, length: _Length) -> bool:
        if self.ended:
            return True
        if self.solved_at is not None:
            last = self.solved_at + length.steps_after_success
            return self.result.steps >= min(length.horizon_steps, last)
        return self.result.steps >= length.horizon_steps


def _run_in_turn(
    scenes: Sequence[Env], waiting: Iterator[_Running], policy: Policy | None, length: _Length
) -> Generator[None, None, None]:
    """Run waiting episodes in lockstep, as many as there are scenes, until none is left.

    Yields where images have been sent off.
    """
    while running := list(islice(waiting, len(scenes))):
        pairs = list(zip(scenes, running, strict=False))
        try:
            for scene, episode in pairs:
                episode.begin(scene)
            active = list(running)
            while active:
                plans = _begin_plans(policy, active)
                yield
                _follow(plans(), active, length)
                active = [e for e in active if not e.over(length)]
        finally:
            for scene, _ in pairs:
                scene.restore()


def _follow(plans: np.ndarray, active: list[_Running], length: _Length) -> None:
    """Take the planned steps (B, T, A), each episode until it is over."""
    for step in range(plans.shape[1]):
        for episode, plan in zip(active, plans, strict=True):
            if episode.over(length):
                continue
            if episode.recorded and episode.result.steps % length.record_every == 0:
                episode.result.images.append(episode.scene.rgb())
            episode.step(plan[step])


def _begin_plans(policy: Policy | None, active: list[_Running]) -> Callable[[], np.ndarray]:
    """Show a policy the episodes' images; the answer is a function that gives its plans."""
    if policy is None:
        plans = np.stack([episode.scene.expert_action() for episode in active])[:, None]
        return lambda: plans
    images = np.stack([see(episode.scene) for episode in active])
    proprioception = np.stack([episode.scene.proprioception() for episode in active])
    observation = Observation(images, proprioception)
    ask = getattr(policy, "ask", None)
    answer = partial(policy.act, observation) if ask is None else ask(observation)
    return lambda: _checked(answer(), active)


def _checked(plans: np.ndarray, active: list[_Running]) -> np.ndarray:
    width = active[0].scene.spec.action_dim
    if plans.ndim != 3 or plans.shape[0] != len(active) or plans.shape[2] != width:
        raise UserError(
            f"policy: for {len(active)} episodes it gave actions of shape {plans.shape}, "
            f"not ({len(active)}, steps, {width})"
        )
    return plans
