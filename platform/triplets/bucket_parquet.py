"""Row groups of Parquet files in a bucket: a few large requests a row group, and each counted.

A file's footer is fetched once and kept. The columns that are wanted lie close together: ranges
with a small hole between them are one request. Requests are made by :mod:`pyarrow.fs`, in the
thread that reads: several threads wait for the network at once.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynaflip.platform.s3 import S3Path, Traffic, arrow_filesystem

# Reading on costs less than the round trip of another request.
_HOLE_BYTES = 256 << 10
_TAIL_BYTES = 64 << 10
_FOOTER_END = 8  # its length and "PAR1"
# Footers in memory: parsed ones take about 10 MB and 10 ms each where a file has 280 row groups.
_PARSED = 64
_PACKED_BYTES = 512 << 20


class BucketParquet:
    """Reads row groups of any files in S3; safe to call from several threads."""

    def __init__(self, columns: Sequence[str] | None = None) -> None:
        """``columns`` to read; None for all."""
        self.columns = None if columns is None else list(columns)
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._files: dict[str, pa.NativeFile] = {}
        self._parsed: OrderedDict[str, pq.FileMetaData] = OrderedDict()
        self._packed: OrderedDict[str, tuple[pa.Buffer, int]] = OrderedDict()
        self._packed_bytes = 0

    def read(self, path: str, group: int, traffic: Traffic) -> pa.Table:
        """A row group of a file.

        Args:
            path: ``s3://bucket/key``.
            group: its number.
            traffic: counts what is asked for.

        Raises:
            OSError: there is no such object, or the bucket does not answer.
        """
        footer = self._footer(path, traffic)
        file = self._file(path, traffic)
        parts = []
        for begin, end in _ranges(footer.row_group(group), self.columns):
            parts.append((begin, _fetch(file, begin, end, traffic)))
        fetched = _Fetched(parts, file.size())
        with pq.ParquetFile(fetched, metadata=footer, pre_buffer=False) as parquet:
            return parquet.read_row_group(group, columns=self.columns, use_threads=False)

    def _file(self, path: str, traffic: Traffic) -> pa.NativeFile:
        with self._lock:
            if path in self._files:
                return self._files[path]
        at = S3Path.parse(path)
        file = arrow_filesystem().open_input_file(f"{at.bucket}/{at.key}")
        traffic.add(0)  # asks for its size
        with self._lock:
            return self._files.setdefault(path, file)

    def _footer(self, path: str, traffic: Traffic) -> pq.FileMetaData:
        with self._lock:
            if path in self._parsed:
                self._parsed.move_to_end(path)
                return self._parsed[path]
            own = self._locks.setdefault(path, threading.Lock())
        with own:  # others that want the same one wait for it
            tail = self._tail(path, traffic)
        footer = pq.read_metadata(pa.BufferReader(tail))
        with self._lock:
            self._parsed[path] = footer
            while len(self._parsed) > _PARSED:
                self._parsed.popitem(last=False)
        return footer

    def _tail(self, path: str, traffic: Traffic) -> bytes:
        """The footer's bytes: the end of the file."""
        with self._lock:
            if path in self._packed:
                self._packed.move_to_end(path)
                packed, size = self._packed[path]
                return pa.decompress(packed, size, codec="zstd", asbytes=True)
        file = self._file(path, traffic)
        size = file.size()
        tail = _fetch(file, max(0, size - _TAIL_BYTES), size, traffic)
        length = int.from_bytes(tail[-_FOOTER_END:-4], "little") + _FOOTER_END
        if length > len(tail):
            tail = _fetch(file, size - length, size - len(tail), traffic) + tail
        tail = tail[-length:]
        packed = pa.compress(tail, codec="zstd")
        with self._lock:
            self._packed[path] = packed, len(tail)
            self._packed_bytes += packed.size
            while self._packed_bytes > _PACKED_BYTES:
                self._packed_bytes -= self._packed.popitem(last=False)[1][0].size
        return tail


def _fetch(file: pa.NativeFile, begin: int, end: int, traffic: Traffic) -> bytes:
    data = file.read_at(end - begin, begin)
    traffic.add(len(data))
    if len(data) != end - begin:
        raise OSError(f"{len(data)} of {end - begin} bytes came")
    return data


def _ranges(group: pq.RowGroupMetaData, columns: list[str] | None) -> list[tuple[int, int]]:
    """Bytes of some columns, first and behind the last, those with small holes joined."""
    spans = []
    for number in range(group.num_columns):
        column = group.column(number)
        if columns is None or column.path_in_schema.split(".")[0] in columns:
            begin = column.data_page_offset
            if column.has_dictionary_page:
                begin = min(begin, column.dictionary_page_offset)
            spans.append((begin, begin + column.total_compressed_size))
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if joined and begin - joined[-1][1] <= _HOLE_BYTES:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


class _Fetched(io.RawIOBase):
    """Some ranges of a file, as a seekable file."""

    def __init__(self, parts: list[tuple[int, bytes]], size: int) -> None:
        super().__init__()
        self.parts, self.size, self.position = parts, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        """Position of the next byte."""
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the range that the position lies in."""
        for begin, data in self.parts:
            if begin <= self.position < begin + len(data):
                at = self.position - begin
                part = data[at : at + len(buffer)]
                buffer[: len(part)] = part
                self.position += len(part)
                return len(part)
        if self.position >= self.size:
            return 0
        raise OSError(f"byte {self.position} was not fetched")
