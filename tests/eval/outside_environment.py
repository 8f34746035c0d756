"""An environment and its factors as somebody outside would write them: numpy alone.

A red hand and a green object on a table seen from above; the task is to bring the hand to the
object. Used through ``class:outside_environment:ENVIRONMENT`` and the factors below.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynaflip.eval.envs.base import Env, EnvironmentSpec, StepResult
from dynaflip.eval.perturbations import Factor


class Reach(Env):
    """Positions are in [-1, 1]; a step moves the hand by at most 0.2."""

    def __init__(self, task: str, *, height_px: int, width_px: int, camera: str) -> None:
        super().__init__(task, height_px=height_px, width_px=width_px, camera=camera)
        self.hand, self.object = np.zeros(2), np.zeros(2)
        self.table = np.full(3, 90, np.uint8)

    def reset(self, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        self.hand, self.object = rng.uniform(-0.9, 0.9, (2, 2))
        return np.concatenate([self.hand, self.object])

    def step(self, action: np.ndarray) -> StepResult:
        self.hand = np.clip(self.hand + 0.2 * np.clip(action[:2], -1, 1), -1, 1)
        distance = float(np.linalg.norm(self.hand - self.object))
        state = np.concatenate([self.hand, self.object])
        return StepResult(state, reward=-distance, success=distance < 0.15)

    def render(self) -> np.ndarray:
        image = np.tile(self.table, (self.height_px, self.width_px, 1))
        for position, colour in ((self.object, (0, 200, 0)), (self.hand, (220, 0, 0))):
            row, column = (0.5 * (position[::-1] + 1) * (self.height_px - 9)).astype(int)
            image[row : row + 8, column : column + 8] = colour
        return image

    def proprioception(self) -> np.ndarray:
        return np.array([*self.hand, 0.0], np.float32)

    def expert_action(self) -> np.ndarray:
        return np.clip((self.object - self.hand) / 0.2, -1, 1).astype(np.float32)

    def goal_distance_m(self) -> float:
        return float(np.linalg.norm(self.hand - self.object))

    def privileged(self) -> dict[str, np.ndarray]:
        return {"object_position_m": np.array([*self.object, 0.0], np.float32)}


ENVIRONMENT = EnvironmentSpec(
    name="reach",
    make=Reach,
    captions={"reach": ("reach the green block", "go to the green block")},
    action_names=("x", "y"),
    proprioception_names=("x", "y", "z"),
    control_hz=20.0,
    horizon_steps=40,
    camera="top",
    noise_dims=2,
)


def _fog(env: Env, value: Any, amount: dict[str, float]) -> None:
    share = amount["share"]
    env.image_filters.append(lambda image: (image * (1 - share) + 255 * share).astype(np.uint8))


# Acts on the image, so that it is one factor for every environment.
FOG = Factor(amount=lambda value: {"share": 0.8 * value["u"]}, change=_fog, seen=True)
# Forgets to change anything.
NOTHING = Factor(amount=lambda value: {"u": value["u"]}, change=lambda env, value, amount: None)
