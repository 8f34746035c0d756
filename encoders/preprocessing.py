"""Image preprocessing: check, resize to a square, normalise.

Shapes: B images, H×W pixels, 3 channels red, green, blue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dynaflip.errors import UserError


def channels_first(images: Any) -> Tensor:
    """Check images and order them (B, 3, H, W), values unchanged.

    Args:
        images: (B, H, W, 3) or (B, 3, H, W), uint8 or float in [0, 1]; tensor or array.

    Raises:
        UserError: another shape or type; the message names the one given.
    """
    if not isinstance(images, Tensor):
        try:
            images = torch.as_tensor(images)
        except (TypeError, ValueError, RuntimeError):
            raise UserError(
                f"images: a tensor or array is needed, not {type(images).__name__}"
            ) from None
    shape = tuple(images.shape)
    if images.ndim != 4 or 3 not in (shape[1], shape[3]) or 0 in shape:
        hint = "; add a batch axis in front" if images.ndim == 3 else ""
        raise UserError(f"images: shape (B, H, W, 3) or (B, 3, H, W) is needed, not {shape}{hint}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise UserError(f"images: uint8 or floats in [0, 1] are needed, not {images.dtype}")
    return images if shape[1] == 3 else images.permute(0, 3, 1, 2)


def check_range(images: Tensor) -> None:
    """Refuse float images outside [0, 1]: not divided by 255, or normalised already.

    Raises:
        UserError: values outside; the message names their range and what to give instead.
    """
    if images.dtype == torch.uint8:
        return
    low, high = images.min().item(), images.max().item()
    # A resized image may overshoot a little. NaN fails both comparisons.
    if low >= -0.1 and high <= 1.1:
        return
    if low < -0.1:
        advice = (
            "they look normalised; give the images before that (uint8, or floats in [0, 1]), "
            "because normalising happens inside"
        )
    else:
        advice = "give uint8, or divide by 255"
    raise UserError(f"images: floats must lie in [0, 1], not in [{low:g}, {high:g}]; {advice}")


def to_square(images: Tensor, size_px: int) -> Tensor:
    """Resize images (B, 3, H, W), uint8 or float, to (B, 3, size_px, size_px) of the same type.

    The one filter of training and of use (bilinear, antialiased): between two filters lie
    differences as large as a third of those that half a second of motion makes (measured at 2:1).
    """
    if images.shape[-2:] == (size_px, size_px):
        return images
    return F.interpolate(
        images, (size_px, size_px), mode="bilinear", antialias=True, align_corners=False
    )


def to_pixels(
    images: Tensor, size_px: int, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Tensor:
    """Resize to a square and normalise: (B, 3, H, W) → (B, 3, size_px, size_px) float32.

    The image is squeezed, not cropped: an object at its edge must stay in it. ``mean`` and ``std``
    are of the three channels; (3,) tensors on the images' device need no copy to it.
    """
    pixels = images.float().div(255) if images.dtype == torch.uint8 else images.float()
    pixels = to_square(pixels, size_px)
    center, spread = (
        torch.as_tensor(value, device=pixels.device).view(1, 3, 1, 1) for value in (mean, std)
    )
    return ((pixels - center) / spread).contiguous(memory_format=torch.channels_last)
