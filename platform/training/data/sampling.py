"""Sampling: where in the data a run is, and how often an epoch shows each triplet.

Every random number is a function of (seed, epoch, triplet), so that neither the number of
workers nor a resumed run changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dynaflip.platform.training.config import DataConfig

if TYPE_CHECKING:
    from dynaflip.platform.training.data.index import ClipTable, TripletIndex


@dataclass(frozen=True)
class Position:
    """Position of a run in the data: the epoch, its part, and the steps done in that part.

    A part of an epoch is what one number of workers reads. A run that is resumed with another
    number begins a new part: the rest of the epoch, all rows but those in ``seen``, is distributed
    among the workers anew.
    """

    epoch: int = 0
    # Steps done in this part.
    steps: int = 0
    # (M,) int64 sorted ids of the examples in earlier parts of this epoch, of all workers.
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def is_whole(self) -> bool:
        """True if the part is the whole epoch."""
        return len(self.seen) == 0

    def is_same(self, other: Position) -> bool:
        """True if both are the same step of the same part."""
        here, there = (self.epoch, self.steps), (other.epoch, other.steps)
        return here == there and np.array_equal(self.seen, other.seen)


@dataclass(frozen=True)
class Sampling:
    """Numbers of times that an epoch shows the rows of each source.

    A row comes ``floor(rate)`` times and by chance once more (:func:`.order.epoch_rows`).
    """

    rates: dict[str, float]  # mean number of times; empty = every row once
    seed: int  # of the run

    def is_plain(self) -> bool:
        """True if every row comes exactly once."""
        return not self.rates

    def rates_of(self, clips: ClipTable) -> np.ndarray:
        """The rate of each clip's rows: (C,) float64."""
        return np.array([self.rates.get(name, 0.0) for name in clips.sources])[clips.source]


def sampling_of(config: DataConfig, index: TripletIndex, seed: int) -> Sampling:
    """The rates that give each source its share of the samples at the same length of an epoch.

    Args:
        config: has the weights; without any, those of the triplets are used.
        index: of the triplets.
        seed: of the run.

    Raises:
        ValueError: a source that the triplets do not have.
    """
    weights, sources = config.source_weights or index.weights, index.sources
    if unknown := sorted(set(weights) - set(sources)):
        raise ValueError(
            f"data.source_weights: the triplets have no source {', '.join(unknown)}; "
            f"theirs are {', '.join(sources)}"
        )
    total = sum(weights.values())
    number = sum(sources.values())
    return Sampling(
        {name: weight / total * number / sources[name] for name, weight in weights.items()}, seed
    )
