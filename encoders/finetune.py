"""An encoder inside a policy: frozen, with low-rank adapters (LoRA), or trained as a whole.

LoRA (Hu et al., arXiv 2106.09685): a weight W becomes W + (α/r) B A with A (r, in) random, B
(out, r) zero at first, and W left as it is. Folding keeps the sum as the weight, after which
the encoder is an ordinary one again and can be saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynaflip.encoders.image import ImageEncoder
from dynaflip.errors import UserError

MODES = ("frozen", "lora", "full")


class LowRank(nn.Module):
    """Adds a trainable matrix of low rank to a weight."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        out, inside = weight.shape[:2]
        self.gain = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, inside, device=weight.device))
        self.up = nn.Parameter(torch.zeros(out, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in) or (out, in, 1, 1) → the same."""
        return weight + (self.gain * self.up @ self.down).view_as(weight).to(weight.dtype)


def prepare(
    encoder: ImageEncoder, mode: str, *, rank: int = 16, alpha: float = 16.0
) -> list[nn.Parameter]:
    """Make an encoder trainable in one of three ways, in place; returns what is to be trained.

    Args:
        encoder: any; its BatchNorm statistics stay as they are unless its settings free them.
            Blocks that pretraining froze are trained as well.
        mode: "frozen" (nothing is trained), "lora" (low-rank additions to every linear map over
            channels in the backbone), or "full".
        rank: of the additions.
        alpha: their gain times the rank.

    Raises:
        UserError: an unknown mode, a rank below 1, or a backbone without linear maps.
    """
    if mode not in MODES:
        raise UserError(f"mode {mode!r} is not one of {', '.join(MODES)}")
    if rank < 1:
        raise UserError(f"rank: must be at least 1, not {rank}")
    encoder.requires_grad_(mode == "full")
    if mode != "frozen":
        encoder.backbone.frozen_blocks = 0  # what pretraining froze is to learn too
    if mode == "lora":
        layers = list(_linear_layers(encoder))
        if not layers:
            raise UserError("mode lora: this backbone has no linear layers; use full")
        for layer in layers:
            addition = LowRank(layer.weight, rank, alpha)
            parametrize.register_parametrization(layer, "weight", addition)
    return [parameter for parameter in encoder.parameters() if parameter.requires_grad]


def fold(encoder: ImageEncoder) -> ImageEncoder:
    """Put the low-rank additions into the weights, in place: an ordinary encoder again."""
    for layer in _linear_layers(encoder):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return encoder


def _linear_layers(encoder: ImageEncoder) -> Iterator[nn.Linear | nn.Conv2d]:
    """Every linear map over channels: linear layers and 1×1 convolutions."""
    for module in list(encoder.backbone.modules()):
        if isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        ):
            yield module
