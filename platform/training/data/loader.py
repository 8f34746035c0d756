"""From triplet rows to batches, with and without Ray.

A *row* is one triplet, images still encoded. Shards stream in a fixed mixed order, their rows
pass a seeded shuffle buffer, and are decoded batch by batch in a thread ahead of the step.
Every random number is a function of (seed, epoch, rank, triplet id): the order and
the augmentation of a run can be taken up again at any step.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import torch

from dynaflip.errors import UserError
from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.collate import TENSOR_SHAPES, Batch, Collate, Row, id64
from dynaflip.platform.training.data.prefetch import Prefetched
from dynaflip.platform.triplets.schema import read_manifest

T = TypeVar("T")

# What training reads; the tracks in pixels, more than half of a row, stay on disk.
COLUMNS = [
    "triplet_id",
    "clip_id",
    "recording_id",
    "source",
    "caption",
    "caption_group",
    "task",
    "frame_t",
    "frame_next",
    "frames_r3m",
    "t_s",
    "window_s",
    "frames_r3m_s",
    "flow_origin_m",
    "flow_displacement_m",
    "flow_visible",
    "median_depth_m",
]


@dataclass(frozen=True)
class TripletIndex:
    """What the driver knows of a triplet folder without reading an image."""

    folder: str
    digest: str
    captions: list[str]  # distinct, sorted
    caption_groups: list[str]  # of the training triplets, distinct, sorted
    counts: dict[str, int]  # triplets by split
    sources: dict[str, int]  # training triplets by source
    # What the triplets' own settings give each source; empty where they give all the same.
    weights: dict[str, float]
    licences: list[str]
    flow_sources: list[str]
    depth_kinds: list[str]
    heldout: pa.Table  # triplet_id, clip_id, recording_id of split heldout

    def provenance(self) -> dict[str, Any]:
        """What an encoder says of the triplets that it was made from."""
        return {
            "data_digest": self.digest,
            "sources": self.sources,
            "licences": self.licences,
            "caption_groups": self.caption_groups,
            "flow_sources": self.flow_sources,
            "depth_kinds": self.depth_kinds,
        }


def shard_paths(folder: str) -> list[str]:
    """The Parquet shards of a triplet folder, in the one order that all readers use.

    By a hash of their names: shards are numbered source by source, and in that order a shuffle
    buffer that is smaller than a source would give batches of one source alone.
    """
    paths = (Path(folder) / "triplets").glob("*.parquet")
    return [str(path) for path in sorted(paths, key=lambda path: _hashed(path.name))]


def read_index(folder: str) -> TripletIndex:
    """Read the small columns of a triplet folder.

    Raises:
        UserError: no triplet folder, one of another schema version, or an empty one.
    """
    manifest = read_manifest(folder)
    paths = shard_paths(folder)
    if not paths:
        raise UserError(f"triplets: {folder} holds no triplets (triplets/*.parquet)")
    names = ["triplet_id", "clip_id", "recording_id", "split", "caption"]
    described = ["source", "licence", "flow_source", "depth_kind", "caption_group"]
    table = pads.dataset(paths).to_table(columns=[*names, *described])
    splits = pc.value_counts(table["split"]).to_pylist()
    train = table.filter(pc.field("split") == "train")
    sources = pc.value_counts(train["source"]).to_pylist()
    heldout = table.filter(pc.field("split") == "heldout")
    counts = {c["values"]: c["counts"] for c in sorted(sources, key=lambda c: c["values"])}
    return TripletIndex(
        folder=folder,
        digest=str(manifest["digest"]),
        captions=sorted(pc.unique(table["caption"]).to_pylist()),
        caption_groups=sorted(pc.unique(train["caption_group"]).to_pylist()),
        counts={"train": 0, "heldout": 0} | {c["values"]: c["counts"] for c in splits},
        sources=counts,
        weights=_weights_of(manifest, counts),
        licences=sorted(pc.unique(table["licence"]).to_pylist()),
        flow_sources=sorted(pc.unique(table["flow_source"]).to_pylist()),
        depth_kinds=sorted(pc.unique(table["depth_kind"]).to_pylist()),
        heldout=heldout.select(names[:3]),
    )


def _weights_of(manifest: dict[str, Any], sources: dict[str, int]) -> dict[str, float]:
    about = manifest.get("sources", {})
    weights = {name: float(about.get(name, {}).get("weight", 1.0)) for name in sources}
    return {} if len(set(weights.values())) < 2 else weights


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

    Copies, or a row in the shuffle buffer would keep its whole table in memory. Beside the
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


@dataclass(frozen=True)
class Position:
    """Where in the data a run is. A part of an epoch is what a fixed number of workers reads.

    A run that goes on with other workers than before ends the part: what is left of the
    epoch, all rows but those in ``seen``, is dealt out anew.
    """

    epoch: int = 0
    # Steps done in this part.
    steps: int = 0
    # (M,) int64 sorted example ids that earlier parts of this epoch have had, of all workers.
    seen: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def is_whole(self) -> bool:
        """Whether the part is the whole epoch."""
        return len(self.seen) == 0

    def seed(self, rank: int) -> list[int]:
        """Seeds the part's order on a rank."""
        return [self.epoch, rank, *([] if self.is_whole() else [len(self.seen)])]


