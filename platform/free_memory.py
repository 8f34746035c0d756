"""Giving memory that is free back to the system: allocators keep it, and the more the longer."""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8  # glibc's <malloc.h>
_ARENAS = 2


def share_arenas() -> None:
    """Let threads that start from now on allocate in two arenas together.

    glibc gives threads up to eight arenas a CPU, each with its own free memory. Ray and Ray Data
    start threads all the time, so a driver of a long run fills them one after the other: measured,
    1 MB a wave of 200 clips. Threads that allocate much at once would wait for each other.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Give back what Python, Arrow and the C library hold and nothing uses.

    It takes some tens of milliseconds.
    """
    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
