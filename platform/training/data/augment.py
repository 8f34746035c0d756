"""Colour jitter of a whole batch as one affine map of RGB an image, and patches laid over it.

Brightness, contrast, saturation and (in YIQ) hue are all affine in RGB, so their
composition is one 3×3 matrix and one offset: a single matrix product a batch, where
jitter in HSV costs more than decoding. Shapes: B samples, P images a sample.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

_GREY = torch.tensor([0.299, 0.587, 0.114])
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def colour_jitter(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue_turns: Tensor
) -> Tensor:
    """Jitter images; the order is brightness, contrast, saturation, hue.

    Args:
        images: (B, P, 3, H, W) uint8, RGB.
        brightness: (B, P) factor; 1 changes nothing.
        contrast: (B, P) factor about the image's mean grey.
        saturation: (B, P) factor about each pixel's grey.
        hue_turns: (B, P) rotation of the colour circle in turns; 0 changes nothing.

    Returns:
        (B, P, 3, H, W) uint8.
    """
    pixels = images.float()
    mean_grey = torch.einsum("bpchw,c->bp", pixels, _GREY) / (images.shape[-1] * images.shape[-2])
    saturate = saturation[..., None, None] * torch.eye(3) + (
        1 - saturation[..., None, None]
    ) * _GREY.expand(3, 3)
    colour = _hue_rotation(hue_turns) @ saturate
    matrix = (brightness * contrast)[..., None, None] * colour
    # A grey offset: rotation and saturation leave grey alone, so it needs no matrix.
    offset = (1 - contrast) * brightness * mean_grey
    changed = (matrix @ pixels.flatten(3)).view_as(pixels) + offset[..., None, None, None]
    return changed.round_().clamp_(0, 255).to(torch.uint8)


def _hue_rotation(turns: Tensor) -> Tensor:
    """(…, 3, 3) rotation of RGB about the grey axis of YIQ."""
    angle = 2 * torch.pi * turns
    rotation = torch.zeros(*turns.shape, 3, 3)
    rotation[..., 0, 0] = 1
    rotation[..., 1, 1] = rotation[..., 2, 2] = angle.cos()
    rotation[..., 1, 2] = -angle.sin()
    rotation[..., 2, 1] = angle.sin()
    return torch.linalg.inv(_YIQ) @ rotation @ _YIQ


def draw_jitter(
    rng: np.random.Generator, half_widths: tuple[float, float, float, float], images: int
) -> np.ndarray:
    """(4, images) brightness, contrast, saturation, hue of one sample.

    Args:
        rng: the sample's own generator.
        half_widths: of the uniform distributions around 1, 1, 1 and 0.
        images: how many different draws; 1 serves all images of the sample.
    """
    centres = np.array([1.0, 1.0, 1.0, 0.0])[:, None]
    return centres + np.array(half_widths)[:, None] * rng.uniform(-1, 1, (4, images))


def draw_patches(rng: np.random.Generator, image: np.ndarray, most: int) -> np.ndarray:
    """Lay ellipses and rectangles of random texture over an image, some of them see-through.

    Random erasing (Zhong et al. 2020, arXiv 1708.04896) with what stands in scenes: things
    (opaque), shadows (dark and see-through) and other surfaces (large). The other images of
    a sample show what a patch hides, because patches are drawn for each image alone.

    Args:
        rng: the sample's own generator.
        image: (3, H, W) uint8; left as it is.
        most: patches of an image are 0 to ``most``, all numbers equally likely.

    Returns:
        (3, H, W) uint8.
    """
    number = int(rng.integers(0, most + 1))
    if number == 0:
        return image
    height, width = image.shape[1:]
    result = image.astype(np.float32)
    for _ in range(number):
        mask = np.zeros((height, width), np.float32)
        centre = rng.uniform(0, width), rng.uniform(0, height)
        # Uniform in the logarithm: many small things, few surfaces, up to the whole image.
        share = np.exp(rng.uniform(np.log(0.03), np.log(1.0), 2))
        half = share * (width, height)
        if rng.random() < 0.5:
            box = (centre, (2 * half[0], 2 * half[1]), float(rng.uniform(0, 180)))
            cv2.ellipse(mask, box, 1.0, -1)
        else:
            corners = cv2.boxPoints((centre, tuple(2 * half), float(rng.uniform(0, 180))))
            cv2.fillPoly(mask, [np.rint(corners).astype(np.int32)], 1.0)
        # What is large is see-through, so that something of the scene is left.
        mask *= rng.uniform(0.3, 1 - 0.5 * share.min())
        result += mask * (_texture(rng, height, width) - result)
    return np.rint(result).clip(0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(3, height, width) float32: a colour, with a field of others around it, coarse or fine."""
    colour = rng.uniform(0, 255, 3)
    spread = rng.choice([0.0, rng.uniform(0, 80)])
    cells = int(np.exp(rng.uniform(np.log(2), np.log(40))))
    field = colour + spread * rng.standard_normal((cells, cells, 3))
    how = cv2.INTER_NEAREST if rng.random() < 0.3 else cv2.INTER_LINEAR
    field = cv2.resize(field.clip(0, 255).astype(np.float32), (width, height), interpolation=how)
    return field.transpose(2, 0, 1)