@dataclass(frozen=True)
class Sampling:
    """How often an epoch shows the rows of each source.

    A row comes ``floor(rate)`` times and by chance once more: a draw of (seed, epoch,
    triplet id), so that it does not matter which worker reads the row.
    """

    rates: dict[str, float]  # mean number of times; empty = every row once
    seed: int

    def is_plain(self) -> bool:
        """Whether every row comes exactly once."""
        return not self.rates

    def __call__(self, rows: Iterable[Row], position: Position) -> Iterator[Row]:
        """Repeat, leave out, and skip what the epoch has had; repetitions have ids of their own."""
        for row in rows:
            for example in self._examples(row, position.epoch):
                if position.is_whole() or not _contains(position.seen, example):
                    yield {**row, "example": example}

    def _examples(self, row: Row, epoch: int) -> list[int]:
        name = row["triplet_id"]
        if self.is_plain():
            return [row["example"]]
        rate = self.rates.get(row["source"], 0.0)
        # The last number parts this draw from the one that `Collate` augments the row with.
        draw = np.random.default_rng([self.seed, epoch, id64(name), 1]).random()
        times = int(rate + draw)
        return [id64(f"{name}#{copy}" if copy else name) for copy in range(times)]


def sampling_of(config: DataConfig, index: TripletIndex, seed: int) -> Sampling:
    """The rates that give each source its share of the samples, an epoch's length kept.

    Args:
        config: holds the weights; without any, the triplets' own are taken.
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
    place = int(np.searchsorted(values, value))
    return place < len(values) and int(values[place]) == value


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
    """The full batches of a part of an epoch in seeded order; what is left over is dropped.

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


def gallery_batch(index: TripletIndex, collate: Collate, size: int) -> Batch | None:
    """A fixed gallery of held-out transitions, in id order; None where there are fewer than 2.

    Whole clips are taken in the order of a hash of their recording until ``size``
    transitions are reached, so that every clip's other transitions are in it and a
    larger data set keeps most of a smaller one's gallery.
    """
    heldout = index.heldout.to_pylist()
    heldout.sort(key=lambda row: (_hashed(row["recording_id"]), row["clip_id"], row["triplet_id"]))
    chosen: set[str] = set()
    for _, clip in itertools.groupby(heldout, key=lambda row: row["clip_id"]):
        if len(chosen) >= size:
            break
        chosen |= {row["triplet_id"] for row in clip}
    if len(chosen) < 2:
        return None
    rows = [
        row
        for table in read_tables(index.folder, "heldout")
        for row in rows_of(table)
        if row["triplet_id"] in chosen
    ]
    rows.sort(key=lambda row: row["triplet_id"])
    return collate(rows, 0)


def _full_groups(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while len(group := list(itertools.islice(rows, size))) == size:
        yield group


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
