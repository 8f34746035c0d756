"""Held-out clips with a near copy among the training ones, by pair of sources."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from dynaflip.platform.triplets.folder_index import name_hash
from dynaflip.platform.triplets.near_duplicates import MOST_CLIPS, Look, near_duplicates

_COLUMNS = ["clip_id", "recording_id", "source", "split", "clip_thumbnails"]
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
        """What ``inspect`` and the data card say of them."""
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
        return [found]


def read_looks(path: Path, clips: int) -> list[Look]:
    """The clips of a Parquet file that are in the sample of the set; none of older folders.

    Args:
        path: a local file.
        clips: of the whole set, whose sample is chosen by a hash of their ids.
    """
    most = _HASHES * MOST_CLIPS / max(clips, MOST_CLIPS)
    found = []
    with pq.ParquetFile(path) as file:
        if "clip_thumbnails" not in file.schema_arrow.names:
            return []
        for number in range(file.num_row_groups):
            clip_id = file.read_row_group(number, ["clip_id"])["clip_id"][0].as_py()
            if int(name_hash(clip_id)[:8], 16) < most:
                row = file.read_row_group(number, _COLUMNS).slice(0, 1).to_pylist()[0]
                names = ("recording_id", "source", "split", "clip_thumbnails")
                found.append(Look(*(row[name] for name in names)))
    return found


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
