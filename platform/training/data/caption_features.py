"""Features of captions in a file that training workers map into memory.

The file is a safetensors file with ``keys`` (C,) int64, sorted, and ``features`` (C, D) float32:
a caption's features are in the row of its number (:func:`.ids.id64`). Workers get its path, and
each machine copies it to its own disk once. What fills it is :mod:`.caption_cache`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.files import file_lock, new_file
from dynaflip.platform.training.data.ids import id64

_DIGEST = "digest"
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class TextTable:
    """Features of captions: a path and a digest, so that it travels; mapped at the first use."""

    file: str  # safetensors, absolute
    digest: str  # of the file's tensors

    def rows(self, captions: Sequence[str]) -> np.ndarray:
        """Row numbers of captions in :attr:`features`: (B,) int64.

        Raises:
            UserError: a caption has no features, or this machine does not see the file.
        """
        wanted = np.array([id64(caption) for caption in captions], np.int64)
        keys = self.keys
        rows = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        missing = np.flatnonzero(keys[rows] != wanted)
        if len(missing):
            raise UserError(
                f"captions: {self.file} has no features of {captions[missing[0]]!r}: the triplets "
                "have changed since the run began; start a new one"
            )
        return rows

    @property
    def keys(self) -> np.ndarray:
        """Numbers of the captions, sorted: (C,) int64, mapped."""
        return self._mapped[0]

    @property
    def features(self) -> np.ndarray:
        """Features of the captions: (C, D) float32, mapped and read-only."""
        return self._mapped[1]

    @cached_property
    def _mapped(self) -> tuple[np.ndarray, np.ndarray]:
        path = _on_this_machine(Path(self.file), self.digest)
        header, start = read_header(path)
        return _map(path, header["keys"], start), _map(path, header["features"], start)

    def __getstate__(self) -> dict[str, Any]:
        """Without the mapped arrays, which pickling would copy."""
        return {"file": self.file, "digest": self.digest}


def write_table(file: Path, captions: Sequence[str], features: np.ndarray) -> TextTable:
    """Write the features of distinct captions, whole or not at all.

    Args:
        file: absolute; its folder is made.
        captions: C of them, at least one.
        features: (C, D).

    Raises:
        UserError: there is none, or two have the same number.
    """
    keys, order = sorted_keys(captions)
    return write_rows(file, keys, features[order])


def sorted_keys(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted numbers of distinct captions, and which caption each is of: two (C,) int64.

    Raises:
        UserError: there is none, or two have the same number.
    """
    if not len(captions):
        raise UserError("captions: there is none")
    numbers = np.array([id64(caption) for caption in captions], np.int64)
    order = np.argsort(numbers)
    keys = numbers[order]
    twice = np.flatnonzero(np.diff(keys) == 0)
    if len(twice):
        one, two = (captions[order[twice[0] + i]] for i in (0, 1))
        raise UserError(
            f"captions: {one!r} and {two!r} "
            + ("are one caption" if one == two else "have the same number; reword one of them")
        )
    return keys, order


def write_rows(file: Path, keys: np.ndarray, features: np.ndarray) -> TextTable:
    """Write a table whose keys (C,) are sorted and distinct, with features (C, D)."""
    from safetensors.numpy import save_file

    features = np.ascontiguousarray(features, np.float32)
    hashed = hashlib.blake2b(keys.tobytes(), digest_size=16)
    hashed.update(features.data)
    digest = hashed.hexdigest()
    with new_file(file) as unfinished:
        tensors = {"keys": keys, "features": features}
        save_file(tensors, unfinished, metadata={_DIGEST: digest})
    return TextTable(str(file), digest)


def open_table(file: Path) -> TextTable | None:
    """A table that was written before, by its header alone; None where there is none."""
    try:
        header, _ = read_header(file)
    except FileNotFoundError:
        return None
    return TextTable(str(file), header["__metadata__"][_DIGEST])


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the byte where its tensors begin."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return json.loads(opened.read(length)), 8 + length


def _map(path: Path, entry: dict[str, Any], start: int) -> np.ndarray:
    kind = {"I64": np.int64, "F32": np.float32}[entry["dtype"]]
    offset = start + entry["data_offsets"][0]
    mapped = np.memmap(path, kind, "r", offset, tuple(entry["shape"]))
    return mapped.view(np.ndarray)


def _on_this_machine(file: Path, digest: str) -> Path:
    """The file on a disk of this machine: itself, or a copy that is made once and checked.

    Mapped over a network, every page of a batch would be a request of its own.

    Raises:
        UserError: this machine does not see the file, or it is damaged.
    """
    folder = Path(tempfile.gettempdir()) / f"dynaflip-{os.getuid()}" / "captions"
    copy = folder / f"{digest}.safetensors"
    try:
        if file.stat().st_dev == folder.parent.parent.stat().st_dev:
            return file
    except FileNotFoundError:
        if _is_ours(folder.parent) and copy.exists():
            return copy
        raise UserError(
            f"captions: {file} is not there on {socket.gethostname()}; let all machines share "
            "DYNAFLIP_HOME: the features of the captions are in its cache/captions"
        ) from None
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    # Another user's folder of this name may hold anything.
    if not _is_ours(folder.parent):
        return file
    with file_lock(folder / f"{digest}.lock"):
        if not copy.exists():
            if shutil.disk_usage(folder).free < 2 * file.stat().st_size:
                return file
            _copy_checked(file, copy, digest)
    return copy


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid()


def _copy_checked(file: Path, copy: Path, digest: str) -> None:
    _, start = read_header(file)
    hashed = hashlib.blake2b(digest_size=16)
    with new_file(copy) as unfinished, file.open("rb") as source, unfinished.open("wb") as target:
        target.write(source.read(start))
        while chunk := source.read(_CHUNK_BYTES):
            hashed.update(chunk)
            target.write(chunk)
        if hashed.hexdigest() != digest:
            raise UserError(f"captions: {file} is damaged; delete it and start again")
