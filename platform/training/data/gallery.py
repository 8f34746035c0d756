"""Gallery: the fixed held-out transitions that a training run retrieves among."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from dynaflip.platform.training.data.collate import Batch, Collate
from dynaflip.platform.training.data.index import ClipTable, TripletIndex
from dynaflip.platform.training.data.row_groups import RowGroupReader
from dynaflip.platform.triplets.schema import TRAINING_COLUMNS


def gallery_batch(index: TripletIndex, collate: Collate, size: int) -> Batch | None:
    """A fixed gallery of held-out transitions, in id order; None where there are fewer than 2.

    Whole clips are taken in the order of a hash of their recording until ``size``
    transitions are reached, so that every clip's other transitions are in it and a
    larger data set has most of a smaller one's gallery. Only their row groups are read.
    """
    clips = index.heldout
    before = np.cumsum(clips.rows) - clips.rows
    chosen = int(np.searchsorted(before, size))  # clips that begin below `size` rows
    if clips.rows[:chosen].sum() < 2:
        return None
    return collate(pa.concat_tables(read_clips(clips, np.arange(chosen))).sort_by("triplet_id"))


def read_clips(clips: ClipTable, numbers: np.ndarray) -> Iterator[pa.Table]:
    """Read what training needs of some clips, a table a clip.

    Args:
        clips: of a split.
        numbers: (N,) which of them.
    """
    reader = RowGroupReader(clips, TRAINING_COLUMNS)
    with ThreadPoolExecutor(reader.threads) as pool:
        yield from pool.map(reader.read, numbers.tolist())
