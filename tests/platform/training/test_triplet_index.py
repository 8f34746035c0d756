"""The index of a triplet folder: its clips by split, whatever files they lie in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynaflip.errors import UserError
from dynaflip.platform.training.data import index as index_module
from dynaflip.platform.training.data.index import ClipTable, read_index
from dynaflip.platform.triplets.clips import captions_digest
from tests.synthetic_triplets import write_triplets


def read_rows(clips: ClipTable, number: int) -> pa.Table:
    with pq.ParquetFile(clips.files[clips.file[number]]) as file:
        return file.read_row_group(int(clips.row_group[number]))


def test_an_entry_names_a_row_group_and_what_it_holds(tmp_path: Path) -> None:
    folder = write_triplets(tmp_path / "triplets", clips=12, sources=("sim", "ego"))
    index = read_index(str(folder))
    assert (len(index.train), len(index.heldout)) == (9, 3)
    for split, clips in (("train", index.train), ("heldout", index.heldout)):
        assert index.counts[split] == clips.rows.sum()
        found = set()
        for number in range(len(clips)):
            table = read_rows(clips, number)
            found |= set(table["triplet_id"].to_pylist())
            assert table.num_rows == clips.rows[number]
            assert set(table["split"].to_pylist()) == {split}
            assert set(table["source"].to_pylist()) == {clips.sources[clips.source[number]]}
            # Images of 32 px are small beside the flow.
            flow = table["flow_displacement_m"].combine_chunks().to_numpy_ndarray()
            assert flow.nbytes < clips.bytes[number] < 2 * flow.nbytes
        assert len(found) == index.counts[split]
    assert index.sources == {"ego": 12, "sim": 24}


def test_keys_and_order_do_not_depend_on_the_files(tmp_path: Path) -> None:
    few, many = (
        read_index(str(write_triplets(tmp_path / str(shards), clips=12, shards=shards))).train
        for shards in (2, 6)
    )
    assert len(few.files) != len(many.files)
    assert few.key.tolist() == many.key.tolist()
    assert few.bytes.tolist() == many.bytes.tolist()
    assert len(set(few.key.tolist())) == 9
    for number in range(9):
        assert read_rows(few, number)["triplet_id"] == read_rows(many, number)["triplet_id"]


def test_a_row_group_of_several_splits_is_refused(tmp_path: Path) -> None:
    folder = write_triplets(tmp_path / "triplets", shards=1)
    (path,) = (folder / "triplets").iterdir()
    pq.write_table(pq.read_table(path), path)  # all clips in one row group
    with pytest.raises(UserError, match=r"row group 0 .* mixes the splits heldout, train"):
        read_index(str(folder))


def test_types_are_those_that_readers_count_on(tmp_path: Path) -> None:
    clips = read_index(str(write_triplets(tmp_path / "triplets"))).train
    types = [getattr(clips, n).dtype for n in ("file", "row_group", "rows", "bytes", "source")]
    assert types == [np.int32, np.int32, np.int32, np.int64, np.int32]
    assert clips.key.dtype == np.uint64


def test_a_folder_made_without_an_index_is_scanned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_triplets(tmp_path / "triplets", sources=("sim", "ego"))
    first = read_index(str(folder))
    assert not (folder / "index").exists()
    monkeypatch.setattr(index_module, "index_file", None)  # nothing is scanned again
    again = read_index(str(folder))
    assert again.train.key.tolist() == first.train.key.tolist()
    assert again.captions_digest == captions_digest(again.captions)
    assert again.captions == first.captions == sorted(set(first.captions))
    assert again.provenance() == first.provenance()
    monkeypatch.undo()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"index": {}}))  # left behind
    assert read_index(str(folder)).provenance() == first.provenance()
    (folder / "index").mkdir()
    (folder / "index" / "clips.parquet").write_text("damaged")
    with pytest.raises(UserError, match=r"clips\.parquet cannot be read .* delete .*/index,"):
        read_index(str(folder))
    shutil.rmtree(folder / "index")
    # Of other files it is another index, though the manifest is the same.
    for file in list((folder / "triplets").iterdir())[1:]:
        file.unlink()
    assert len(read_index(str(folder)).train) < len(first.train)
