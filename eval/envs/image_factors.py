"""Perturbations of the image as factors of an environment whose scene cannot be changed.

They are those of :mod:`dynaflip.eval.image_perturbations`, with the same magnitudes and ranges:
all that an episode draws is applied together to each image that is rendered, in one pass. Noise
is drawn from its seed and the image itself, so it changes whenever the image does.

Light and tint are drawn in pretraining's recordings too, as a simulator's are; the others never.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dynaflip.eval.envs.base import Env
from dynaflip.eval.image_perturbations import image_factor, perturb
from dynaflip.eval.perturbations import Amount, Factor


@dataclass
class ImagePerturbation:
    """One of :attr:`~dynaflip.eval.envs.base.Env.image_filters`: all values of an episode."""

    values: dict[str, Any] = field(default_factory=dict)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 → the same."""
        return perturb(image[None], self.values, [zlib.crc32(image.tobytes())])[0]


def _of_environment(name: str, *, seen: bool = False) -> Factor:
    """A factor of recorded images as one of an environment."""

    def change(env: Env, value: Mapping[str, Any], amount: Amount) -> None:
        filters: list[Any] = env.image_filters
        if not filters or not isinstance(filters[-1], ImagePerturbation):
            filters.append(ImagePerturbation())
        filters[-1].values[name] = value

    return replace(image_factor(name), change=change, seen=seen)


CROP = _of_environment("crop")
OCCLUSION = _of_environment("occlusion")
LIGHT = _of_environment("light", seen=True)
TINT = _of_environment("tint", seen=True)
BLUR = _of_environment("blur")
NOISE = _of_environment("noise")
