"""Spatial softmax: where in the image each of some learned maps is high.

Finn et al. 2016, "Deep spatial autoencoders for visuomotor learning" (arXiv 1509.06113); the habit
of Diffusion Policy and LeRobot. A learned linear map of the channels gives scores, a softmax over
the places makes weights of them, and the expected position is read: no more than two numbers a map.
Legend of shapes: B images, T tokens of a scale, C channels, K maps of a scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dynaflip.eval.policies.readouts.base import ReadOut
from dynaflip.eval.policies.readouts.config import SpatialSoftmaxConfig
from dynaflip.eval.policies.readouts.grid import TokenGrid


class SpatialSoftmax(nn.Module):
    """Tokens → expected positions of all maps of all scales, (B, 2·K·S)."""

    def __init__(self, grids: Sequence[TokenGrid], settings: SpatialSoftmaxConfig) -> None:
        super().__init__()
        self.temperature = settings.temperature
        self.width = 2 * settings.maps * len(grids)
        self.score = nn.ModuleList(nn.Linear(grid.channels, settings.maps) for grid in grids)
        self._centres = [grid.centres() for grid in grids]

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """S × (B, T, C) → (B, 2·K·S)."""
        return self.positions(tokens).flatten(1)

    def positions(self, tokens: list[Tensor]) -> Tensor:
        """S × (B, T, C) → (B, K·S, 2): x and y in [-1, 1]."""
        positions = [
            expected_positions(score(scale) / self.temperature, centres)
            for score, scale, centres in zip(self.score, tokens, self._centres, strict=True)
        ]
        return torch.cat(positions, 1).unflatten(1, (-1, 2))


def expected_positions(scores: Tensor, centres: Tensor) -> Tensor:
    """The mean position under the softmax of scores over places.

    Args:
        scores: (B, T, K).
        centres: (T, 2) of the places, of :meth:`TokenGrid.centres`.

    Returns:
        (B, 2K): x and y of each map in turn, in [-1, 1].
    """
    weights = scores.softmax(1)
    return (weights.transpose(1, 2) @ centres.to(scores)).flatten(1)


READOUT = ReadOut(SpatialSoftmaxConfig, SpatialSoftmax)
