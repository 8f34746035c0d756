"""Attention pooling: a trained query attends over the frozen tokens.

Attentive feature aggregation (arXiv 2511.10762): under perturbations of the scene, policies on
frozen encoders held up better when a trained query chose which patch tokens to read than when the
tokens were averaged. Tokens of every scale are projected to one width, get their place as a fixed
code of sines, and stand in one row, over which queries with several heads attend.
Legend of shapes: B images, T tokens of all scales together, C channels of a scale, W width,
Q queries, M heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynaflip.eval.policies.readouts.base import ReadOut
from dynaflip.eval.policies.readouts.config import AttentiveConfig
from dynaflip.eval.policies.readouts.grid import TokenGrid


class Attentive(nn.Module):
    """Tokens → what the queries found, (B, Q·W)."""

    places: Tensor  # (T, W) codes of the tokens' places

    def __init__(self, grids: Sequence[TokenGrid], settings: AttentiveConfig) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.width = settings.queries * width
        self.project = nn.ModuleList(nn.Linear(grid.channels, width) for grid in grids)
        self.query = nn.Parameter(torch.randn(settings.queries, width))
        # A key's bias would add the same to all scores of a query.
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        places = torch.cat([_place_codes(grid.centres(), width) for grid in grids])
        self.register_buffer("places", places, persistent=False)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """S × (B, T, C) → (B, Q·W)."""
        x = self._placed(tokens)
        read = (self._attention(x).flatten(1, 2) @ x).unflatten(1, (self.heads, -1))  # (B, M, Q, W)
        # A mean of values is the value of the mean, which is one product an image, not one a token.
        weight, bias = (part.unflatten(0, (self.heads, -1)) for part in self.value.parameters())
        found = read @ weight.transpose(1, 2) + bias[:, None]  # (B, M, Q, W / M)
        return found.transpose(1, 2).flatten(1)

    def attention(self, tokens: list[Tensor]) -> Tensor:
        """Share of each token that is read: (B, M, Q, T), summing to 1 over the tokens."""
        return self._attention(self._placed(tokens))

    def _attention(self, x: Tensor) -> Tensor:
        """Softmax of the queries' products with the keys, the key's matrix taken to the query."""
        query = self.query.unflatten(1, (self.heads, -1)).transpose(0, 1)  # (M, Q, W / M)
        asked = query @ self.key.weight.unflatten(0, (self.heads, -1))  # (M, Q, W)
        scores = (x @ asked.flatten(0, 1).T).transpose(1, 2) / math.sqrt(query.shape[-1])
        return scores.softmax(-1).unflatten(1, (self.heads, -1))

    def _placed(self, tokens: list[Tensor]) -> Tensor:
        """Tokens of all scales in one row, projected and with their places: (B, T, W)."""
        pairs = zip(self.project, tokens, strict=True)
        return torch.cat([project(scale) for project, scale in pairs], 1) + self.places


def _place_codes(centres: Tensor, width: int) -> Tensor:
    """(T, 2) in [-1, 1] → (T, width): sines and cosines of x and y (Vaswani et al. 2017)."""
    octaves = 2.0 ** torch.linspace(0, 4, width // 4)
    angles = (centres[:, :, None] * octaves * math.pi / 2).flatten(1)  # (T, width / 2)
    return torch.cat([angles.sin(), angles.cos()], 1)


READOUT = ReadOut(AttentiveConfig, Attentive)
