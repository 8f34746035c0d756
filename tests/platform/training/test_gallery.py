"""Which held-out transitions are the gallery, and that nothing else is read for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.caption_features import write_table
from dynaflip.platform.training.data.collate import Collate
from dynaflip.platform.training.data.gallery import gallery_batch
from dynaflip.platform.training.data.index import TripletIndex, read_index
from dynaflip.platform.triplets.folder_index import parquet_files
from tests.synthetic_triplets import write_triplets


def gallery_ids(index: TripletIndex, folder: Path, size: int) -> list[str]:
    features = np.zeros((len(index.captions), 8), np.float32)
    text = write_table(folder / "captions.safetensors", index.captions, features)
    batch = gallery_batch(index, Collate(DataConfig(), 32, text, seed=0, augment=False), size)
    assert batch is not None
    return batch["triplet_id"]


def members(folder: Path, size: int) -> list[str]:
    """The rule in a few lines: whole clips, by the hash of their recording, then by their id."""
    columns = ["recording_id", "clip_id", "triplet_id", "split"]
    table = pq.read_table(folder / "triplets", columns=columns)
    rows = table.filter(pc.field("split") == "heldout").to_pylist()
    clips: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        place = hashlib.sha256(row["recording_id"].encode()).hexdigest(), row["clip_id"]
        clips.setdefault(place, []).append(row["triplet_id"])
    chosen: list[str] = []
    for place in sorted(clips):
        if len(chosen) < size:
            chosen += clips[place]
    return sorted(chosen)


def test_the_gallery_is_whole_clips_in_the_order_of_their_recordings_hash(tmp_path: Path) -> None:
    folder = write_triplets(tmp_path / "set", clips=40, shards=10)
    index = read_index(str(folder))
    found = {size: gallery_ids(index, tmp_path, size) for size in (2, 6, 8, 1000)}
    assert found == {size: members(folder, size) for size in found}
    assert [len(ids) for ids in found.values()] == [4, 8, 8, 40]
    # Of a larger set it is mostly the same.
    larger = write_triplets(tmp_path / "larger", clips=48, shards=3)
    assert set(gallery_ids(read_index(str(larger)), tmp_path, 24)) & set(found[8])


def test_only_the_galleries_files_are_opened(tmp_path: Path) -> None:
    folder = write_triplets(tmp_path / "set", clips=40, shards=10)
    index = read_index(str(folder))
    expected = set(members(folder, 6))
    opened = 0
    for path in parquet_files(folder):
        if expected & set(pq.read_table(path, columns=["triplet_id"])["triplet_id"].to_pylist()):
            opened += 1
        else:
            path.unlink()
    assert opened <= 2
    assert gallery_ids(index, tmp_path, 6) == sorted(expected)
