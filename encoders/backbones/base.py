"""The interface of an image backbone; subclass :class:`Backbone` to add one.

The least that a new backbone needs is :meth:`Backbone.from_settings` and ``forward``. Widths are
measured with a blank image, so a backbone does not state them.
Shapes: B images, px the side of the square image in pixels, D embedding width, P spatial tokens
of width D'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dynaflip.encoders.config import ImageConfig
from dynaflip.errors import UserError


class Backbone(nn.Module):
    """A network from normalised pixels to an embedding and spatial tokens.

    Attributes:
        mean: of each channel over the images that the weights were trained on, of values in
            [0, 1]; subtracted from an image's.
        std: of each channel, by which the difference is divided.
        licence: of the pretrained weights, for the model card.
        frozen_blocks: number of first blocks, and what comes before them, that are not trained.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    licence: str = ""
    frozen_blocks: int = 0

    @classmethod
    def from_settings(cls, config: ImageConfig) -> Backbone:
        """A new backbone: with pretrained weights, or random ones without ``config.pretrained``.

        With ``config.frozen_blocks`` its first blocks do not require gradients; a backbone that
        freezes nothing then is refused.

        Raises:
            UserError: the weights cannot be reached, or the settings do not fit the network.
        """
        raise NotImplementedError

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any] | None, config: ImageConfig
    ) -> Backbone:
        """A backbone with random weights, to be filled from a checkpoint.

        It must reach no hub and need no package of weights. By default it is built from the
        settings without pretrained weights.

        Args:
            description: what :meth:`describe` gave.
            config: the saved settings.
        """
        return cls.from_settings(dataclasses.replace(config, pretrained=False))

    @classmethod
    def weights_identity(cls, config: ImageConfig, digest_of: Callable[[Path], str]) -> str:
        """Identity of the pretrained weights: a version, a digest of their content.

        ``pretrain --reuse`` takes an earlier encoder only where this is as it was. By default
        nothing, for a backbone whose weights never change.

        Args:
            config: the settings that name the weights.
            digest_of: digest of a folder of weights; it remembers what it has read.

        Raises:
            UserError: the weights cannot be reached.
        """
        return ""

    def describe(self) -> dict[str, Any] | None:
        """Architecture as a JSON object, from which :meth:`from_description` rebuilds it."""
        return None

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, px, px) → embedding (B, D) and tokens (B, P, D'), row-major."""
        raise NotImplementedError

    def token_grid(self, count: int) -> tuple[int, int] | None:
        """Rows and columns of the ``count`` tokens of a square image; None where there are none.

        By default a square.
        """
        side = math.isqrt(count)
        return (side, side) if side * side == count else None

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of normalised pixels, each (B, C, rows, columns), the coarsest first.

        By default the spatial tokens alone, as one map; a hierarchical network adds those of
        its earlier stages.

        Raises:
            UserError: the tokens have no grid.
        """
        return [self.as_map(self(pixels)[1])]

    def as_map(self, tokens: Tensor) -> Tensor:
        """Spatial tokens (B, P, D') as a feature map (B, D', rows, columns).

        Raises:
            UserError: they have no grid.
        """
        grid = self.token_grid(tokens.shape[1])
        if grid is None:
            raise UserError(
                f"backbone {type(self).__name__}: its {tokens.shape[1]} tokens are no square grid; "
                "it must give token_grid (rows, columns)"
            )
        return tokens.transpose(1, 2).unflatten(2, grid)

    def blocks(self) -> nn.ModuleList:
        """The repeated blocks; their activations can be recomputed to save memory.

        Without any the setting ``train.activation_checkpointing`` is refused.
        """
        return nn.ModuleList()


def finer_maps(stages: Sequence[Tensor], coarsest: Tensor) -> list[Tensor]:
    """Feature maps of earlier stages of a hierarchical network, beside its last one.

    Args:
        stages: outputs (B, C, rows, columns) of blocks or stages, in the network's order.
        coarsest: the last feature map.

    Returns:
        The last output of each finer size, the coarsest first, up to four times as many rows:
        beyond it features are edges and colours, and ever more of them.
    """
    rows = coarsest.shape[2]
    last = {stage.shape[2]: stage for stage in stages if rows < stage.shape[2] <= 4 * rows}
    return [last[size] for size in sorted(last)]
