"""Order of an epoch, from the index alone: which rows each rank trains on, batch by batch.

1. Clips in an order drawn from (seed, epoch); it does not depend on the files that they lie in.
2. Their rows, repeated or left out as the sampling says, without those trained on before.
3. Equally many of them for each rank, one after the other: a clip at a border is read by two.
4. Mixed by a shuffle buffer, so that the rows of a clip part.

Nothing is read for this, so that a resumed run begins at any batch at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dynaflip.platform.training.data.index import ClipTable
from dynaflip.platform.training.data.random_numbers import Purpose, bits, uniform
from dynaflip.platform.training.data.sampling import Position, Sampling


@dataclass(frozen=True)
class Rows:
    """Rows of clips, each an example of an epoch; arrays of one shape."""

    clip: np.ndarray  # int64 into the clip table
    row: np.ndarray  # int64 within the clip
    example: np.ndarray  # int64 id

    def __getitem__(self, key: slice | np.ndarray) -> Rows:
        """Some of them."""
        return Rows(self.clip[key], self.row[key], self.example[key])

    def __len__(self) -> int:
        """Length of the first axis."""
        return len(self.clip)

    def batches(self, size: int) -> Rows:
        """(S, size) full batches; the last rows that fill none are dropped."""
        whole = len(self) // size
        return Rows(
            *(a[: whole * size].reshape(whole, size) for a in (self.clip, self.row, self.example))
        )


def rank_batches(
    clips: ClipTable,
    sampling: Sampling,
    position: Position,
    *,
    rank: int,
    workers: int,
    batch_size: int,
    buffer_mb: float,
) -> Rows:
    """The batches that a rank still has in a part of an epoch: (S, batch_size), S for all alike.

    Args:
        clips: to train on.
        sampling: the seed, and how often rows come.
        position: the part; its first ``steps`` batches are left out.
        rank: of this worker.
        workers: their number.
        batch_size: of each worker.
        buffer_mb: size of the shuffle buffer.
    """
    mine = portion(epoch_rows(clips, sampling, position), rank, workers)
    keys = (sampling.seed, position.epoch, len(position.seen), rank)
    mixed = mine[shuffle_order(len(mine), buffer_rows(clips, buffer_mb), *keys)]
    return mixed.batches(batch_size)[position.steps :]


def epoch_rows(clips: ClipTable, sampling: Sampling, position: Position) -> Rows:
    """The rows of a part of an epoch in the order that all ranks share: clips in random order."""
    order = np.argsort(bits(Purpose.ORDER, sampling.seed, position.epoch, clips.key), kind="stable")
    counts = clips.rows[order].astype(np.int64)
    clip = np.repeat(order, counts)
    row = np.arange(len(clip)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = bits(Purpose.EXAMPLE, clips.key[clip], row)  # 63 bits, so that they fit int64
    rows = Rows(clip, row, (first >> np.uint64(1)).view(np.int64))
    if not sampling.is_plain():
        rows = _repeated(rows, sampling.rates_of(clips)[clip], sampling.seed, position.epoch)
    if not position.is_whole():
        rows = rows[~_contained(rows.example, position.seen)]
    return rows


def portion(rows: Rows, rank: int, workers: int) -> Rows:
    """The rows of a rank: equally many for each, those that are left over for none."""
    share = len(rows) // workers
    return rows[rank * share : (rank + 1) * share]


def buffer_rows(clips: ClipTable, buffer_mb: float) -> int:
    """Rows of the mean size that the shuffle buffer holds, at least 1."""
    return max(1, int(buffer_mb * 1e6 * clips.rows.sum() / max(1, clips.bytes.sum())))


def shuffle_order(rows: int, buffer: int, *keys: int) -> np.ndarray:
    """Positions in a stream of rows, in the order that they leave a shuffle buffer: (rows,) int64.

    When the buffer is full, a random one of its rows leaves for each that comes; at the end the
    rest leaves in random order. A buffer as large as the stream is a full shuffle.
    """
    buffer = min(buffer, rows)
    chance = uniform(Purpose.BUFFER, *keys, np.arange(rows))
    held = list(range(buffer))
    left = []
    slots = (chance[: rows - buffer] * buffer).astype(np.int64).tolist()
    for come, slot in enumerate(slots, buffer):
        left.append(held[slot])
        held[slot] = come
    rest = np.array(held, np.int64)[np.argsort(chance[rows - buffer :], kind="stable")]
    return np.concatenate([np.array(left, np.int64), rest])


def _repeated(rows: Rows, rates: np.ndarray, seed: int, epoch: int) -> Rows:
    """Rows floor(rate) times and by chance once more; repetitions are examples of their own."""
    chance = uniform(Purpose.REPETITION, seed, epoch, rows.example)
    times = (rates + chance).astype(np.int64)
    number = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
    again = Rows(*(np.repeat(a, times) for a in (rows.clip, rows.row, rows.example)))
    other = (bits(Purpose.EXAMPLE, again.example, number) >> np.uint64(1)).view(np.int64)
    return Rows(again.clip, again.row, np.where(number > 0, other, again.example))


def _contained(values: np.ndarray, sorted_ids: np.ndarray) -> np.ndarray:
    slots = np.minimum(np.searchsorted(sorted_ids, values), len(sorted_ids) - 1)
    return sorted_ids[slots] == values
