"""Reading of clips: row groups of Parquet files, from several threads, with plain pyarrow.

Files on a disk or in a bucket, where each request is waited for: more threads then read.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.errors import UserError
from dynaflip.platform.s3 import Traffic
from dynaflip.platform.training.data.index import ClipTable
from dynaflip.platform.triplets.bucket_parquet import BucketParquet

# Footers of files with many row groups take 10 MB and 10 ms each.
_FOOTERS = 128
_THREADS, _BUCKET_THREADS = 4, 16


class RowGroupReader:
    """Reads any clip of a table; safe to call from several threads."""

    def __init__(self, clips: ClipTable, columns: Sequence[str]) -> None:
        self.clips, self.columns = clips, list(columns)
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()
        self._bucket = BucketParquet(columns)
        self.in_bucket = any(path.startswith("s3://") for path in clips.files)
        self.threads = _BUCKET_THREADS if self.in_bucket else _THREADS

    def read(self, clip: int, traffic: Traffic | None = None) -> pa.Table:
        """The rows of a clip.

        Args:
            clip: its number.
            traffic: counts what is asked of a bucket.

        Raises:
            UserError: the file has changed since it was indexed.
        """
        path = self.clips.files[self.clips.file[clip]]
        group, rows = int(self.clips.row_group[clip]), int(self.clips.rows[clip])
        try:
            table = self._read(path, group, traffic)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"triplets: cannot read row group {group} of {path}: {error}; if the folder was "
                "changed during the run, start a new one"
            ) from None
        if table.num_rows != rows:
            raise UserError(
                f"triplets: row group {group} of {path} has {table.num_rows} rows, not {rows}: the "
                "folder was changed during the run; start a new one"
            )
        return table

    def _read(self, path: str, group: int, traffic: Traffic | None) -> pa.Table:
        if path.startswith("s3://"):
            return self._bucket.read(path, group, traffic or Traffic())
        with pq.ParquetFile(path, metadata=self._footer(path)) as file:
            return file.read_row_group(group, columns=self.columns, use_threads=False)

    def _footer(self, path: str) -> pq.FileMetaData:
        with self._lock:
            if path in self._footers:
                self._footers.move_to_end(path)
                return self._footers[path]
        footer = pq.read_metadata(path)
        with self._lock:
            self._footers[path] = footer
            while len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        return footer
