"""Layout of a folder of triplets, unfinished or finished, and the clips that are stored in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.platform.triplets import place
from dynaflip.platform.triplets.folder_index import TRIPLETS
from dynaflip.platform.triplets.place import Place
from dynaflip.platform.triplets.schema import TRIPLET_SCHEMA

# Of what readers filter by; those of all columns make footers half as large again.
_STATISTICS = ["source", "split", "clip_id", "recording_id", "caption_group", "task"]


def _is_tensor(field: pa.Field) -> bool:
    return isinstance(field.type, pa.FixedShapeTensorType)


def _has_dictionary(field: pa.Field) -> bool:
    """True where a column's values repeat: all but tensors of floats.

    Measured on the demo's triplets: without dictionaries of floats files are 16 % smaller, and
    written in half of the time.
    """
    return not (_is_tensor(field) and pa.types.is_floating(field.type.value_type))


def _path_in_file(field: pa.Field) -> str:
    nested = _is_tensor(field) or pa.types.is_nested(field.type)
    return f"{field.name}.list.element" if nested else str(field.name)


@dataclass(frozen=True)
class WorkFolder:
    """Folder of a set of triplets and of the work on it; see :mod:`.destination`.

    Args:
        path: of all but the Parquet files.
        parts: folder of the Parquet files, where it does not lie in ``path``.
    """

    path: Place
    parts: Place | None = None

    @property
    def triplets(self) -> Place:
        """Parquet files of the finished folder: see :mod:`.compaction`."""
        return self.parts or self.path / TRIPLETS

    @property
    def done(self) -> Place:
        """One JSON file for each Parquet file, with its clips' summaries; one for the rejected."""
        return self.path / "done"

    @property
    def shards(self) -> Place:
        """Folder of what Ray tasks made: small Parquet files, and a JSON file each shard."""
        return self.path / "shards"

    @property
    def attempts(self) -> Place:
        """One file for each clip in work, which outlives a worker that dies."""
        return self.path / "attempts"

    def shard_summaries(self, name: str) -> Place:
        """The JSON file of a shard: written after its triplets, so where it is they are, too."""
        return self.shards / f"{name}.json"


@dataclass(frozen=True)
class StoredClip:
    """A clip that is done: its summary, and the row group that holds its triplets.

    Args:
        summary: see :func:`.shard.process_shard`.
        file: the Parquet file; None where the clip was rejected.
        row_group: within the file.
        bytes: of the row group on disk.
        rows: its triplets.
        number: in the ledger that it comes from.
    """

    summary: Mapping[str, Any]
    file: Place | None
    row_group: int = 0
    bytes: int = 0
    rows: int = 0
    number: int = 0


def read_stored(text: str, folder: Place) -> list[StoredClip]:
    """The clips of a JSON file of summaries.

    Args:
        text: of the JSON file.
        folder: of the Parquet files that its summaries name.

    Returns:
        The clips in the file's order; none where the file was made before November 2026.
    """
    return stored_clips(json.loads(text), folder)


def stored_clips(known: Any, folder: Place) -> list[StoredClip]:
    """The same of a file's content."""
    if not isinstance(known, dict):
        return []
    return [stored_clip(summary, folder) for summary in known["clips"]]


def stored_clip(summary: Mapping[str, Any], folder: Place) -> StoredClip:
    """The clip of a summary whose Parquet file lies in a folder."""
    at = summary["at"]
    if at is None:
        return StoredClip(summary, None)
    rows = len(summary["rows"])
    return StoredClip(summary, folder / at["file"], at["row_group"], at["bytes"], rows)


class ClipFile:
    """A Parquet file of triplets, a row group a clip, visible under its name only when complete.

    Use it in a ``with`` block: where that ends without :meth:`close`, nothing of the file stays.

    Args:
        path: of the file.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        # Two processes may write the same file when a driver was killed.
        self._unfinished = place.staged(path)
        self._footer: list[pq.FileMetaData] = []
        self._writer = pq.ParquetWriter(
            self._unfinished,
            TRIPLET_SCHEMA,
            compression="zstd",
            use_dictionary=[_path_in_file(f) for f in TRIPLET_SCHEMA if _has_dictionary(f)],
            write_statistics=_STATISTICS,
            metadata_collector=self._footer,
        )

    def __enter__(self) -> ClipFile:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._writer.close()
        finally:
            self._unfinished.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Append a clip's triplets, at least one, as one row group."""
        self._writer.write_table(table, row_group_size=table.num_rows)

    def close(self, look: Callable[[Path], None] = lambda file: None) -> list[dict[str, Any]]:
        """Finish the file; ``at`` of each clip's summary, in the order of writing.

        Args:
            look: is given the local file before it has its name.
        """
        self._writer.close()
        look(self._unfinished)
        place.publish(self._unfinished, self.path)
        (footer,) = self._footer
        return [
            {"file": self.path.name, "row_group": n, "bytes": _bytes_on_disk(footer.row_group(n))}
            for n in range(footer.num_row_groups)
        ]


def _bytes_on_disk(group: pq.RowGroupMetaData) -> int:
    return sum(group.column(n).total_compressed_size for n in range(group.num_columns))
