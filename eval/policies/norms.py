"""How a head's inputs, and the channels of tokens, are standardised.

Legend of shapes: N frames, B of them in a batch, I input width, T tokens of a frame, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dynaflip.eval.metrics.probes import RELATIVE_STD_FLOOR
from dynaflip.eval.policies.config import STD_FLOOR


class StdFloorNorm(nn.Module):
    """Standardises (B, I) by fixed means and stds, with a floor under the features' stds."""

    running_mean: Tensor  # (I,), named as BatchNorm's
    spread: Tensor  # (I,), the stds; the name is that of stored policies

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(input_dim))
        self.register_buffer("spread", torch.ones(input_dim))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, I) → (B, I)."""
        return (inputs - self.running_mean) / self.spread

    def set_statistics(self, mean: Tensor, std: Tensor, feature_dim: int) -> None:
        """Take mean and std (I,) of all inputs, whose first columns are the features."""
        std, features = std.clone(), std[:feature_dim]
        if feature_dim:
            floor = RELATIVE_STD_FLOOR * features.square().mean().sqrt()
            std[:feature_dim] = features.clamp(min=float(floor))
        self.running_mean.copy_(mean)
        self.spread.copy_(std.clamp(min=1e-8))


def input_norm(kind: str, input_dim: int) -> nn.Module:
    """The layer that a head's inputs pass first: one of ``config.INPUT_NORMS``."""
    return StdFloorNorm(input_dim) if kind == STD_FLOOR else nn.BatchNorm1d(input_dim)


def set_statistics(norm: nn.Module, inputs: Tensor, feature_dim: int, trained_dim: int = 0) -> None:
    """Give a norm its statistics before the fit, where it does not gather them during it.

    Args:
        norm: of :func:`input_norm`, for inputs of trained_dim + I.
        inputs: (N, I), whose first columns are the features.
        feature_dim: number of the features.
        trained_dim: width of what stands before them and is yet to be trained: it is left as it
            is.
    """
    if not isinstance(norm, StdFloorNorm):
        return
    mean, std = torch.zeros(trained_dim), torch.ones(trained_dim)
    if trained_dim:
        assert feature_dim == 0, "features and tokens are not read together"
    if inputs.shape[1]:
        mean, std = torch.cat([mean, inputs.mean(0)]), torch.cat([std, inputs.std(0)])
    norm.set_statistics(mean, std, feature_dim)


def set_token_statistics(
    norm: nn.Module, batches: Callable[[], Iterable[Tensor]], channels: int
) -> None:
    """As :func:`set_statistics` of tokens: a mean and a std for each channel, over all places.

    Args:
        norm: of :func:`input_norm`, for ``channels``.
        batches: gives all frames' tokens (B, T·C) in batches; it is called twice.
        channels: C.
    """
    if not isinstance(norm, StdFloorNorm):
        return
    count, total = 0, torch.zeros(channels, dtype=torch.float64)
    for batch in batches():
        tokens = batch.view(-1, channels).double()
        count, total = count + len(tokens), total + tokens.sum(0)
    mean, squares = total / count, torch.zeros(channels, dtype=torch.float64)
    for batch in batches():
        squares += (batch.view(-1, channels).double() - mean).square().sum(0)
    std = (squares / max(count - 1, 1)).sqrt()
    norm.set_statistics(mean.float(), std.float(), channels)
