"""A thread with a bounded queue: what must not hold up the training step runs in it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Hands items to a function, one after another, in a thread of its own.

    The thread is a daemon: a process that is told to end does not wait for it, unless it calls
    :meth:`flush` first.
    """

    def __init__(self, handle: Callable[[T], None], most: int, name: str) -> None:
        """Start the thread.

        Args:
            handle: takes an item, in the thread.
            most: items that may wait; :meth:`put` waits for room beyond that.
            name: of the thread.
        """
        self._handle = handle
        self._items: queue.Queue[T] = queue.Queue(most)
        self._failure: BaseException | None = None
        threading.Thread(target=self._serve, daemon=True, name=name).start()

    def put(self, item: T) -> None:
        """Queue an item; waits only while the queue is full.

        Raises:
            BaseException: what the function raised on an earlier item; none is handled after it.
        """
        self._check()
        self._items.put(item)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every item is handled, at most so long; whether they all are.

        Raises:
            BaseException: as :meth:`put`.
        """
        with self._items.all_tasks_done:
            done = self._items.all_tasks_done.wait_for(
                lambda: not self._items.unfinished_tasks, timeout_s
            )
        self._check()
        return done

    def _serve(self) -> None:
        while True:
            item = self._items.get()
            try:
                if self._failure is None:
                    self._handle(item)
            except BaseException as error:  # raised again where items are put
                self._failure = error
            finally:
                self._items.task_done()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
