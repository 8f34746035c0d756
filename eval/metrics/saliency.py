"""Saliency of an encoder, and its shares on the robot and on the object.

Saliency is gradient times input (Shrikumar et al. 2016, arXiv 1605.01713) of half the
embedding's squared length: which pixels the embedding is made of. It needs no classes, and is
the same for convolutional networks and transformers. Gradients of single pixels are noisy, so
it is summed over the cells of a coarse grid. The simulator's segmentation gives what each pixel
shows. Legend of shapes: B images, H, W size, G cells a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

GRID = 14  # cells a side


@dataclass(frozen=True)
class SaliencyShares:
    """Shares of saliency and of the image's area, in [0, 1]: equal where it is evenly spread."""

    robot: float
    object: float
    robot_area: float
    object_area: float


def saliency(encoder: Any, images: np.ndarray) -> np.ndarray:
    """(B, G, G) float32, summing to 1 an image.

    Args:
        encoder: :class:`dynaflip.encoders.image.ImageEncoder`, in evaluation mode.
        images: (B, H, W, 3) uint8.
    """
    pixels = encoder.preprocess(torch.from_numpy(np.ascontiguousarray(images)))
    pixels = pixels.to(next(encoder.parameters()).device).detach().requires_grad_(True)
    with torch.enable_grad():
        embedding, _ = encoder.features(pixels)
        (gradient,) = torch.autograd.grad(embedding.square().sum() / 2, pixels)
    strength = (gradient * pixels.detach()).abs().sum(1, keepdim=True)
    cells = torch.nn.functional.adaptive_avg_pool2d(strength, GRID)[:, 0]
    total = cells.sum((1, 2), keepdim=True).clamp_min(torch.finfo(cells.dtype).tiny)
    return (cells / total).cpu().numpy().astype(np.float32)


def saliency_shares(maps: np.ndarray, robot: np.ndarray, objects: np.ndarray) -> SaliencyShares:
    """Shares of saliency by part of the image, mean over images.

    Args:
        maps: (B, G, G) of :func:`saliency`.
        robot, objects: (B, H, W) bool, what each pixel shows.
    """
    shares = [np.stack([_coarse(mask) for mask in masks]) for masks in (robot, objects)]
    on_robot, on_object = (float((maps * share).sum((1, 2)).mean()) for share in shares)
    return SaliencyShares(on_robot, on_object, float(robot.mean()), float(objects.mean()))


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 with saliency (G, G) as heat over it."""
    height, width = image.shape[:2]
    heat = np.clip(heat / max(float(np.quantile(heat, 0.99)), 1e-12), 0, 1)
    heat = cv2.resize(heat, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    coloured = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return (0.5 * grey + 0.5 * coloured).astype(np.uint8)


def _coarse(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool → (G, G) share of each cell."""
    return cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)
