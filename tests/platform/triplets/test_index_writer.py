"""The index of a set, sorted on disk."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynaflip.platform.triplets import index_writer
from dynaflip.platform.triplets.clips import captions_digest, content_hash
from dynaflip.platform.triplets.folder_index import FileIndex, clip_key, name_hash
from dynaflip.platform.triplets.index_writer import write_index

CAPTIONS = ["put the cup", "stell die Tasse", "Öffne die Tür", "開ける", "a\x00b", "🙂 wave"]


def row(number: int) -> dict[str, Any]:
    """A clip's row; three clips a recording, and each third of the recordings held out."""
    clip_id, recording = content_hash(str(number)), f"recording {number // 3}"
    return {
        "file": f"part-{number % 5}.parquet",
        "row_group": number // 5,
        "rows": 1 + number % 3,
        "bytes": 2**33 + number,
        "split": "train" if number // 3 % 3 else "heldout",
        "source": "videos",
        "clip_id": clip_id,
        "recording_id": recording,
        "key": clip_key(clip_id, "first"),
    }


def part(clips: list[dict[str, Any]]) -> FileIndex:
    """The index of a file with such clips."""
    texts = [
        {"caption": caption, "caption_group": caption.casefold(), "split": clip["split"]}
        for clip in clips
        for caption in [CAPTIONS[clip["row_group"] % len(CAPTIONS)]]
    ]
    kinds = [{"licence": "MIT", "flow_source": clips[0]["file"], "depth_kind": "plane"}]
    return FileIndex.from_json({"clips": clips, "texts": texts, "kinds": kinds})


def test_an_index_is_in_its_order_whatever_the_order_of_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "_ROWS_AT_ONCE", 7)
    rows = [row(n) for n in range(60)]
    # SQLite's numbers end before those of the keys do, and a clip may be listed twice.
    assert max(clip["key"] for clip in rows) >= 2**63
    rows += [{**rows[n], "row_group": 100 + n} for n in (3, 4)]
    random.Random(0).shuffle(rows)
    parts = [part(rows[n : n + 9]) for n in range(0, len(rows), 9)]
    summary = write_index(tmp_path, parts, sum(clip["rows"] for clip in rows))

    def order(clip: dict[str, Any]) -> tuple[Any, ...]:
        names = ("clip_id", "key", "file", "row_group")
        return name_hash(clip["recording_id"]), *(clip[name] for name in names)

    clips = pq.read_table(tmp_path / "clips.parquet")
    assert clips.to_pylist() == sorted(rows, key=order)
    assert clips.schema == parts[0].clips.schema
    texts = [text for one in parts for text in one.texts.to_pylist()]
    captions = sorted({text["caption"] for text in texts})
    groups = sorted({text["caption_group"] for text in texts if text["split"] == "train"})
    assert pq.read_table(tmp_path / "captions.parquet")["caption"].to_pylist() == captions
    found = pq.read_table(tmp_path / "caption_groups.parquet")
    assert found["caption_group"].to_pylist() == groups
    assert summary == {
        "captions": len(captions),
        "caption_groups": len(groups),
        "captions_digest": captions_digest(reversed(captions)),
        "licences": ["MIT"],
        "flow_sources": sorted({one.kinds["flow_source"][0].as_py() for one in parts}),
        "depth_kinds": ["plane"],
    }


def test_an_index_of_other_triplets_than_were_counted_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold 1 triplets instead of 2"):
        write_index(tmp_path, [part([row(0)])], 2)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writer, "_ROWS_AT_ONCE", 64)
    peaks = [peak_bytes(tmp_path, clips) for clips in (128, 512, 2048)]
    assert peaks[2] < 1.2 * peaks[1]


def peak_bytes(folder: Path, clips: int) -> int:
    """The most that Python and Arrow hold while an index is written."""
    most_in_arrow = 0

    def parts() -> Iterator[FileIndex]:
        nonlocal most_in_arrow
        for first in range(0, clips, 64):
            yield part([row(n) for n in range(first, first + 64)])
            most_in_arrow = max(most_in_arrow, pa.total_allocated_bytes())

    tracemalloc.start()
    try:
        write_index(folder, parts())
        return tracemalloc.get_traced_memory()[1] + most_in_arrow
    finally:
        tracemalloc.stop()
