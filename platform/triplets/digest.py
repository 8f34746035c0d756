"""Digests of triplets and of the code that makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynaflip.platform.triplets.schema import SCHEMA_VERSION

# Beside this folder: the simulator's exact flow, and which recordings share a condition.
_CODE_OUTSIDE = ("eval/envs/exact_flow.py", "eval/simulator*.py", "eval/perturbations.py")


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


def code_digest() -> str:
    """Changes with the code that makes triplets, so that work of older code is not reused."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    package = here.parents[1]
    outside = [path for pattern in _CODE_OUTSIDE for path in package.glob(pattern)]
    for path in sorted([*here.rglob("*.py"), *outside]):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()
