"""Locks between processes of one machine, and the one atomic write of a local file."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dynaflip.errors import UserError


@contextlib.contextmanager
def file_lock(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Hold a lock file while the block runs; the kernel frees it when a process dies.

    Args:
        path: the file; made if it is missing.
        refusal: what to say where another process holds it; None waits for it.

    Raises:
        UserError: another process holds it, and a refusal is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise UserError(str(refusal)) from None
        yield


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old one or all of the new.

    Args:
        path: its folder is made if it is missing.
        content: text is written as UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, for a rename between file systems is not atomic; of this process alone.
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
