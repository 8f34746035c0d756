"""Monocular depth by a transformers model, and its alignment with recorded depth.

Models of metric depth (ZoeDepth, DepthPro, metric DepthAnything) give metres.
The others give inverse depth up to a scale and a shift (Ranftl et al. 2022); it is turned into
depth with the median of a window's first frame at 1, and called ``relative``. Where a frame also
has recorded depth (a sensor with holes, a few frames of it), scale and shift follow from a robust
line through (model's inverse, recorded inverse).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynaflip.platform.triplets.clips import ClipRejected, Floats, Frames
from dynaflip.platform.triplets.models import DepthModel
from dynaflip.platform.triplets.user_models import asked

_MIN_PIXELS = 50
_ITERATIONS = 10
# A pixel agrees when it misses the measured inverse depth by less than this share of it.
_AGREES = 0.1
_MIN_AGREEING = 0.5
# Nothing is further away than this many times the furthest that was measured.
_FURTHEST = 3.0
_METRIC_TYPES = ("zoedepth", "depth_pro")
# Inverse depth below this share of the median is as far as we tell apart.
_LEAST_INVERSE = 0.05


class TransformersDepth:
    """A depth model of transformers on this process's CPU or GPU.

    Args:
        name: folder or hub id, which may name a revision (``OWNER/NAME@REVISION``); weights
            are read from safetensors alone.

    ``scale`` is metric or inverse.
    """

    @staticmethod
    def check(name: str) -> None:
        """Raise UserError for what is neither a folder nor a hub id of a depth model."""
        from transformers import AutoModelForDepthEstimation

        from dynaflip.encoders.hub import check_model

        check_model("depth: model:", name, AutoModelForDepthEstimation, "depth model")

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        from dynaflip.encoders import hub

        torch.set_num_threads(1)  # one CPU an actor
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = hub.local_folder(name)
        self.processor = AutoImageProcessor.from_pretrained(folder)
        model: Any = AutoModelForDepthEstimation.from_pretrained(folder, use_safetensors=True)
        self.model = model.to(self.device).eval()
        config = self.model.config
        metric = getattr(config, "depth_estimation_type", "") == "metric"
        self.scale = "metric" if metric or config.model_type in _METRIC_TYPES else "inverse"

    def use_precision(self, precision: str) -> None:
        """Compute in ``float32``, ``float16`` or ``bfloat16``; depth comes as float32 anyway."""
        import torch

        self.model = self.model.to(getattr(torch, precision))

    def __call__(self, frames: Frames) -> Floats:
        """(B, H, W, 3) uint8 to (B, H, W): metres, or inverse depth of any scale."""
        import torch

        inputs = self.processor(images=list(frames), return_tensors="pt").to(self.device)
        inputs = inputs.to(self.model.dtype)  # of the pixels; what is no float stays as it is
        with torch.inference_mode():
            found = self.processor.post_process_depth_estimation(
                self.model(**inputs), target_sizes=[frames.shape[1:3]] * len(frames)
            )
        maps = [one["predicted_depth"].float().cpu().numpy() for one in found]
        return np.stack(maps).astype(np.float32)


def depth_of_window(model: DepthModel, frames: Frames) -> tuple[Floats, str]:
    """Depth of a window's frames by a model, and its scale: metric or relative.

    Args:
        model: of any ``scale``.
        frames: (N, H, W, 3) uint8 RGB.

    Returns:
        (N, H, W) float32 z-depth: metres, or of one unknown scale for the window.

    Raises:
        ClipRejected: the model failed, or what it gave has another shape.
    """
    depth = answer_of(model, frames)
    if model.scale == "inverse":
        return depth_of_inverse(depth), "relative"
    return depth, model.scale


def answer_of(model: DepthModel, frames: Frames) -> Floats:
    """A model's answer about frames, (N, H, W) float32, in the model's own scale.

    Raises:
        ClipRejected: it failed, or what it gave has another shape.
    """
    name = type(model).__name__
    # Within: a tensor on a GPU, or with gradients, is no array of NumPy's.
    depth = asked("depth", name, lambda: np.asarray(model(frames), np.float32))
    if depth.shape != frames.shape[:3]:
        raise ClipRejected(
            "depth", f"{name} gave depth of shape {depth.shape} for frames of {frames.shape}"
        )
    return depth


def works_by_window(model: DepthModel | type) -> bool:
    """A model, or all of a class, must be given the frames of one window together."""
    return getattr(model, "scale", None) == "relative" or bool(getattr(model, "by_window", False))


def depth_of_inverse(inverse: Floats) -> Floats:
    """(N, H, W) inverse depth without scale to depth with median 1 in the first frame.

    One scale for the whole window, so that motion in depth is not divided away.
    """
    middle = float(np.median(inverse[0]))
    if not np.isfinite(middle) or middle <= 0:
        return np.full_like(inverse, np.nan)
    return (1 / np.maximum(inverse / middle, _LEAST_INVERSE)).astype(np.float32)


def align_depth(relative: Floats, first_m: Floats) -> Floats | None:
    """Bring relative depth to metres.

    Args:
        relative: (N, H, W) depth of a window, of any scale, 1 / (true to scale and shift).
        first_m: (H, W) measured depth of its first frame in metres, NaN where there is none.

    Returns:
        (N, H, W) metres, one scale and shift for the window, so that motion in depth is not
        divided away; None where too few pixels were measured or half of them disagree.
    """
    known = np.isfinite(first_m) & (first_m > 0) & np.isfinite(relative[0]) & (relative[0] > 0)
    if known.sum() < _MIN_PIXELS:
        return None
    near, wanted = 1 / relative[0][known].astype(np.float64), 1 / first_m[known].astype(np.float64)
    weight = np.ones(len(near))
    scale = shift = 0.0
    for _ in range(_ITERATIONS):
        middle, aim = np.average(near, weights=weight), np.average(wanted, weights=weight)
        spread = float((weight * (near - middle) ** 2).sum())
        # A flat image fixes no shift: scale alone is left.
        flat = spread < 1e-6 * float(weight.sum()) * middle**2
        scale = (
            aim / middle
            if flat
            else float((weight * (near - middle) * (wanted - aim)).sum()) / spread
        )
        shift = 0.0 if flat else aim - scale * middle
        miss = (scale * near + shift) / wanted - 1
        weight = 1 / (1 + (miss / _AGREES) ** 2) ** 2 / wanted**2
    if scale <= 0 or (np.abs(miss) < _AGREES).mean() < _MIN_AGREEING:
        return None
    least = 1 / (_FURTHEST * float(first_m[known].max()))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (1 / np.maximum(scale / relative + shift, least)).astype(np.float32)
