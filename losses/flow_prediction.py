"""Flow prediction term: predict from a frame's embedding how the scene's points will move.

L_act of DynaFLIP (arXiv 2605.30350): the 3D flow from the single frame's embedding, squared
error over visible points of measured steps: a step that is interpolated between frames, as at
5 Hz, states a straight line that nothing has followed. (The flow encoder's input has it: between
two frames it is the best guess.) Shapes: n examples, K steps, G×G grid points.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dynaflip.losses.base import LossTerm
from dynaflip.losses.distributed import global_sum, world_size
from dynaflip.losses.simplex import full_precision


class FlowPredictionTerm(LossTerm):
    """L_act: the error of the flow predicted from frame t."""

    frames = ("t",)

    def forward(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """The mean squared error () over visible points, in the unit of `flow_scale`."""
        config = self.setup.objective
        visible = batch["flow_visible"]
        if "flow_measured" in batch:
            visible = visible & batch["flow_measured"][:, :, None, None]
        return flow_prediction_loss(
            outputs["flow_prediction"],
            batch["flow_displacement_m"],
            visible,
            batch["median_depth_m"],
            scale=config.flow_scale,
            scale_floor=config.flow_scale_floor,
        )


def flow_prediction_loss(
    prediction: Tensor,
    displacement_m: Tensor,
    visible: Tensor,
    median_depth_m: Tensor,
    *,
    scale: str,
    scale_floor: float,
) -> Tensor:
    """L_act of this process, a scalar; invisible points carry neither loss nor gradient.

    The paper does not give a unit. Displacements are small against the scene (about 0.02
    median depths), so with ``scale`` "motion" the squared error is divided by the mean squared
    motion of the batch over all processes: 1 is what predicting no motion scores, and a weight
    of 1 is of the alignment's order. With "none" the unit is squared median depths.

    Args:
        prediction: (n, K, G, G, 3) displacement from frame t, camera frame of t, in units of
            the frame's median depth.
        displacement_m: (n, K, G, G, 3) tracked displacement in metres, same frame; any value,
            also NaN, where invisible.
        visible: (n, K, G, G) bool.
        median_depth_m: (n,) median depth of frame t in metres.
        scale: "motion" or "none".
        scale_floor: smallest root-mean-square motion, in median depths, to divide by.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        prediction = full_precision(prediction)
        target = displacement_m.to(prediction.dtype) / median_depth_m.to(prediction.dtype).view(
            -1, 1, 1, 1, 1
        )
        # Selection, not multiplication: 0 · NaN is NaN.
        seen = visible.unsqueeze(-1)
        target = torch.where(seen, target, 0.0)
        error = torch.where(seen, prediction - target, 0.0).square().sum()
        num_seen, motion = global_sum(
            torch.stack([visible.sum().to(error.dtype), target.square().sum()])
        )
        mean_error = world_size() * error / num_seen.clamp(min=1)
        if scale == "none":
            return mean_error
        mean_motion = motion / num_seen.clamp(min=1)
        return mean_error / mean_motion.clamp(min=scale_floor**2)
