"""Where the tokens of a feature map lie, and feature maps as rows.

Legend of shapes: B images, S scales (feature maps), T tokens and C channels of a scale, V values
of all scales of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TokenGrid(NamedTuple):
    """The tokens of one scale: rows × columns from the top left, each of some channels."""

    rows: int
    columns: int
    channels: int

    @property
    def places(self) -> int:
        """T."""
        return self.rows * self.columns

    @property
    def values(self) -> int:
        """T·C."""
        return self.places * self.channels

    def centres(self) -> Tensor:
        """(T, 2): x to the right and y down of the tokens' centres, the image's edges at ±1."""
        x = (torch.arange(self.columns) + 0.5) / self.columns * 2 - 1
        y = (torch.arange(self.rows) + 0.5) / self.rows * 2 - 1
        return torch.stack([x.repeat(self.rows), y.repeat_interleave(self.columns)], 1)


def flatten(maps: Sequence[Tensor]) -> Tensor:
    """Feature maps S × (B, C, h, w) as rows (B, V): scale by scale, token by token."""
    return torch.cat([one.flatten(2).transpose(1, 2).flatten(1) for one in maps], 1)


def grids_of(maps: Sequence[Tensor]) -> tuple[TokenGrid, ...]:
    """The grids of feature maps S × (B, C, h, w)."""
    return tuple(TokenGrid(one.shape[2], one.shape[3], one.shape[1]) for one in maps)
