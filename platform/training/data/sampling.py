"""Sampling: where in the data a run is, and how often an epoch shows each triplet.

Every random number is a function of (seed, epoch, triplet id), so that neither the number of
workers nor a resumed run changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.collate import Row
from dynaflip.platform.training.data.ids import id64
from dynaflip.platform.training.data.index import TripletIndex


@dataclass(frozen=True)
class Position:
    """Where in the data a run is: the epoch, its part, and the steps done in that part.

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
        """Whether the part is the whole epoch."""
        return len(self.seen) == 0

    def seed(self, rank: int) -> list[int]:
        """Seeds the part's order on a rank."""
        return [self.epoch, rank, *([] if self.is_whole() else [len(self.seen)])]


@dataclass(frozen=True)
class Sampling:
    """How often an epoch shows the rows of each source, and which repetition is which example.

    A row comes ``floor(rate)`` times and by chance once more: a draw of (seed, epoch,
    triplet id), so that it does not matter which worker reads the row.
    """

    rates: dict[str, float]  # mean number of times; empty = every row once
    seed: int

    def is_plain(self) -> bool:
        """Whether every row comes exactly once."""
        return not self.rates

    def __call__(self, rows: Iterable[Row], position: Position) -> Iterator[Row]:
        """Repeat or leave out rows, and skip those seen; repetitions have ids of their own."""
        for row in rows:
            for example in self._examples(row, position.epoch):
                if position.is_whole() or not _contains(position.seen, example):
                    yield {**row, "example": example}

    def _examples(self, row: Row, epoch: int) -> list[int]:
        name = row["triplet_id"]
        if self.is_plain():
            return [row["example"]]
        rate = self.rates.get(row["source"], 0.0)
        # The last number separates this draw from those that `Collate` augments the row with.
        draw = np.random.default_rng([self.seed, epoch, id64(name), 1]).random()
        times = int(rate + draw)
        return [id64(f"{name}#{copy}" if copy else name) for copy in range(times)]


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


def _contains(values: np.ndarray, value: int) -> bool:
    slot = int(np.searchsorted(values, value))
    return slot < len(values) and int(values[slot]) == value
