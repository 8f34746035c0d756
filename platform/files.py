"""Locks between processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
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
