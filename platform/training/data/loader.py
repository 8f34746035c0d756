"""Feed: a run's batches, read and decoded in threads ahead of the training step.

The order is known from the index (:mod:`.order`). Clips are read when a batch first needs one of
their rows, and what is kept of them (:class:`.collate.Rows`) waits until the last of these rows
has come: that is the shuffle buffer. Reading and decoding go on across the end of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from dynaflip.platform.s3 import Traffic
from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.collate import Batch, Collate, PendingBatch, Rows
from dynaflip.platform.training.data.index import ClipTable
from dynaflip.platform.training.data.order import rank_batches
from dynaflip.platform.training.data.prefetch import Prefetched
from dynaflip.platform.training.data.row_groups import RowGroupReader
from dynaflip.platform.training.data.sampling import Position, Sampling
from dynaflip.platform.triplets.schema import TRAINING_COLUMNS

_CLIPS_AHEAD = 64  # read before a batch needs them
_TASKS_PER_THREAD = 2  # of a batch, so that the last thread is not waited for long


class Feed:
    """The batches of one rank, from any position in the data."""

    def __init__(
        self,
        clips: ClipTable,
        collate: Collate,
        config: DataConfig,
        sampling: Sampling,
        *,
        batch_size: int,
        rank: int = 0,
        workers: int = 1,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        """Take what decides the batches; nothing is read yet.

        Args:
            clips: to train on.
            collate: makes batches of rows.
            config: shuffle buffer, threads and prefetch.
            sampling: which rows come how often.
            batch_size: of this rank.
            rank: of this worker.
            workers: their number.
            threads: that decode, where the settings do not say.
            device: that batches are copied to.
        """
        self.clips, self.collate, self.config, self.sampling = clips, collate, config, sampling
        self.batch_size, self.rank, self.workers, self.device = batch_size, rank, workers, device
        self.threads = config.decode_threads or threads
        self.reader = RowGroupReader(clips, TRAINING_COLUMNS)
        self._stream: Prefetched[PendingBatch | None] | None = None
        self._next: Position | None = None  # that the stream has next
        self._traffic: dict[int, Traffic] = {}  # of epochs

    def __call__(self, position: Position) -> Iterator[Batch]:
        """The batches from a position to the end of its part of the epoch.

        All ranks have equally many. Reading begins at once, and where the part before was used
        up it has begun already.
        """
        if self._stream is None or self._next is None or not self._next.is_same(position):
            self.close()
            self._stream = Prefetched(self._batches(position), self.config.prefetch_batches)
        self._next = None
        return self._rest(self._stream, position)

    def traffic(self, epoch: int) -> Traffic | None:
        """Requests of an epoch to the bucket so far; None where triplets lie on a disk."""
        return self._traffic.setdefault(epoch, Traffic()) if self.reader.in_bucket else None

    def close(self) -> None:
        """Stop reading."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _rest(self, stream: Prefetched[PendingBatch | None], position: Position) -> Iterator[Batch]:
        for pending in stream:
            if pending is None:
                self._next = Position(position.epoch + 1)
                return
            yield pending.result()

    def _batches(self, position: Position) -> Iterator[PendingBatch | None]:
        """The batches of a part and of all epochs after it, None after the last of each."""
        read_pool = ThreadPoolExecutor(self.reader.threads, "read")
        decode_pool = ThreadPoolExecutor(self.threads, "decode")
        try:
            if self.device.startswith("cuda"):
                torch.cuda.set_device(self.device)  # of this thread
            part, following = _Part(self, position), None
            while True:
                for step in range(part.steps):
                    wanted = part.clips_until(step) + _CLIPS_AHEAD
                    part.read(read_pool, wanted)
                    if wanted > part.clips:
                        following = following or _Part(self, Position(part.position.epoch + 1))
                        following.read(read_pool, wanted - part.clips)
                    yield self._start(part.take(step), part.position.epoch, decode_pool)
                yield None
                part = following or _Part(self, Position(part.position.epoch + 1))
                following = None
        finally:
            for pool in (read_pool, decode_pool):
                pool.shutdown(wait=False, cancel_futures=True)

    def _start(
        self, rows: list[tuple[Rows, int]], epoch: int, pool: ThreadPoolExecutor
    ) -> PendingBatch:
        tasks = _TASKS_PER_THREAD * self.threads
        pinned = self.device.startswith("cuda")
        return self.collate.start(rows, epoch, pool, tasks, pinned=pinned)


class _Part:
    """A part of an epoch: which batch needs which rows, and those that are in memory."""

    def __init__(self, feed: Feed, position: Position) -> None:
        self.feed, self.position = feed, position
        rows = rank_batches(
            feed.clips,
            feed.sampling,
            position,
            rank=feed.rank,
            workers=feed.workers,
            batch_size=feed.batch_size,
            buffer_mb=feed.config.shuffle_buffer_mb,
        )
        self.steps = len(rows)
        flat = rows.clip.ravel()
        clips, first, uses = np.unique(flat, return_index=True, return_counts=True)
        self.clips = len(clips)
        # Examples of a clip stand together here, in the order that batches need them.
        self._by_clip = np.argsort(flat, kind="stable")
        begin = np.cumsum(uses) - uses
        number = np.empty(len(flat), np.int64)
        number[self._by_clip] = np.arange(len(flat)) - np.repeat(begin, uses)
        self._clip, self._number = rows.clip, number.reshape(rows.clip.shape)
        self._row, self._example = rows.row.ravel(), rows.example.ravel()
        # Clips in the order that batches first need them.
        order = np.argsort(first)
        self._first, self._order, self._begin, self._uses = first[order], clips[order], begin, uses
        self._place = order
        self._asked = 0
        self._held: dict[int, Future[Rows]] = {}
        self._left = dict(zip(clips.tolist(), uses.tolist(), strict=True))

    def clips_until(self, step: int) -> int:
        """Clips that the batches to this one need."""
        return int(np.searchsorted(self._first, (step + 1) * self.feed.batch_size))

    def read(self, pool: ThreadPoolExecutor, clips: int) -> None:
        """Begin to read the first so many clips, in the order that batches need them."""
        for turn in range(self._asked, min(clips, self.clips)):
            place = self._place[turn]
            mine = self._by_clip[self._begin[place] :][: self._uses[place]]
            clip = int(self._order[turn])
            self._held[clip] = pool.submit(self._read, clip, self._row[mine], self._example[mine])
        self._asked = max(self._asked, min(clips, self.clips))

    def take(self, step: int) -> list[tuple[Rows, int]]:
        """The rows of a batch; clips that none needs any more are dropped."""
        taken = []
        for clip, number in zip(self._clip[step].tolist(), self._number[step], strict=True):
            taken.append((self._held[clip].result(), number))
            self._left[clip] -= 1
            if not self._left[clip]:
                del self._held[clip]
        return taken

    def _read(self, clip: int, row: np.ndarray, example: np.ndarray) -> Rows:
        table = self.feed.reader.read(clip, self.feed.traffic(self.position.epoch))
        return self.feed.collate.keep(table, row, example, self.position.epoch)
