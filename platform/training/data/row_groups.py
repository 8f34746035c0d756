"""Reading of clips: row groups of Parquet files, from several threads, with plain pyarrow."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.errors import UserError
from dynaflip.platform.training.data.index import ClipTable

# Footers of files with many row groups take 10 MB and 10 ms each.
_FOOTERS = 128


class RowGroupReader:
    """Reads any clip of a table; safe to call from several threads."""

    def __init__(self, clips: ClipTable, columns: Sequence[str]) -> None:
        self.clips, self.columns = clips, list(columns)
        self._footers: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, clip: int) -> pa.Table:
        """The rows of a clip.

        Raises:
            UserError: the file has changed since it was indexed.
        """
        path = self.clips.files[self.clips.file[clip]]
        group, rows = int(self.clips.row_group[clip]), int(self.clips.rows[clip])
        try:
            with pq.ParquetFile(path, metadata=self._footer(path)) as file:
                table = file.read_row_group(group, columns=self.columns, use_threads=False)
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
