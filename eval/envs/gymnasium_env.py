"""Any Gymnasium environment as an :class:`Env`: images by ``render()``, success by a flag.

What differs between simulators is given as small functions, so that a second simulator is one
file of about thirty lines with its list of tasks::

    def make(task, *, height_px, width_px, camera):
        raw = gymnasium.make(task, render_mode="rgb_array", height=height_px, width=width_px)
        return GymnasiumEnv(
            raw, task, height_px=height_px, width_px=width_px, camera=camera,
            success=lambda info: info["success"],
            proprioception=lambda observation, info: observation[:4],
        )

    ENVIRONMENT = EnvironmentSpec(name=…, make=make, …)

Gymnasium itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env, StepResult

Info = Mapping[str, Any]


class GymnasiumEnv(Env):
    """One Gymnasium environment made with ``render_mode="rgb_array"``.

    Args:
        raw: with ``reset(seed=…)``, ``step(action)`` and ``render()``, as Gymnasium has them.
        task, height_px, width_px, camera: as of :class:`Env`.
        success: ``info`` of a step → whether the task is solved.
        proprioception: (observation, info) → what the robot knows of itself, (P,).
        expert: (observation, info) → the scripted expert's action (A,); None where there is none.
        privileged: (observation, info) → labels as :meth:`Env.privileged` describes them.
    """

    def __init__(
        self,
        raw: Any,
        task: str,
        *,
        height_px: int,
        width_px: int,
        camera: str,
        success: Callable[[Info], bool],
        proprioception: Callable[[Any, Info], np.ndarray],
        expert: Callable[[Any, Info], np.ndarray] | None = None,
        privileged: Callable[[Any, Info], dict[str, np.ndarray]] | None = None,
    ) -> None:
        super().__init__(task, height_px=height_px, width_px=width_px, camera=camera)
        self.raw = raw
        self._success, self._proprioception = success, proprioception
        self._expert, self._privileged = expert, privileged
        self._observation: Any = None
        self._info: Info = {}

    def reset(self, seed: int) -> Any:
        """Begin an episode; equal seeds give equal scenes. Returns Gymnasium's observation."""
        self._observation, self._info = self.raw.reset(seed=seed)
        return self._observation

    def step(self, action: np.ndarray) -> StepResult:
        """Act for one control step: (A,) in [-1, 1]."""
        observation, reward, terminated, truncated, info = self.raw.step(np.clip(action, -1, 1))
        self._observation, self._info = observation, info
        return StepResult(
            observation,
            float(reward),
            success=bool(self._success(info)),
            ended=bool(terminated or truncated),
        )

    def render(self) -> np.ndarray:
        """The image: (H, W, 3) uint8.

        Raises:
            UserError: the environment renders at another size, or not an image.
        """
        image = np.asarray(self.raw.render())
        if image.shape != (self.height_px, self.width_px, 3) or image.dtype != np.uint8:
            raise UserError(
                f"environment: {self.task} renders {image.dtype} of shape {image.shape}, not uint8 "
                f"of ({self.height_px}, {self.width_px}, 3); make it with "
                f"render_mode='rgb_array' at that size"
            )
        return image

    def proprioception(self) -> np.ndarray:
        """(P,) float32."""
        return np.asarray(self._proprioception(self._observation, self._info), np.float32)

    def expert_action(self) -> np.ndarray:
        """(A,) float32 in the state after the last reset or step."""
        if self._expert is None:
            return super().expert_action()
        action = self._expert(self._observation, self._info)
        return np.clip(np.asarray(action, np.float32), -1, 1)

    def privileged(self) -> dict[str, np.ndarray]:
        """Labels that only the simulator knows."""
        return self._privileged(self._observation, self._info) if self._privileged else {}

    def close(self) -> None:
        """Close the environment."""
        self.raw.close()
