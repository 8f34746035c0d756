"""Shrink camera images as the frames of a data set are shrunk when they are read.

Legend of shapes: B images, H, W their size, h, w the result's.
"""

from __future__ import annotations

import numpy as np


def shrink(images: np.ndarray, short_side_px: int) -> np.ndarray:
    """Images with this short side, each pixel the mean of the area that it covers.

    As OpenCV's ``INTER_AREA``, but without OpenCV: a robot has numpy.

    Args:
        images: (B, H, W, 3) uint8; smaller ones stay as they are.
        short_side_px: of the result.

    Returns:
        (B, h, w, 3) uint8, the aspect kept to a pixel.
    """
    height, width = images.shape[1:3]
    scale = short_side_px / min(height, width)
    if scale >= 1:
        return images
    rows, columns = (_shares(size, max(1, round(size * scale))) for size in (height, width))
    shrunk = np.einsum("yr,brwc->bywc", rows, images.astype(np.float32), optimize=True)
    shrunk = np.einsum("xw,bywc->byxc", columns, shrunk, optimize=True)
    return np.rint(shrunk).clip(0, 255).astype(np.uint8)


def _shares(before: int, after: int) -> np.ndarray:
    """(after, before) float32: shares of the old pixels in each new one, which sum to 1."""
    edges = np.arange(after + 1) * (before / after)
    low = np.maximum(edges[:-1, None], np.arange(before))
    high = np.minimum(edges[1:, None], np.arange(1, before + 1))
    return ((high - low).clip(min=0) * (after / before)).astype(np.float32)
