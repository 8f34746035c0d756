"""Prefetching in a thread: the next batches are prepared while a step computes."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_LAST_ITEM_S = 10.0  # at most waited for the item that a thread prepares when Python ends
_running: set[tuple[threading.Thread, threading.Event]] = set()


class Prefetched(Iterator[T]):
    """Runs an iterable in a thread, at most some items ahead; its errors come through.

    The thread starts at once, not with the first item that is asked for. It ends, and closes its
    source, when this is closed or garbage-collected.
    """

    def __init__(self, items: Iterable[T], depth: int) -> None:
        """Begin to read ``items``, ``depth`` of them ahead."""
        self._ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        # The thread has no reference to this object, which could otherwise not be collected.
        arguments = (iter(items), self._ready, self._stopped)
        thread = threading.Thread(target=_run, args=arguments, daemon=True, name="prefetch")
        thread.start()

    def __next__(self) -> T:
        """The next item; raises what reading it raised."""
        if self._stopped.is_set():
            raise StopIteration
        kind, value = self._ready.get()
        if kind == "item":
            return value
        self._stopped.set()
        raise StopIteration if kind == "end" else value

    def close(self) -> None:
        """Let the thread end; there are no more items."""
        self._stopped.set()

    __del__ = close


def _run(
    items: Iterator[Any], ready: queue.Queue[tuple[str, Any]], stopped: threading.Event
) -> None:
    entry = (threading.current_thread(), stopped)
    _running.add(entry)
    try:
        _read_ahead(items, ready, stopped)
    finally:
        _running.discard(entry)


@atexit.register
def _end_all() -> None:
    """Let all threads end: one that is inside torch when Python ends aborts the process."""
    running = list(_running)
    for _, stopped in running:
        stopped.set()
    for thread, _ in running:
        thread.join(_LAST_ITEM_S)


def _read_ahead(
    items: Iterator[Any], ready: queue.Queue[tuple[str, Any]], stopped: threading.Event
) -> None:
    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    try:
        for item in items:
            if not put("item", item):
                return
        put("end", None)
    except BaseException as error:  # passed on to the consumer, who raises it
        put("error", error)
    finally:  # an unfinished source frees its resources now, not at garbage collection
        if isinstance(items, Generator | Prefetched):
            items.close()
