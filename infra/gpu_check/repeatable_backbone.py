"""A small backbone for runs whose weights are compared bit by bit.

Importing it asks torch for kernels that sum in one order, in every process that builds it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynaflip.encoders.backbones.base import Backbone
from dynaflip.encoders.config import ImageConfig

torch.use_deterministic_algorithms(True, warn_only=True)
torch.backends.cuda.enable_flash_sdp(False)
torch.backends.cuda.enable_mem_efficient_sdp(False)


class Patches(Backbone):
    """The mean of patches that two layers have seen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 8, 8)
        self.mix = nn.Linear(32, 32)

    @classmethod
    def from_settings(cls, config: ImageConfig) -> Patches:
        """Random weights, whatever the settings."""
        return cls()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, px, px) → (B, 32) and (B, P, 32)."""
        tokens = self.mix(self.embed(pixels).flatten(2).transpose(1, 2).tanh())
        return tokens.mean(1), tokens
