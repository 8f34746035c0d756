"""Memory that is free goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys
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


_THREADS = """
import ctypes, sys, threading
from dynaflip.platform.free_memory import share_arenas
if sys.argv[1] == "share":
    share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.fopen.restype = ctypes.c_void_p
held = threading.Barrier(13)
def allocate():
    libc.malloc(1000)
    held.wait()
    held.wait()
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads:
    thread.start()
held.wait()
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
held.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_threads_share_arenas() -> None:
    def arenas(word: str) -> int:
        command = [sys.executable, "-c", _THREADS, word]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.count("<heap nr=")

    assert arenas("share") == 2 < arenas("")


def resident_mb() -> float:
    """Memory of this process that is in no file."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024
