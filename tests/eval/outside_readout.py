"""A read-out as somebody outside would write it: tokens of the image's corners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynaflip.eval.policies.readouts.base import ReadOut
from dynaflip.eval.policies.readouts.grid import TokenGrid


@dataclass(frozen=True)
class CornerSettings:
    """Which corners are read."""

    bottom: bool = False


class Corners(nn.Module):
    def __init__(self, grids: Sequence[TokenGrid], settings: CornerSettings) -> None:
        super().__init__()
        grid = grids[0]
        self.places = [0, grid.columns - 1]
        if settings.bottom:
            self.places += [grid.places - grid.columns, grid.places - 1]
        self.width = len(self.places)
        self.project = nn.Linear(grid.channels, 1)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        return torch.cat([self.project(tokens[0][:, place]) for place in self.places], 1)


READOUT = ReadOut(CornerSettings, Corners)
