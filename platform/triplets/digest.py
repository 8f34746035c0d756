"""Digests of triplets, row by row and as a set."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynaflip.platform.triplets.schema import SCHEMA_VERSION

_DIGEST_BYTES = 32
_IN_MEMORY_BYTES = 8 << 20


def row_digests(table: pa.Table) -> list[str]:
    """A SHA-256 for every triplet, over every column."""
    hashes = [hashlib.sha256(str(SCHEMA_VERSION).encode()) for _ in range(len(table))]
    for name in table.column_names:
        column = table[name].combine_chunks()
        if isinstance(column.type, pa.FixedShapeTensorType):
            values = [np.ascontiguousarray(v).tobytes() for v in column.to_numpy_ndarray()]
        else:
            values = [v if isinstance(v, bytes) else repr(v).encode() for v in column.to_pylist()]
        for digest, value in zip(hashes, values, strict=True):
            # The length keeps ("ab", "c") apart from ("a", "bc").
            digest.update(f"{name}:{len(value)}:".encode() + value)
    return [digest.hexdigest() for digest in hashes]


def digest_of(row_digests: Iterable[str]) -> str:
    """One digest of a set of triplets, whatever their order."""
    with SetDigest() as digest:
        digest.add(row_digests)
        return digest.hexdigest()


class SetDigest:
    """SHA-256 of the sorted SHA-256 of all triplets, 8 MB of them in memory at a time."""

    def __init__(self) -> None:
        # By the first byte: those of one are sorted at once, one after the other.
        self._waiting = [bytearray() for _ in range(256)]
        self._bytes = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> SetDigest:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, row_digests: Iterable[str]) -> None:
        """Take digests of :func:`row_digests`."""
        for row in row_digests:
            raw = bytes.fromhex(row)
            self._waiting[raw[0]] += raw
            self._bytes += len(raw)
            if self._bytes >= _IN_MEMORY_BYTES:
                self._write()

    def hexdigest(self) -> str:
        """The digest of all that were taken."""
        digest, between = hashlib.sha256(), b""
        for first, waiting in enumerate(self._waiting):
            data = bytes(waiting)
            if self._folder is not None:
                data += self._file(first).read_bytes()
            rows = sorted(data[i : i + _DIGEST_BYTES] for i in range(0, len(data), _DIGEST_BYTES))
            for row in rows:
                digest.update(between + row.hex().encode())
                between = b"\n"
        return digest.hexdigest()

    def _write(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="dynaflip-digests-")
        for first, waiting in enumerate(self._waiting):
            with self._file(first).open("ab") as file:
                file.write(waiting)
            waiting.clear()
        self._bytes = 0

    def _file(self, first: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{first:02x}"
