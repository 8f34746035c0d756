"""Index of a triplet folder's Parquet files: a row a row group, found without reading images.

A row group holds a clip. It is what training orders, shares among workers and reads at once. The
index (written by :mod:`.index_writer`) lies beside the triplets: ``index/clips.parquet``
(:data:`CLIPS_SCHEMA`), ``index/captions.parquet`` and ``index/caption_groups.parquet`` (of the
training triplets), both distinct and sorted, and a summary in ``manifest.json``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dynaflip.errors import UserError
from dynaflip.platform.triplets.place import Place, names, read_table
from dynaflip.platform.triplets.schema import TRAINING_COLUMNS, TRIPLET_SCHEMA

# Folders in a triplet folder.
TRIPLETS = "triplets"
INDEX = "index"
CLIPS_FILE = "clips.parquet"
CAPTIONS_FILE = "captions.parquet"
GROUPS_FILE = "caption_groups.parquet"

CLIPS_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),  # its name, in triplets/
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),  # see `clip_bytes`
        pa.field("split", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),  # of the first row
        pa.field("recording_id", pa.string(), nullable=False),  # of the first row
        pa.field("key", pa.uint64(), nullable=False),  # see `clip_key`
    ]
)

_IDENTITY = ("triplet_id", "clip_id", "recording_id", "split", "source")
_TEXTS = ("caption", "caption_group", "split")
# Bytes of a row.
_TENSOR_BYTES = {
    field.name: math.prod(field.type.shape) * field.type.value_type.byte_width
    for field in TRIPLET_SCHEMA
    if field.name in TRAINING_COLUMNS and isinstance(field.type, pa.FixedShapeTensorType)
}
KINDS = ("licence", "flow_source", "depth_kind")
_SCHEMAS = {
    "clips": CLIPS_SCHEMA,
    "texts": pa.schema([pa.field(name, pa.string(), nullable=False) for name in _TEXTS]),
    "kinds": pa.schema([pa.field(name, pa.string(), nullable=False) for name in KINDS]),
}


_NO_MANIFEST: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class FileIndex:
    """The index of some Parquet files."""

    clips: pa.Table  # CLIPS_SCHEMA
    texts: pa.Table  # distinct caption, caption_group and split
    kinds: pa.Table  # distinct licence, flow_source and depth_kind

    def to_json(self) -> dict[str, Any]:
        """Plain values that :meth:`from_json` takes."""
        return {name: getattr(self, name).to_pylist() for name in _SCHEMAS}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FileIndex:
        """The index that :meth:`to_json` turned into plain values."""
        tables = (pa.Table.from_pylist(values[name], schema) for name, schema in _SCHEMAS.items())
        return cls(*tables)


def set_files(folder: Place, manifest: Mapping[str, Any]) -> Place:
    """Where all files of a finished set lie but its manifest and its Parquet files.

    In a bucket each set has a folder of its own, so that none is written over.
    """
    return folder / manifest["files"] if "files" in manifest else folder


def parquet_files(folder: Place, manifest: Mapping[str, Any] = _NO_MANIFEST) -> list[Place]:
    """The Parquet files of a triplet folder, by name; its manifest may tell which."""
    index = set_files(folder, manifest) / INDEX / CLIPS_FILE
    if "files" in manifest:  # others may lie beside them
        found = sorted(set(read_table(index, ["file"])["file"].to_pylist()))
    else:
        found = [name for name in names(folder / TRIPLETS) if name.endswith(".parquet")]
    return [folder / TRIPLETS / name for name in found]


def index_file(path: Path, name: str | None = None) -> FileIndex:
    """Index a Parquet file by its footer and its small columns.

    Args:
        path: of the file.
        name: that the index calls it by; None for the path's.

    Raises:
        UserError: a row group holds triplets of several splits or sources.
    """
    wanted = list(dict.fromkeys([*_IDENTITY, *_TEXTS, *KINDS]))
    with pq.ParquetFile(path) as file:
        table = file.read(columns=wanted)
        footer = file.metadata
        groups = [footer.row_group(n) for n in range(footer.num_row_groups)]
    columns = {column: table[column].to_pylist() for column in _IDENTITY}
    rows = []
    first = 0
    for number, group in enumerate(groups):
        here = slice(first, first + group.num_rows)
        first += group.num_rows
        if not group.num_rows:
            continue
        for kind in ("split", "source"):
            if len(set(columns[kind][here])) > 1:
                raise UserError(
                    f"triplets: row group {number} of {path} mixes the {kind}s "
                    f"{', '.join(sorted(set(columns[kind][here])))}; write a row group a clip, as "
                    f"jobs/preprocess.py does"
                )
        identity = {column: columns[column][here.start] for column in _IDENTITY}
        triplet_id = identity.pop("triplet_id")
        rows.append(
            {
                "file": name or path.name,
                "row_group": number,
                "rows": group.num_rows,
                "bytes": clip_bytes(group),
                "key": clip_key(identity["clip_id"], triplet_id),
                **identity,
            }
        )
    return FileIndex(
        pa.Table.from_pylist(rows, schema=CLIPS_SCHEMA),
        _distinct(table.select(_TEXTS)),
        _distinct(table.select(KINDS)),
    )


def distinct(column: pa.ChunkedArray) -> pa.Array:
    """The distinct values of a column, sorted."""
    values = pc.unique(column)
    return values.take(pc.sort_indices(values))


def clip_bytes(group: pq.RowGroupMetaData) -> int:
    """Bytes that the columns which training reads take in memory.

    An image that several rows of the clip share counts once, as Parquet's dictionaries store it.
    """
    columns = [group.column(n) for n in range(group.num_columns)]
    texts_and_images = sum(
        column.total_uncompressed_size
        for column in columns
        if (name := column.path_in_schema.split(".")[0]) in TRAINING_COLUMNS
        and name not in _TENSOR_BYTES
    )
    return int(texts_and_images + group.num_rows * sum(_TENSOR_BYTES.values()))


def clip_key(clip_id: str, triplet_id: str) -> int:
    """A 64-bit hash of a row group's first row: its place in any order, whatever its file."""
    digest = hashlib.blake2b(f"{clip_id}\x1f{triplet_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def name_hash(text: str) -> str:
    """A fixed pseudo-random sort key of a name."""
    return hashlib.sha256(text.encode()).hexdigest()


def _distinct(table: pa.Table) -> pa.Table:
    by = [(name, "ascending") for name in table.column_names]
    return table.group_by(table.column_names).aggregate([]).sort_by(by)
