"""A fitted policy for use: camera images in, actions out.

Legend of shapes: B images, H, W their size, T steps, A action width, P width of proprioception.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.policies.shrinking import shrink

if TYPE_CHECKING:
    from dynaflip.eval.metrics.action_scale import ActionScale
    from dynaflip.eval.policies.encoder_policy import EncoderPolicy
    from dynaflip.eval.policies.policy_folder import PolicyDescription


class KeptPolicy:
    """A fitted policy with its encoder, as :func:`dynaflip.load_policy` gives it.

    It has no memory: equal inputs give equal actions.

    Attributes:
        description: what it was fitted on, and what it reads and gives.
    """

    description: PolicyDescription

    def __init__(
        self,
        description: PolicyDescription,
        by_task: Mapping[str, EncoderPolicy],
        units: ActionScale | None = None,
    ) -> None:
        """Take what :func:`~.policy_loading.load_policy_folder` has read.

        Args:
            description: of its folder.
            by_task: the policy as it acts in each of its tasks.
            units: of the actions, where they are a data set's own.
        """
        self.description = description
        self._by_task = dict(by_task)
        self._units = units

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it was fitted on."""
        return self.description.tasks

    def act(self, image: Any, proprioception: Any = None, task: str | None = None) -> np.ndarray:
        """The actions of the next T steps; take them all, then look again.

        Args:
            image: (H, W, 3) uint8 RGB as it comes from the camera, or a batch (B, H, W, 3); an
                array or a tensor. It is resized inside. A policy that sees several cameras is given
                a dict, name of a camera (``description.cameras``) → its image.
            proprioception: (P,) or (B, P) in the units of the demonstrations, its entries as
                ``description.proprioception`` names them. A policy that was fitted without takes
                none into account.
            task: one of :attr:`tasks`, where there are several.

        Returns:
            (T, A) or (B, T, A) float32, its entries as ``description.actions`` names them: in
            [-1, 1] of the environment, or in the units of the data set that it was fitted on.

        Raises:
            UserError: an input of another type or shape, proprioception that is missing, or a
                task that it was not fitted on.
        """
        views = self._views(image)
        single = views[0].ndim == 3
        policy = self._by_task[self._known_task(task)]
        if single:
            views = [one[None] for one in views]
        if self.description.data:  # as its frames were read
            views = [shrink(one, self.description.image_px) for one in views]
        state = self._proprioception(proprioception, len(views[0]), single)
        actions = policy.plan(policy.see(views), state)
        if self._units is not None:
            actions = self._units.from_unit(actions)
        return actions[0] if single else actions

    def _views(self, image: Any) -> list[np.ndarray]:
        """(H, W, 3) or (B, H, W, 3) uint8 of each camera."""
        cameras = self.description.cameras
        if not isinstance(image, Mapping):
            if len(cameras) > 1:
                raise UserError(
                    f"image: this policy sees {len(cameras)} cameras; give a dict with the images "
                    f"of {', '.join(cameras)}"
                )
            return [_images(image)]
        if set(image) != set(cameras):
            raise UserError(
                f"image: has {', '.join(map(str, image)) or 'no camera'}; this policy sees "
                f"{', '.join(cameras) or 'one camera, whose image is given as it is'}"
            )
        views = [_images(image[name]) for name in cameras]
        if len({one.shape[:-3] for one in views}) > 1:
            shapes = ", ".join(f"{n} {v.shape}" for n, v in zip(cameras, views, strict=True))
            raise UserError(f"image: give as many images of each camera, not {shapes}")
        return views

    def _known_task(self, task: str | None) -> str:
        if task is None and len(self.tasks) == 1:
            return self.tasks[0]
        if task not in self.tasks:
            asked = "give one" if task is None else f"there is no {task}"
            raise UserError(f"task: {asked}; this policy knows {', '.join(self.tasks)}")
        return task

    def _proprioception(self, given: Any, number: int, single: bool) -> np.ndarray:
        """(B, P) float32; P = 0 where it is not read."""
        names = self.description.proprioception
        if not names:
            return np.zeros((number, 0), np.float32)
        shape = (len(names),) if single else (number, len(names))
        if given is None:
            raise UserError(
                f"proprioception: this policy was fitted with it; give {shape} of "
                f"{', '.join(names)}"
            )
        state = _array(given).astype(np.float32)
        if state.shape != shape:
            raise UserError(
                f"proprioception: must have the shape {shape} ({', '.join(names)}), not "
                f"{state.shape}"
            )
        if not np.isfinite(state).all():
            raise UserError("proprioception: has values that are not finite")
        return state.reshape(number, len(names))


def _images(image: Any) -> np.ndarray:
    images = _array(image)
    if images.dtype != np.uint8:
        raise UserError(
            f"image: must be uint8 (0 to 255), as policies were fitted on, not {images.dtype}"
        )
    if images.ndim not in (3, 4) or images.shape[-1] != 3 or 0 in images.shape:
        raise UserError(
            f"image: must have the shape (H, W, 3), or (B, H, W, 3) for a batch, not {images.shape}"
        )
    return images


def _array(given: Any) -> np.ndarray:
    """An array of an array, a list, or a tensor on any device."""
    return np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)
