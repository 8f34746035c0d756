"""Notices that a process or a machine will soon be gone, and the step at which all ranks heed them.

A notice may come to one rank alone and between any two steps. Ranks agree on it by the highest
level of all of them, one step late, so that no step waits for the agreement.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynaflip.losses.distributed import world_size

# What a notice asks for, in rising order.
NOTHING = 0
SAVE = 1  # a machine is to be taken away: save a checkpoint at once, and train on
LEAVE = 2  # a worker's process is told to end: save one, and begin again elsewhere
STOP = 3  # the run is told to end: save one, and end resumable

# What the user reads then.
HEEDED = {
    SAVE: "a machine will be taken away; a checkpoint is saved, and training goes on",
    LEAVE: "a worker was told to end; a checkpoint is saved, and training goes on from there",
    STOP: "told to end; a checkpoint is saved",
}
# Of the time between SIGTERM and SIGKILL, for what comes after the checkpoint.
TO_END_S = 5.0


class Stopped(Exception):
    """The run was told to end, and has saved a checkpoint: ``--resume`` goes on from there."""


class Leaving(Exception):
    """A worker was told to end, and the checkpoint is saved: others go on from there."""


class Notices:
    """The notices of this process; signals and threads raise them, the loop reads them."""

    def __init__(self, *sources: Callable[[], int]) -> None:
        """``sources`` are asked after every step for a level, and answer at once."""
        self._level = NOTHING
        self._sources = sources

    def notify(self, level: int) -> None:
        """Take a notice; a lower one than before changes nothing."""
        self._level = max(self._level, level)

    def level(self) -> int:
        """The highest notice so far."""
        for source in self._sources:
            self.notify(source())
        return self._level


class Agreement:
    """The highest notice of all ranks, as it was after the step before."""

    def __init__(self, device: str) -> None:
        """``device`` is where the ranks' collectives run."""
        self._device = device
        self._pending: tuple[Tensor, Any] | None = None

    def reach(self, mine: int) -> int:
        """Exchange levels; every rank calls this after every step. Alone it is one's own."""
        if world_size() == 1:
            return mine
        level = torch.full((), mine, dtype=torch.int32, device=self._device)
        before = self._pending
        self._pending = (level, dist.all_reduce(level, dist.ReduceOp.MAX, async_op=True))
        return NOTHING if before is None else self._of(before)

    def finish(self) -> None:
        """Wait for the last exchange, which nobody reads."""
        if self._pending is not None:
            self._of(self._pending)
            self._pending = None

    @staticmethod
    def _of(pending: tuple[Tensor, Any]) -> int:
        level, work = pending
        work.wait()
        return int(level)


@contextlib.contextmanager
def on_sigterm(notify: Callable[[], None]) -> Iterator[None]:
    """Take the first SIGTERM of a block as a notice; a second one acts as it did before.

    Does nothing outside the main thread, to which Python gives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGTERM)

    def handle(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, previous)
        notify()

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
