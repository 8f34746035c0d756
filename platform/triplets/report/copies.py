"""Held-out clips with a near copy among the training ones, by pair of sources."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from dynaflip.platform.triplets.folder_index import name_hash
from dynaflip.platform.triplets.near_duplicates import MOST_CLIPS, Look, near_duplicates

_COLUMNS = ["recording_id", "source", "split", "clip_thumbnails"]
_HASHES = 16**8


@dataclass(frozen=True)
class Copies:
    """Near copies across the splits of a set.

    Args:
        heldout: held-out clips that were looked at.
        train: training clips among which their copies were looked for.
        copied: held-out clips that have one.
        by_sources: those by source and the source of their copy.
        of_train: training clips of the whole set.
    """

    heldout: int
    train: int
    copied: int
    by_sources: dict[tuple[str, str], int]
    of_train: int

    def lines(self) -> list[str]:
        """Lines for ``inspect`` and the data card."""
        if not self.heldout or not self.train:
            return []
        found = f"held-out clips with a near copy in train: {self.copied} of {self.heldout}"
        pairs = [f"{a} ↔ {b}: {n}" for (a, b), n in sorted(self.by_sources.items())]
        found += f" ({', '.join(pairs)})" if pairs else ""
        if self.train < self.of_train:
            found += (
                f"; a sample, which holds {self.train:,} of {self.of_train:,} training clips: "
                f"reckon with {self.of_train / self.train:.0f} times as many"
            )
        if self.copied:
            found += "; join_near_duplicates puts them on one side when the set is made anew"
        return [found]


def read_looks(file: pq.ParquetFile, clips: int) -> list[Look]:
    """The clips of a Parquet file that are in the sample of the set; none of older folders.

    Args:
        file: with a row group a clip.
        clips: of the whole set, whose sample is chosen by a hash of their ids.
    """
    most = _HASHES * MOST_CLIPS / max(clips, MOST_CLIPS)
    if "clip_thumbnails" not in file.schema_arrow.names:
        return []
    # Several row groups in one call: of a bucket's file, they are asked for side by side.
    ids = file.read(columns=["clip_id"])["clip_id"]
    sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    firsts = np.cumsum([0, *sizes[:-1]])
    chosen = [
        number
        for number, first in enumerate(firsts)
        if int(name_hash(ids[int(first)].as_py())[:8], 16) < most
    ]
    if not chosen:
        return []
    table = file.read_row_groups(chosen, columns=_COLUMNS)
    at = np.cumsum([0, *(sizes[number] for number in chosen[:-1])])
    rows = table.take(at).select(_COLUMNS).to_pylist()
    return [Look(*row.values()) for row in rows]


def copies_across(looks: Sequence[Look], of_train: int) -> Copies:
    """Look for copies of held-out clips among training ones.

    Args:
        looks: the sample.
        of_train: training clips of the whole set.
    """
    looks = looks[:MOST_CLIPS]
    partners = defaultdict(set)
    for pair in near_duplicates(looks, lambda a, b: a.split != b.split):
        train, heldout = sorted(pair, key=lambda number: looks[number].split == "heldout")
        partners[heldout].add(looks[train].source)
    by_sources = Counter(
        (looks[number].source, source) for number, sources in partners.items() for source in sources
    )
    splits = Counter(look.split for look in looks)
    return Copies(splits["heldout"], splits["train"], len(partners), dict(by_sources), of_train)
