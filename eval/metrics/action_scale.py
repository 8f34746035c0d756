"""Actions of any robot on one scale, and how far a policy's are from those that were recorded.

Legend of shapes: N moments, A action width, M entries of an action that move in training, S the
A - M that do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# An entry whose std is below this share of its largest value is constant but for rounding.
_CONSTANT = 1e-6


@dataclass(frozen=True)
class ActionScale:
    """Units of the actions of some training episodes; entries that are constant there have none."""

    moving: np.ndarray  # (A,) bool
    mean: np.ndarray  # (M,)
    std: np.ndarray  # (M,), of training: one sigma
    low: np.ndarray  # (M,), of training
    high: np.ndarray  # (M,)
    still: np.ndarray  # (S,): what the other entries are in training

    def constant(self) -> list[int]:
        """Entries that are constant in training, which are left out."""
        return np.flatnonzero(~self.moving).tolist()

    def to_unit(self, actions: np.ndarray) -> np.ndarray:
        """Entries that move, (N, A) → (N, M) float32: training's range is [-1, 1] in each."""
        chosen = np.asarray(actions, np.float64)[:, self.moving]
        return (2 * (chosen - self.low) / (self.high - self.low) - 1).astype(np.float32)

    def from_unit(self, actions: np.ndarray) -> np.ndarray:
        """Actions as the robot takes them, (…, M) of :meth:`to_unit` → (…, A) float32.

        Entries that are constant in training are what they were there.
        """
        found = np.empty((*actions.shape[:-1], len(self.moving)), np.float32)
        found[..., self.moving] = self._moved(actions)
        found[..., ~self.moving] = self.still
        return found

    def errors(self, predicted: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        """Action error at each moment in sigma, (N,): the root mean square over entries.

        sqrt(mean over entries d of ((a_d - a*_d) / sigma_d)²): 1 is about what always doing
        training's mean gives, whatever the robot's units are.

        Args:
            predicted: (N, M), in units of :meth:`to_unit`.
            recorded: (N, A), as recorded.
        """
        gap = self._moved(predicted) - np.asarray(recorded, np.float64)[:, self.moving]
        gap /= self.std
        return np.sqrt(np.square(gap).mean(axis=1))

    def errors_of_mean(self, recorded: np.ndarray) -> np.ndarray:
        """(N,) errors of always doing training's mean action."""
        gap = (np.asarray(recorded, np.float64)[:, self.moving] - self.mean) / self.std
        return np.sqrt(np.square(gap).mean(axis=1))

    def _moved(self, unit: np.ndarray) -> np.ndarray:
        """Entries that move, (…, M), from [-1, 1] to their own units."""
        return (np.asarray(unit, np.float64) + 1) / 2 * (self.high - self.low) + self.low


def action_scale(actions: np.ndarray) -> ActionScale:
    """The scale of training's actions (N, A).

    Raises:
        ValueError: no entry of them moves.
    """
    actions = np.asarray(actions, np.float64)
    std, largest = actions.std(axis=0), np.abs(actions).max(axis=0)
    moving = std > np.maximum(_CONSTANT * largest, 1e-12)
    if not moving.any():
        raise ValueError(f"all {actions.shape[1]} entries of the training actions are constant")
    chosen = actions[:, moving]
    still = actions[:, ~moving].mean(0)
    return ActionScale(moving, chosen.mean(0), std[moving], chosen.min(0), chosen.max(0), still)


def explained_share(errors: np.ndarray, of_mean: np.ndarray) -> float:
    """Share of the actions' variance about training's mean that a policy explains; at most 1.

    Args:
        errors: of :meth:`ActionScale.errors`, of any shape.
        of_mean: (…) of :meth:`ActionScale.errors_of_mean` at the same moments.
    """
    total = float(np.square(of_mean).sum())
    return 1 - float(np.square(errors).sum()) / total if total > 0 else float("nan")
