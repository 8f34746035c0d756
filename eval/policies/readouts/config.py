"""Settings of the read-outs. Imports no torch, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from dynaflip.checks import above, at_least

POOLED = "pooled"


@dataclass(frozen=True)
class PooledConfig:
    """The encoder's embedding: there is nothing to set."""


@dataclass(frozen=True)
class AttentiveConfig:
    """Attention pooling: see :mod:`dynaflip.eval.policies.readouts.attentive`."""

    scales: int = 1
    """How many of the encoder's feature maps are read, the coarsest first. A vision transformer
    has one, EfficientNet-Lite0 three (4x4, 7x7 and 14x14 for images of 112 px); an encoder that has
    fewer gives all that it has."""

    width: int = 64
    """Width that tokens of every scale are projected to."""

    heads: int = 4
    """Attention heads."""

    queries: int = 1
    """Trained queries; what each finds is read side by side."""

    def __post_init__(self) -> None:
        at_least(self, 1, "scales", "width", "heads", "queries")
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width ({self.width}) must be a multiple of 4 and of heads ({self.heads})"
            )


@dataclass(frozen=True)
class SpatialSoftmaxConfig:
    """Expected positions: see :mod:`dynaflip.eval.policies.readouts.spatial_softmax`."""

    scales: int = 1
    """How many of the encoder's feature maps are read, the coarsest first; see attentive.scales."""

    maps: int = 32
    """Learned maps of each scale; each gives one position."""

    temperature: float = 1.0
    """What the maps are divided by before the softmax: lower is sharper."""

    def __post_init__(self) -> None:
        at_least(self, 1, "scales", "maps")
        above(self, 0, "temperature")
