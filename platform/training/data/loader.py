"""Loader: from triplet rows to training batches, with and without Ray.

A *row* is one triplet, images still encoded. Shards stream in a fixed mixed order, their rows
pass a seeded shuffle buffer, and are decoded batch by batch in a thread ahead of the step
(augmentation happens there, in :mod:`.collate`). Every random number is a function of (seed,
epoch, rank, triplet id): the order and the augmentation of a run can be resumed at any step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import torch

from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.collate import TENSOR_SHAPES, Batch, Collate, Row
from dynaflip.platform.training.data.ids import id64
from dynaflip.platform.training.data.index import shard_paths
from dynaflip.platform.training.data.prefetch import Prefetched
from dynaflip.platform.training.data.sampling import Position, Sampling
from dynaflip.platform.triplets.schema import TRAINING_COLUMNS

T = TypeVar("T")

COLUMNS = list(TRAINING_COLUMNS)


def read_tables(folder: str, split: str) -> Iterator[pa.Table]:
    """Stream one split's rows, shard by shard, with plain pyarrow (no Ray)."""
    dataset = pads.dataset(shard_paths(folder))
    batches = dataset.to_batches(
        columns=COLUMNS, filter=pc.field("split") == split, batch_size=256, batch_readahead=2
    )
    for batch in batches:
        yield pa.Table.from_batches([batch])


def rows_of(table: pa.Table) -> Iterator[Row]:
    """Split a table into rows: JPEG bytes, plain values, numpy copies of the tensors.

    Copies, because a view in the shuffle buffer would hold its whole table in memory. Beside the
    columns a row has ``example``, the triplet's id as a number.
    """
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        column = table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # of no rows
            return
        if name in TENSOR_SHAPES:
            storage = column.storage if isinstance(column, pa.ExtensionArray) else column
            flat = storage.flatten().to_numpy(zero_copy_only=True)
            columns[name] = flat.reshape(-1, *TENSOR_SHAPES[name])
        else:
            columns[name] = column.to_pylist()
    columns["example"] = [id64(name) for name in columns["triplet_id"]]
    for index in range(table.num_rows):
        row = {name: values[index] for name, values in columns.items()}
        yield row | {name: row[name].copy() for name in TENSOR_SHAPES}


def shuffled(rows: Iterable[T], buffer_rows: int, rng: np.random.Generator) -> Iterator[T]:
    """Mix a stream with a buffer: each row leaves at a random later turn.

    A buffer as large as the stream is a full shuffle.
    """
    buffer: list[T] = []
    for row in rows:
        if len(buffer) < buffer_rows:
            buffer.append(row)
            continue
        slot = int(rng.integers(buffer_rows))
        yield buffer[slot]
        buffer[slot] = row
    for slot in rng.permutation(len(buffer)):
        yield buffer[slot]


def epoch_batches(
    tables: Iterable[pa.Table],
    collate: Collate,
    config: DataConfig,
    sampling: Sampling,
    position: Position,
    *,
    batch_size: int,
    rank: int,
) -> Iterator[Batch]:
    """The full batches of a part of an epoch in seeded order; an incomplete one is dropped.

    Args:
        tables: this rank's rows, in the order of :func:`shard_paths`.
        collate: makes a batch of rows.
        config: shuffle buffer and prefetch.
        sampling: which rows come how often.
        position: the part; its first ``steps`` batches are not decoded.
        batch_size: of this rank.
        rank: of this worker.
    """
    rng = np.random.default_rng([collate.seed, *position.seed(rank)])
    rows = sampling((row for t in tables for row in rows_of(t)), position)
    groups = _full_groups(shuffled(rows, config.shuffle_buffer_rows, rng), batch_size)
    rest = itertools.islice(groups, position.steps, None)
    batches = (_pinned(collate(group, position.epoch)) for group in rest)
    return Prefetched(batches, config.prefetch_batches)


def _pinned(batch: Batch) -> Batch:
    """In memory that a GPU can copy from while it computes, where there is one."""
    if not torch.cuda.is_available():
        return batch
    return {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def plain_tables(
    folder: str, split: str, *, rank: int = 0, world_size: int = 1
) -> Callable[[int], Iterator[pa.Table]]:
    """Tables of one rank for every epoch, without Ray: rank r takes every W-th row."""

    def tables(epoch: int) -> Iterator[pa.Table]:
        seen = 0
        for table in read_tables(folder, split):
            mine = np.arange(-(seen - rank) % world_size, table.num_rows, world_size)
            seen += table.num_rows
            yield table.take(pa.array(mine)) if world_size > 1 else table

    return tables


def _full_groups(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while len(group := list(itertools.islice(rows, size))) == size:
        yield group
