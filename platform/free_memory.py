"""Giving memory that is free back to the system: allocators keep it, and the more the longer."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Give back what Python, Arrow and the C library hold and nothing uses.

    Threads of Ray allocate in arenas of their own, which glibc never empties by itself: without
    this a driver grows with the length of its run. It takes some tens of milliseconds.
    """
    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if trim is not None:
        trim(0)
