"""Does an epoch show other rows together than the one before? 64 ranks at 260,000 clips.

Uses the order that training uses, without data: ``python -m pytest
tests/benchmarks/test_order_between_epochs.py -m bench -s``. Nothing here depends on the machine but
the seconds, so that the ratio is asserted.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from expectation import show

from dynaflip.platform.training.data.index import ClipTable
from dynaflip.platform.training.data.order import (
    Rows,
    buffer_rows,
    epoch_rows,
    portion,
    shuffle_order,
)
from dynaflip.platform.training.data.sampling import Position, Sampling

pytestmark = pytest.mark.bench
CLIPS, PER_CLIP, RANKS, BATCH = 260_000, 8, 64, 32
ROW_BYTES = 90_000  # at 224 px
BUFFER_MB = 512.0  # the default
SEEN_CLIPS = 0.04  # of all, whose pairs are counted: of 64 × 32 rows each has 2,047 others


def clip_table() -> ClipTable:
    rows = np.full(CLIPS, PER_CLIP, np.int32)
    number = np.arange(CLIPS, dtype=np.int32)
    return ClipTable(
        files=tuple(f"/part-{i:05d}.parquet" for i in range(800)),
        file=number % 800,
        row_group=number // 800,
        rows=rows,
        bytes=rows.astype(np.int64) * ROW_BYTES,
        source=np.zeros(CLIPS, np.int32),
        sources=("one",),
        key=np.random.default_rng(0).permutation(CLIPS).astype(np.uint64),
    )


def epoch(clips: ClipTable, number: int) -> list[Rows]:
    """The batches of all ranks, as `rank_batches` makes them, with the epoch's rows made once."""
    rows = epoch_rows(clips, Sampling({}, 0), Position(number))
    buffer = buffer_rows(clips, BUFFER_MB)
    ranks = [portion(rows, rank, RANKS) for rank in range(RANKS)]
    return [
        mine[shuffle_order(len(mine), buffer, 0, number, 0, rank)].batches(BATCH)
        for rank, mine in enumerate(ranks)
    ]


def pairs(batches: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Pairs of chosen clips that share a batch, each once: (P,) int64. ``batches`` is (S, rows)."""
    found = []
    for batch in batches:
        clips = np.unique(batch[chosen[batch]]).astype(np.int64)
        one, two = np.triu_indices(len(clips), 1)
        found.append(clips[one] * CLIPS + clips[two])
    return np.unique(np.concatenate(found))


def test_successive_epochs_show_other_clips_together() -> None:
    clips = clip_table()
    began = time.perf_counter()
    epochs = [np.stack([rows.clip for rows in epoch(clips, number)]) for number in (0, 1)]
    print(f"\norder of two epochs for {RANKS} ranks: {time.perf_counter() - began:.1f} s")
    number = int(SEEN_CLIPS * CLIPS)
    chosen = np.zeros(CLIPS, bool)
    chosen[np.random.default_rng(1).permutation(CLIPS)[:number]] = True
    possible = number * (number - 1) / 2
    for name, batches in (
        ("a worker's batch", [e.reshape(-1, BATCH) for e in epochs]),
        ("the whole batch", [e.transpose(1, 0, 2).reshape(e.shape[1], -1) for e in epochs]),
    ):
        first, second = (pairs(b, chosen) for b in batches)
        both = len(np.intersect1d(first, second, assume_unique=True))
        chance = len(first) * len(second) / possible
        print(f"{name}: {both} pairs of clips in both epochs, {chance:.0f} by chance")
        show(f"pairs in {name} again / chance", both / chance, at_most=1.5)
        assert both <= 1.5 * chance


def test_siblings_of_a_clip_in_a_batch() -> None:
    """What the buffer is for: a full shuffle has next to none."""
    clips = clip_table()
    rows = portion(epoch_rows(clips, Sampling({}, 0), Position(0)), 0, RANKS)

    def share(buffer_mb: float) -> float:
        order = shuffle_order(len(rows), buffer_rows(clips, buffer_mb), 0)
        batches = rows[order].batches(BATCH).clip
        return float(np.mean([len(np.unique(batch)) < BATCH for batch in batches]))

    print()
    shares = {mb: share(mb) for mb in (1, 64, 128, 256, 512, 1024, 2048, 4096)}
    for mb, value in shares.items():
        print(f"  buffer {mb:5.0f} MB: {100 * value:5.1f} % of a worker's batches hold siblings")
    assert shares[4096] < shares[512] < shares[64] < shares[1] == 1
