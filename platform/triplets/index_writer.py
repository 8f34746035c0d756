"""Writing the index of a set: sorted on disk, so that memory does not grow with its clips.

SQLite sorts in a temporary file of its own, as in :mod:`.ledger`. Clips are in the order of a hash
of their recording, then of their id, so that the first held-out ones are the gallery: a larger data
set has most of a smaller one's.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.platform.triplets.clips import digest_of_sorted
from dynaflip.platform.triplets.folder_index import (
    CAPTIONS_FILE,
    CLIPS_FILE,
    CLIPS_SCHEMA,
    GROUPS_FILE,
    KINDS,
    FileIndex,
)
from dynaflip.platform.triplets.place import Place, new_file

_ROWS_AT_ONCE = 2048  # in memory, and in a row group of the index
_CACHE_KIB = 2 << 10
_TABLES = f"""
create table clips ({", ".join(CLIPS_SCHEMA.names)}, hash);
create table texts (caption, caption_group, split);
"""


def write_index(
    folder: Place, parts: Iterable[FileIndex], triplets: int | None = None
) -> dict[str, Any]:
    """Write the index of Parquet files, and return its summary, which the manifest holds.

    Args:
        folder: ``index/`` of a triplet folder; made if it is missing.
        parts: of its files, in any order.
        triplets: that they must hold; None: whatever they hold.

    Raises:
        ValueError: they hold another number of triplets; nothing was written.
    """
    with closing(_SortedIndex()) as index:
        for part in parts:
            index.add(part)
        if triplets not in (None, index.triplets):
            raise ValueError(f"its files hold {index.triplets} triplets instead of {triplets}")
        _write(folder / CLIPS_FILE, CLIPS_SCHEMA, index.clips())
        captions = _write_texts(folder / CAPTIONS_FILE, "caption", index.captions())
        groups = _write_texts(folder / GROUPS_FILE, "caption_group", index.caption_groups())
        return {
            "captions": captions,
            "caption_groups": groups,  # of the training triplets
            "captions_digest": digest_of_sorted(caption for (caption,) in index.captions()),
            **{f"{name}s": sorted(values) for name, values in index.kinds.items()},
        }


class _SortedIndex:
    """Rows of an index on disk, to be read in order."""

    def __init__(self) -> None:
        self.triplets = 0
        self.kinds: dict[str, set[str]] = {name: set() for name in KINDS}
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(f"pragma cache_size = -{_CACHE_KIB}")
        self._database.executescript(_TABLES)

    def close(self) -> None:
        """Give the disk space back."""
        self._database.close()

    def add(self, part: FileIndex) -> None:
        """Take the index of some files."""
        clips = {name: part.clips[name].to_pylist() for name in CLIPS_SCHEMA.names}
        self.triplets += sum(clips["rows"])
        # SQLite's integers have a sign, and blobs are in the order of the numbers.
        clips["key"] = [key.to_bytes(8, "big") for key in clips["key"]]
        hashes = [hashlib.sha256(name.encode()).digest() for name in clips["recording_id"]]
        texts = (part.texts[name].to_pylist() for name in ("caption", "caption_group", "split"))
        for name, values in self.kinds.items():
            values.update(part.kinds[name].to_pylist())
        self._database.execute("begin")
        for table, columns in (("clips", [*clips.values(), hashes]), ("texts", [*texts])):
            marks = ", ".join("?" * len(columns))
            rows = zip(*columns, strict=True)
            self._database.executemany(f"insert into {table} values ({marks})", rows)
        self._database.execute("commit")

    def clips(self) -> Iterator[tuple[Any, ...]]:
        """Rows of CLIPS_SCHEMA."""
        names = ", ".join(CLIPS_SCHEMA.names)
        at = CLIPS_SCHEMA.get_field_index("key")
        for row in self._select(
            f"select {names} from clips order by hash, clip_id, key, file, row_group"
        ):
            yield *row[:at], int.from_bytes(row[at], "big"), *row[at + 1 :]

    def captions(self) -> Iterator[tuple[str]]:
        """Distinct captions."""
        return self._select("select caption from texts group by caption order by caption")

    def caption_groups(self) -> Iterator[tuple[str]]:
        """Distinct caption groups of the training triplets."""
        return self._select(
            "select caption_group from texts where split = 'train' "
            "group by caption_group order by caption_group"
        )

    def _select(self, query: str) -> Iterator[Any]:
        return self._database.cursor().execute(query)


def _write_texts(path: Place, name: str, rows: Iterator[tuple[str]]) -> int:
    """Write a column of texts; how many they are."""
    return _write(path, pa.schema([(name, pa.string())]), rows)


def _write(path: Place, schema: pa.Schema, rows: Iterator[tuple[Any, ...]]) -> int:
    """Write rows, a few of which are in memory; how many they are."""
    written = 0
    with (
        new_file(path) as unfinished,
        pq.ParquetWriter(unfinished, schema, compression="zstd") as file,
    ):
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            columns = zip(schema, zip(*some, strict=True), strict=True)
            arrays = [pa.array(values, field.type) for field, values in columns]
            file.write_table(pa.Table.from_arrays(arrays, schema=schema))
            written += len(some)
    return written
