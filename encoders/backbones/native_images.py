"""The images that a pretrained model was made for: side and normalisation, by its processor.

A model's own processor may crop. Here an image is always squeezed to the square, whatever encodes
it, because what a robot handles may be at the edge: only the side is the processor's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dynaflip.errors import UserError

USUAL_PX = 224


def native_px(processor: Mapping[str, Any], config: Any = None) -> int:
    """Side in pixels of the square that a model sees.

    Args:
        processor: ``preprocessor_config.json``: its crop, else its size, else its patches.
        config: of the model, which is asked where the processor says nothing; without either 224.

    Raises:
        UserError: the model sees images that are not square.
    """
    sizes = [processor.get("size"), getattr(config, "image_size", None), USUAL_PX]
    if processor.get("do_center_crop", True):
        sizes.insert(0, processor.get("crop_size"))
    if patches := processor.get("max_num_patches"):  # any aspect ratio, so many patches at most
        sizes.insert(0, math.isqrt(int(patches)) * int(processor.get("patch_size", 16)))
    return next(side for side in map(_side, sizes) if side)


def _side(size: Any) -> int | None:
    if isinstance(size, Mapping):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
    if isinstance(size, Sequence):
        if size[0] != size[1]:
            raise UserError(f"its images are {size[0]} x {size[1]} px, not square; name a side")
        size = size[0]
    return int(size) if size else None


def normalisation(
    processor: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the channels, for values in [0, 1], of a model's processor.

    Args:
        processor: ``preprocessor_config.json``. One that rescales by another factor than 1/255, or
            does not normalise, is put in the same form.
        mean, std: where the processor names none.
    """
    if processor.get("do_normalize", True):
        mean, std = processor.get("image_mean") or mean, processor.get("image_std") or std
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    gain = 255.0 if not processor.get("do_rescale", True) else 1.0
    if gain == 1.0 and (factor := processor.get("rescale_factor")):
        gain = 255 * factor
    if math.isclose(gain, 1.0, rel_tol=1e-6):
        return tuple(mean), tuple(std)
    return tuple(value / gain for value in mean), tuple(value / gain for value in std)
