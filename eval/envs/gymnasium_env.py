"""Any Gymnasium environment as an :class:`Env`: images by ``render()``, success by a flag.

Most need nothing but their id or class: :mod:`dynaflip.eval.envs.gymnasium_spec` finds out the
rest. What that cannot know is given here as small functions::

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
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.envs.base import Env, StepResult
from dynaflip.eval.perturbations import IMAGE_SPACE_FACTORS

Info = Mapping[str, Any]


@dataclass(frozen=True)
class ActionRange:
    """A box of actions in the environment's own units; policies act in [-1, 1]."""

    low: np.ndarray  # (A,)
    high: np.ndarray  # (A,)
    shape: tuple[int, ...]  # that the environment wants
    dtype: Any

    def to_own_units(self, action: np.ndarray) -> np.ndarray:
        """(A,) in [-1, 1], cut off there → the environment's action."""
        unit = np.clip(np.asarray(action, np.float64), -1, 1)
        own = np.where(self._is_unit(), unit, self.low + (unit + 1) / 2 * (self.high - self.low))
        return own.astype(self.dtype).reshape(self.shape)

    def to_unit(self, action: np.ndarray) -> np.ndarray:
        """Actions (…, A) in the environment's units → [-1, 1], as far as they lie in the box."""
        own = np.asarray(action, np.float64)
        unit = 2 * (own - self.low) / (self.high - self.low) - 1
        return np.where(self._is_unit(), own, unit).astype(np.float32)

    def bounds(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of each entry."""
        return tuple(zip(self.low.tolist(), self.high.tolist(), strict=True))

    def _is_unit(self) -> np.ndarray:
        return (self.low == -1) & (self.high == 1)  # no rounding where there is nothing to do


@dataclass(frozen=True)
class Moment:
    """Image and proprioception of one moment: it can be shown again, and not acted on."""

    image: np.ndarray  # (H, W, 3) uint8, unperturbed
    proprioception: np.ndarray  # (P,) float32


class GymnasiumEnv(Env):
    """One Gymnasium environment made with ``render_mode="rgb_array"``.

    Args:
        raw: with ``reset(seed=…)``, ``step(action)`` and ``render()``, as Gymnasium has them.
        task, height_px, width_px, camera: as of :class:`Env`.
        success: ``info`` of a step → whether the task is solved.
        proprioception: (observation, info) → what the robot knows of itself, (P,).
        expert: (observation, info) → the scripted expert's action (A,); None where there is none.
        privileged: (observation, info) → labels as :meth:`Env.privileged` describes them.
        actions: the box of actions that [-1, 1] is rescaled to; the expert acts in its units.
            None: the environment's own actions lie in [-1, 1].
        resize: whether images of another size are resized (averaging over areas), or refused.
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
        actions: ActionRange | None = None,
        resize: bool = False,
    ) -> None:
        super().__init__(task, height_px=height_px, width_px=width_px, camera=camera)
        self.raw = raw
        self._success, self._proprioception = success, proprioception
        self._expert, self._privileged = expert, privileged
        self._actions, self._resize = actions, resize
        self._observation: Any = None
        self._info: Info = {}
        self._shown: Moment | None = None
        self._images_alone = True  # whether all that is perturbed are images

    def reset(self, seed: int) -> Any:
        """Begin an episode; equal seeds give equal scenes. Returns Gymnasium's observation."""
        self._shown = None
        self._observation, self._info = self.raw.reset(seed=seed)
        return self._observation

    def step(self, action: np.ndarray) -> StepResult:
        """Act for one control step: (A,) in [-1, 1]."""
        assert self._shown is None, "a moment that is shown again cannot be acted on"
        own = (
            np.clip(action, -1, 1) if self._actions is None else self._actions.to_own_units(action)
        )
        observation, reward, terminated, truncated, info = self.raw.step(own)
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
            UserError: the environment renders no image, or one of another size.
        """
        if self._shown is not None:
            return self._shown.image.copy()
        image = np.asarray(self.raw.render())
        wanted = (self.height_px, self.width_px, 3)
        if self._resize and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
            return resized(image, self.height_px, self.width_px).copy()
        if image.shape != wanted or image.dtype != np.uint8:
            size = "(H, W, 3)" if self._resize else f"{wanted}"
            raise UserError(
                f"environment: {self.task} renders {image.dtype} of shape {image.shape}, not uint8 "
                f"of {size}; make it with render_mode='rgb_array'"
                f"{'' if self._resize else ' at that size'}"
            )
        return image.copy()  # an environment may draw every image into the same array

    def proprioception(self) -> np.ndarray:
        """(P,) float32."""
        if self._shown is not None:
            return self._shown.proprioception
        return np.array(self._proprioception(self._observation, self._info), np.float32)

    def has_expert(self) -> bool:
        """True where the environment brings a scripted expert."""
        return self._expert is not None

    def expert_action(self) -> np.ndarray:
        """(A,) float32 in the state after the last reset or step."""
        if self._expert is None:
            return super().expert_action()
        action = np.asarray(self._expert(self._observation, self._info), np.float64)
        if self._actions is not None:
            action = self._actions.to_unit(action.ravel())
        return np.clip(action, -1, 1).astype(np.float32)

    def privileged(self) -> dict[str, np.ndarray]:
        """Labels that only the simulator knows."""
        return self._privileged(self._observation, self._info) if self._privileged else {}

    def goal_distance_m(self) -> float | None:
        """``info["goal_distance_m"]``, where the environment gives it."""
        distance_m = self._info.get("goal_distance_m")
        return None if distance_m is None else float(distance_m)

    def state(self) -> Moment:
        """The image and proprioception of now, for :meth:`set_state`."""
        return Moment(self.render(), self.proprioception())

    def set_state(self, state: Moment) -> None:
        """Show a moment again, under whatever changes images; :meth:`reset` ends it.

        Raises:
            UserError: a factor changes the simulator itself, which cannot be put back.
        """
        if not self._images_alone:
            raise UserError(
                f"factors: {self.spec.name} cannot be put back into a state, so its moments are "
                f"shown again under {', '.join(IMAGE_SPACE_FACTORS)} and other factors that append "
                "to image_filters; leave the others out, or evaluate with --suite rollouts"
            )
        self._shown = state

    def apply(self, values: Mapping[str, Any]) -> None:
        """Perturb the appearance, as :meth:`Env.apply` does."""
        super().apply(values)
        others = [name for name in values if name not in IMAGE_SPACE_FACTORS]
        # Those of this package share one filter; one of others has left at least one of its own.
        self._images_alone = len(self.image_filters) >= len(others) + (len(others) < len(values))

    def close(self) -> None:
        """Close the environment."""
        self.raw.close()


def resized(image: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """An image (h, w, 3) uint8 at another size, each pixel the mean of what it covers."""
    if image.shape[:2] == (height_px, width_px):
        return image
    import cv2

    size = (width_px, height_px)
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
