"""The simulators behind the contract, with what their common tests need to know of each."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np
import pytest

from dynaflip.eval.envs.mujoco_scene import MujocoScene
from dynaflip.eval.envs.registry import environment


@dataclass(frozen=True)
class Simulator:
    """A simulator's drawer: how long things take in it, and what its camera sees of it."""

    name: str
    task: str
    package: str
    approach_steps: int  # until the hand has left its place, and the drawer its own
    pull_steps: tuple[int, ...]  # the eight moments of a flow window
    bodies: tuple[str, ...]  # that move as one with the first, and are in view
    body_reach_m: float  # how far the middle of what is seen of them may be from the first
    sees_sky: bool  # points at no distance
    strong_share: float  # of pixels that the strongest value of any factor changes

    def open(self, size_px: int) -> MujocoScene:
        """The drawer's scene."""
        scene = environment(self.name).open(self.task, height_px=size_px, width_px=size_px)
        assert isinstance(scene, MujocoScene)
        return scene


SIMULATORS = (
    Simulator(
        name="metaworld",
        task="drawer-open-v3",
        package="metaworld",
        approach_steps=30,
        pull_steps=tuple(60 + round(k * 40 / 7) for k in range(8)),
        bodies=("hand", "right_hand", "rightpad", "leftpad", "rightclaw", "leftclaw"),
        body_reach_m=0.08,
        sees_sky=True,
        strong_share=0.03,
    ),
    Simulator(
        name="ogbench",
        task="drawer-open",
        package="ogbench",
        approach_steps=18,
        pull_steps=tuple(4 + 4 * k for k in range(8)),
        bodies=("drawer_link",),
        body_reach_m=0.1,
        sees_sky=False,
        strong_share=0.02,
    ),
)


def parameters() -> list[object]:
    """The simulators as parameters of a test or fixture, skipped where one is not installed."""
    return [
        pytest.param(
            simulator,
            id=simulator.name,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(simulator.package) is None,
                reason=f"pip install 'dynaflip[{simulator.package}]'",
            ),
        )
        for simulator in SIMULATORS
    ]


def act(scene: MujocoScene, seed: int, steps: int) -> np.ndarray:
    """The privileged observation after some steps of the expert."""
    observation: np.ndarray = scene.reset(seed)
    for _ in range(steps):
        observation = scene.step(scene.expert_action()).observation
    return observation
