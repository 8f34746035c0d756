"""Depth from images alone, by a transformers depth model of the user's.

Models of metric depth (ZoeDepth, DepthPro, metric DepthAnything) give metres.
The others give inverse depth without scale or offset; it is turned into depth
with the first frame's median at 1, and called ``relative``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynaflip.encoders.hub import check_model
from dynaflip.platform.triplets.clips import Floats, Frames

_METRIC_TYPES = ("zoedepth", "depth_pro")
# Inverse depth below this share of the median is as far as we tell apart.
_LEAST_INVERSE = 0.05


def check_depth_model(name: str) -> None:
    """Refuse early what is neither a folder nor a hub id of a depth model.

    Raises:
        UserError: says what was looked for.
    """
    from transformers import AutoModelForDepthEstimation

    check_model("depth: model:", name, AutoModelForDepthEstimation, "depth model")


class TransformersDepth:
    """A depth model on this process's CPU or GPU.

    ``scale`` is metric or relative.
    """

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        torch.set_num_threads(1)  # one CPU an actor
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor = AutoImageProcessor.from_pretrained(name)
        model: Any = AutoModelForDepthEstimation.from_pretrained(name)
        self.model = model.to(self.device).eval()
        config = self.model.config
        metric = getattr(config, "depth_estimation_type", "") == "metric"
        self.scale = "metric" if metric or config.model_type in _METRIC_TYPES else "relative"

    def __call__(self, frames: Frames) -> Floats:
        """(N, H, W, 3) uint8 to (N, H, W) depth: metres, or 1 at the first frame's median."""
        import torch

        size = frames.shape[1:3]
        out = []
        with torch.inference_mode():
            for frame in frames:
                inputs = self.processor(images=frame, return_tensors="pt").to(self.device)
                found = self.processor.post_process_depth_estimation(
                    self.model(**inputs), target_sizes=[size]
                )[0]["predicted_depth"]
                out.append(found.float().cpu().numpy())
        depth = np.stack(out).astype(np.float32)
        return depth if self.scale == "metric" else depth_of_inverse(depth)


def depth_of_inverse(inverse: Floats) -> Floats:
    """(N, H, W) inverse depth without scale to depth with median 1 in the first frame.

    One scale for the whole window, so that motion in depth is not divided away.
    """
    middle = float(np.median(inverse[0]))
    if not np.isfinite(middle) or middle <= 0:
        return np.full_like(inverse, np.nan)
    return (1 / np.maximum(inverse / middle, _LEAST_INVERSE)).astype(np.float32)
