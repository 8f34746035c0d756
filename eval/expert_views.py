"""The same moments of an expert's episode, rendered unperturbed and under perturbation.

States are recorded once and restored for every condition, so that conditions differ
in appearance alone and their errors can be compared pair by pair. Layouts and factor
values come from one evaluation split (``dev``, ``test``), never from ``pretrain``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval import perturbations
from dynaflip.eval.envs import registry as environments
from dynaflip.eval.envs.base import Env
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT

# Raised when what is rendered for the same plan changes, so that caches are made anew.
RENDER_VERSION = 3
UNPERTURBED = "none"
ALL_FACTORS = "all"


@dataclass(frozen=True)
class EpisodePlan:
    """One expert episode to render: everything is decided here, before any rendering."""

    task: str
    split: str
    layout_seed: int
    frames: int  # moments, evenly spaced from the first step to the last
    frames_a_factor: int  # of these, evenly spaced, for each factor alone
    horizon_steps: int  # the expert gives up after so many control steps
    height_px: int
    width_px: int
    camera: str
    conditions: dict[str, dict[str, Any]]  # name → factor values; {} is unperturbed
    render_version: int = RENDER_VERSION
    environment: str = DEFAULT_ENVIRONMENT

    @property
    def episode(self) -> str:
        """A name that is unique within a split."""
        return f"{self.task}/{self.split}/{self.layout_seed}"

    def single_factors(self) -> tuple[str, ...]:
        """The conditions that show one factor alone."""
        return tuple(n for n in self.conditions if n not in (UNPERTURBED, ALL_FACTORS))

    def digest(self) -> str:
        """Equal for plans that give the same images."""
        recipe = asdict(self)
        if self.environment == DEFAULT_ENVIRONMENT:
            del recipe["environment"]  # as before there were others
        else:
            recipe["versions"] = environments.environment(self.environment).versions()
        text = json.dumps(recipe, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class View:
    """One image with its simulator labels."""

    task: str
    episode: str
    condition: str
    factors: dict[str, Any]
    frame: int  # 0 … frames − 1 within the episode
    image: np.ndarray  # (H, W, 3) uint8
    hand_m: np.ndarray  # (3,) end effector, world frame
    object_m: np.ndarray  # (3,) the task's object, world frame
    joints_rad: np.ndarray  # (7,) the arm's joints
    success: bool  # of the episode


def plan_episode(
    task: str,
    index: int,
    *,
    split: str,
    level: int,
    factors: tuple[str, ...],
    frames: int,
    frames_a_factor: int,
    horizon_steps: int,
    size_px: tuple[int, int],
    camera: str,
    seed: int = 0,
    environment: str = DEFAULT_ENVIRONMENT,
) -> EpisodePlan:
    """Draw an episode's layout and, for each condition, its factor values.

    Conditions: unperturbed, all factors together, and each of ``factors`` alone.

    Args:
        task: its id.
        index: of the episode within the task; chooses its layout.
        split: ``dev`` or ``test``.
        level: strength, 1…5.
        factors: those that are also shown alone.
        frames: moments of the episode, shown unperturbed and under all factors.
        frames_a_factor: how many of these are shown under each factor alone.
        horizon_steps: longest episode.
        size_px: (height, width).
        camera: camera of the scene.
        seed: changes every draw of values.
        environment: name of the simulator.
    """
    assert split != "pretrain", "an evaluation must not show what pretraining may have seen"

    spec = environments.environment(environment)

    def draw(condition: str, chosen: tuple[str, ...]) -> dict[str, Any]:
        text = f"{seed}/{task}/{index}/{condition}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return perturbations.sample(split, number, factors=chosen, level=level)

    conditions = {UNPERTURBED: {}, ALL_FACTORS: draw(ALL_FACTORS, spec.factors)}
    conditions |= {name: draw(name, (name,)) for name in factors}
    return EpisodePlan(
        task=task,
        split=split,
        layout_seed=perturbations.layout_seed(split, index),
        frames=frames,
        frames_a_factor=min(frames, frames_a_factor),
        horizon_steps=horizon_steps,
        height_px=size_px[0],
        width_px=size_px[1],
        camera=camera,
        conditions=conditions,
        environment=environment,
    )


def open_scene(plan: EpisodePlan) -> Env:
    """The scene that a plan, and every other of its task and size, is rendered with."""
    return environments.environment(plan.environment).open(
        plan.task, height_px=plan.height_px, width_px=plan.width_px, camera=plan.camera
    )


def render(plan: EpisodePlan, scene: Env) -> Iterator[View]:
    """Run the expert, then show the chosen moments under every condition.

    Args:
        plan: what to render.
        scene: of the plan's task, size and camera; unperturbed afterwards.
    """
    moments, success = _roll_out_expert(plan, scene)
    for condition, factors in plan.conditions.items():
        scene.apply(factors)
        alone = condition in plan.single_factors()
        for frame in _evenly_spaced(len(moments), plan.frames_a_factor if alone else plan.frames):
            state, hand_m, object_m, joints_rad = moments[frame]
            scene.set_state(state)
            yield View(
                task=plan.task,
                episode=plan.episode,
                condition=condition,
                factors=factors,
                frame=frame,
                image=scene.rgb(),
                hand_m=hand_m,
                object_m=object_m,
                joints_rad=joints_rad,
                success=success,
            )
        scene.restore()


def act_as_expert(scene: Env, seconds: float) -> None:
    """Let the expert act for so long, or until the task is solved or the episode has ended."""
    for _ in range(max(1, round(seconds * scene.spec.control_hz))):
        after = scene.step(scene.expert_action())
        if after.success or after.ended:
            break


def _roll_out_expert(plan: EpisodePlan, scene: Env) -> tuple[list[tuple[Any, Any, Any, Any]], bool]:
    """(state, hand, object, joints) at the plan's moments, and whether the task was solved."""
    scene.reset(plan.layout_seed)
    success = False
    moments = [_moment(scene)]
    for _ in range(plan.horizon_steps):
        after = scene.step(scene.expert_action())
        success = after.success
        moments.append(_moment(scene))
        if success or after.ended:
            break
    return [moments[i] for i in _evenly_spaced(len(moments), plan.frames)], success


def _moment(scene: Env) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray]:
    known = scene.privileged()
    if not {"object_position_m", "joint_angles"} <= {*known}:
        raise UserError(
            f"environment: {scene.spec.name} has no labels object_position_m and joint_angles, "
            f"which probes predict; evaluate with a suite of policies"
        )
    hand_m = scene.proprioception()[:3]
    return scene.state(), hand_m, known["object_position_m"], known["joint_angles"]


def _evenly_spaced(number: int, chosen: int) -> list[int]:
    """``chosen`` evenly spaced indices of ``number``, both ends among them."""
    return np.linspace(0, number - 1, chosen).round().astype(int).tolist()
