"""Floating-point operations of the model, for its use of the device's peak (MFU).

Model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B): the operations that the model needs,
forward and backward, over what the device could do in that time. What is computed a second time to
save memory (GradCache, recomputed activations) does not count.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynaflip.encoders.model import DynaFLIP


def flops_per_example(model: DynaFLIP) -> int:
    """Operations of one training example, forward and backward; a multiplication and an addition
    are two.

    Frozen weights need no gradient, frames that no loss term learns from no backward pass. The
    loss is not included. Counted by running one blank example, before any activation is set to
    be recomputed.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device, training = trained[0].device, model.training
    model.eval()
    # Attention as plain products: the fused kernels compute some of them twice.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = model(_blank_example(model, device))
        loss = torch.stack([value.float().sum() for value in outputs.values()]).sum()
        torch.autograd.grad(loss, trained, allow_unused=True)
    model.train(training)
    return counter.get_total_flops()


def _blank_example(model: DynaFLIP, device: torch.device) -> dict[str, Tensor]:
    px, flow = model.image.preprocessing["image_px"], model.config.flow
    image = torch.zeros(1, 3, px, px, dtype=torch.uint8, device=device)
    grid = (flow.grid, flow.grid)
    return {f"image_{name}": image for name in {"t", "next", *model.learnt_frames}} | {
        "text_features": torch.zeros(1, model.text_dim, device=device),
        "flow_origin_m": torch.ones(1, *grid, 3, device=device),
        "flow_displacement_m": torch.ones(1, flow.steps, *grid, 3, device=device),
        "flow_visible": torch.ones(1, flow.steps, *grid, dtype=torch.bool, device=device),
        "median_depth_m": torch.ones(1, device=device),
    }
