"""Digests of triplets, row by row and as a set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from dynaflip.platform.triplets.schema import SCHEMA_VERSION


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
    return hashlib.sha256("\n".join(sorted(row_digests)).encode()).hexdigest()
