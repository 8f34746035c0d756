"""The contract of a policy head, and how features become its input.

Legend of shapes: N frames, B parallel episodes, D feature width, I input width, T steps of a
chunk, A action width, P width of proprioception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dynaflip.eval.metrics.probes import RELATIVE_STD_FLOOR
from dynaflip.eval.policies.config import STD_FLOOR


class Head(Protocol):
    """A fitted head: it maps inputs to the next actions."""

    def plan(self, inputs: Tensor) -> Tensor:
        """(B, I) → (B, T, A): actions of the next T steps, in [-1, 1]."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights, from which :attr:`PolicyHead.load` makes it again."""
        ...


@dataclass(frozen=True)
class PolicyHead:
    """A kind of policy head, as it is registered by name.

    An outsider's is one object of this class: named ``class:MODULE:NAME`` in the settings, or by
    an entry point of the group ``dynaflip.policy_head``.
    """

    settings: type[Any]
    """Dataclass of its settings; every field has a default and is a plain value."""

    fit: Callable[..., Head]
    """``fit(demonstrations, settings, use_proprioception=…, seed=…)`` learns from
    :class:`Demonstrations`; equal arguments give equal weights."""

    load: Callable[[Mapping[str, Tensor], Any], Head]
    """``load(state_dict, settings)`` makes a fitted head again; the widths of its input and of the
    actions follow from its own weights."""


@dataclass(frozen=True)
class Demonstrations:
    """Frames that a policy learns from, in the order of their episodes.

    There is no field for what only a simulator knows: a policy that is given object
    positions ignores its encoder.
    """

    features: np.ndarray  # (N, D) float32, frozen
    proprioception: np.ndarray  # (N, P) float32
    actions: np.ndarray  # (N, A) float32
    episode: np.ndarray  # (N,) int
    context: np.ndarray | None = None  # (N, C) float32: the task in words, of several tasks

    @property
    def action_dim(self) -> int:
        """A."""
        return self.actions.shape[1]

    def chunks(self, length: int) -> np.ndarray:
        """Each frame's next actions, (N, T, A) float32, as :func:`chunks_of`."""
        return chunks_of(self.actions, self.episode, length)

    def inputs(self, use_proprioception: bool) -> np.ndarray:
        """(N, I) float32."""
        return join(
            self.features, self.proprioception if use_proprioception else None, self.context
        )


def chunks_of(actions: np.ndarray, episode: np.ndarray, length: int) -> np.ndarray:
    """Each frame's next ``length`` actions; past an episode's end its last one is repeated.

    Args:
        actions: (N, A), frames in the order of their episodes.
        episode: (N,) int, equal for the frames of an episode.
        length: T.

    Returns:
        (N, T, A), the frame's own action first.
    """
    number = len(actions)
    ends = np.append(np.flatnonzero(np.diff(episode)), number - 1)  # last frame of each episode
    last = ends[np.searchsorted(ends, np.arange(number))]
    return actions[np.minimum(np.arange(number)[:, None] + np.arange(length), last[:, None])]


def join(
    features: np.ndarray, proprioception: np.ndarray | None, context: np.ndarray | None
) -> np.ndarray:
    """Inputs of a head: features, then what the robot knows of itself, then the task's words."""
    parts = [part for part in (features, proprioception, context) if part is not None]
    return np.concatenate(parts, axis=1).astype(np.float32, copy=False)


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

    def set_statistics(self, inputs: Tensor, feature_dim: int) -> None:
        """Take the statistics of all inputs (N, I), whose first columns are the features."""
        std = inputs.std(0)
        features = std[:feature_dim]
        floor = RELATIVE_STD_FLOOR * features.square().mean().sqrt()
        std[:feature_dim] = features.clamp(min=float(floor))
        self.running_mean.copy_(inputs.mean(0))
        self.spread.copy_(std.clamp(min=1e-8))


def input_norm(kind: str, input_dim: int) -> nn.Module:
    """The layer that a head's inputs pass first: one of ``config.INPUT_NORMS``."""
    return StdFloorNorm(input_dim) if kind == STD_FLOOR else nn.BatchNorm1d(input_dim)


def set_statistics(norm: nn.Module, inputs: Tensor, feature_dim: int) -> None:
    """Give a norm its statistics before the fit, where it does not gather them during it."""
    if isinstance(norm, StdFloorNorm):
        norm.set_statistics(inputs, feature_dim)


def seeded(seed: int) -> torch.Generator:
    """A generator of a policy's own: fitting leaves the global state alone."""
    return torch.Generator().manual_seed(seed)
