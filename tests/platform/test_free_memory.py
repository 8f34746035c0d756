"""Memory that is free goes back to the system."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from dynaflip.platform.free_memory import give_back


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_what_lies_between_pieces_in_use_is_given_back() -> None:
    pieces = [np.ones(60_000, np.uint8) for _ in range(2000)]
    before = resident_mb()
    kept = pieces[::50]
    del pieces
    give_back()
    assert resident_mb() < before - 60
    assert all(piece.all() for piece in kept)


def resident_mb() -> float:
    """Memory of this process that is in no file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024
