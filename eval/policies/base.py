"""The contract of a policy head, and how features become its input.

Legend of shapes: N frames, B parallel episodes, D feature width, I input width, T steps of a
chunk, A action width, P width of proprioception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from dynaflip.eval.policies.readouts.base import Reader
    from dynaflip.eval.policies.readouts.token_store import TokenStore


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

    trains_readout: bool = False
    """Whether ``fit`` reads batches by :class:`dynaflip.eval.policies.inputs.HeadInputs` and trains
    its parameters with its own. A head that does not is given pooled features alone."""


@dataclass(frozen=True)
class RecordedActions:
    """All R actions of the episodes that N frames are chosen from."""

    actions: np.ndarray  # (R, A) float32
    episode: np.ndarray  # (R,) int
    rows: np.ndarray  # (N,) int: which of them the frames have


@dataclass(frozen=True)
class Demonstrations:
    """Frames that a policy learns from, in the order of their episodes.

    There is no field for what only a simulator knows: a policy that is given object
    positions ignores its encoder.
    """

    features: np.ndarray  # (N, D) float32, frozen; D = 0 where a read-out reads tokens instead
    proprioception: np.ndarray  # (N, P) float32
    actions: np.ndarray  # (N, A) float32
    episode: np.ndarray  # (N,) int
    context: np.ndarray | None = None  # (N, C) float32: the task in words, of several tasks
    tokens: TokenStore | None = None  # of the N frames, frozen
    reader: Reader | None = None  # of the tokens; a fit trains it in place
    recorded: RecordedActions | None = None  # None: the frames are all that were recorded

    @property
    def action_dim(self) -> int:
        """A."""
        return self.actions.shape[1]

    def chunks(self, length: int) -> np.ndarray:
        """Each frame's next actions, (N, T, A) float32, as :func:`chunks_of`.

        They are those of the next control steps, also where only some frames were chosen.
        """
        if (recorded := self.recorded) is not None:
            return chunks_of(recorded.actions, recorded.episode, length)[recorded.rows]
        return chunks_of(self.actions, self.episode, length)

    def some(self, rows: np.ndarray) -> Demonstrations:
        """Chosen frames (M,) int alone, whole episodes in the same order."""
        return replace(
            self,
            features=self.features[rows],
            proprioception=self.proprioception[rows],
            actions=self.actions[rows],
            episode=self.episode[rows],
            context=None if self.context is None else self.context[rows],
            tokens=None if self.tokens is None else self.tokens.some(rows),
            recorded=None
            if self.recorded is None
            else replace(self.recorded, rows=self.recorded.rows[rows]),
        )

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


def seeded(seed: int) -> torch.Generator:
    """A generator of a policy's own: fitting leaves the global state alone."""
    return torch.Generator().manual_seed(seed)
