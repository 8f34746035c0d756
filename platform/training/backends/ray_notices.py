"""How Ray's workers and its driver hear that they or their machines will soon be gone.

A machine that drains is told by Ray Train's own watcher, a worker's process and the driver by
SIGTERM. What the loop then does is in :mod:`dynaflip.platform.training.notices`.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import ray.train.torch
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.train.v2._internal.execution.context import get_train_context

from dynaflip.platform.training.notices import (
    LEAVE,
    NOTHING,
    SAVE,
    STOP,
    TO_END_S,
    Notices,
    Stopped,
)

_STOP_POLL_S = 1.0  # how often rank 0 asks whether the driver was told to end
_NAMESPACE = b"dynaflip"


class Ending:
    """Passes on to the workers that the driver was told to end, and waits no longer than it may."""

    def __init__(self, told: threading.Event, key: bytes, grace_s: float) -> None:
        self.told, self.key, self.most_s = told, key, grace_s - TO_END_S
        self._since_s: float | None = None

    def check(self) -> None:
        """Called a few times a second while the workers train.

        Raises:
            Stopped: they have not ended in time.
        """
        if not self.told.is_set():
            return
        if self._since_s is None:
            self._since_s = time.monotonic()
            _internal_kv_put(self.key, b"1", namespace=_NAMESPACE)
            print("told to end (SIGTERM): saving a checkpoint", flush=True)
        if time.monotonic() - self._since_s > self.most_s:
            raise Stopped(f"no checkpoint could be saved within {self.most_s:g} s (train.grace_s)")


def worker_notices(stop: bytes, rank: int) -> Notices:
    """Notices to this worker: of its machine, of its own process, and on rank 0 of the driver's."""
    notices = Notices(lambda: SAVE if _machine_goes() else NOTHING, lambda: _sigterm)
    if rank == 0:

        def ask() -> None:
            while not _internal_kv_get(stop, namespace=_NAMESPACE):
                time.sleep(_STOP_POLL_S)
            notices.notify(STOP)

        threading.Thread(target=ask, daemon=True, name="stop").start()
    return notices


def _machine_goes() -> bool:
    """True if a machine of a worker drains. Ray's own ``get_preemption_info`` is a barrier."""
    return get_train_context().preemption_context.preemption_info is not None


_sigterm = NOTHING


def _take_sigterm() -> None:
    """Take SIGTERM as a notice; in a worker's main thread, where Python gives it signals."""

    def handle(signum: int, frame: Any) -> None:
        global _sigterm
        if _sigterm:  # for the second time
            raise SystemExit(128 + signum)
        _sigterm = LEAVE

    signal.signal(signal.SIGTERM, handle)


_TorchBackend: Any = ray.train.torch.TorchConfig().backend_cls


class _BackendWithNotices(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(_take_sigterm)


class TorchWithNotices(ray.train.torch.TorchConfig):
    """Torch's process group, and workers that take SIGTERM as a notice."""

    @property
    def backend_cls(self) -> type[Any]:
        """Class that sets up the workers."""
        return _BackendWithNotices
