"""Meter: means of the steps' metrics, throughput, and where the time goes.

A step is divided into waiting for data, forward and backward pass, optimizer and the rest. On a GPU
the parts are timed by events on its stream, which nobody waits for until a report is due.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dynaflip.platform.training.data.collate import Batch
from dynaflip.platform.training.data.ids import id64

Metrics = dict[str, float]

# Parts of a step, in the order in which figures and lines name them.
STEP_PARTS = ("data", "forward_backward", "optimizer", "rest")
# What happens between steps, on the host's clock.
BETWEEN_STEPS = ("report", "checkpoint", "evaluation", "diagnostics")


def curve_name(source: str) -> str:
    """A source's name as part of a curve's: MLflow takes no other characters."""
    return re.sub(r"[^\w.-]", "_", source)


class StepTimer:
    """Seconds between marks inside steps, by the device's own clock."""

    def __init__(self, device: str = "cpu") -> None:
        """``device`` is where the steps compute."""
        self._on_gpu = torch.device(device).type == "cuda"
        self._last_s = 0.0
        self._last: torch.cuda.Event | None = None
        self._spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    def start(self) -> None:
        """Begin a span."""
        if self._on_gpu:
            self._last = _event()
        self._last_s = time.perf_counter()

    def mark(self, part: str) -> None:
        """Count the time since the last call to a part."""
        if self._on_gpu:
            now, before = _event(), self._last
            if before is not None:
                self._spans.append((part, before, now))
            self._last = now
            return
        now_s = time.perf_counter()
        self._seconds[part] += now_s - self._last_s
        self._last_s = now_s

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call; on a GPU this waits for its last mark."""
        if self._spans:
            self._spans[-1][2].synchronize()
        for part, before, after in self._spans:
            self._seconds[part] += before.elapsed_time(after) / 1000
        seconds, self._seconds, self._spans = dict(self._seconds), defaultdict(float), []
        return seconds


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Meter:
    """Metrics collected between two reports."""

    def __init__(
        self, samples_per_step: int, sources: tuple[str, ...] = (), device: str = "cpu"
    ) -> None:
        """``sources`` are counted, in this process's batches, where there is more than one."""
        self.samples_per_step = samples_per_step
        self.sources = {name: id64(name) for name in sources} if len(sources) > 1 else {}
        self.timer = StepTimer(device)
        self._device = torch.device(device)
        # Seconds of the whole run by part, for the line at its end.
        self.totals_s = dict.fromkeys((*STEP_PARTS, *BETWEEN_STEPS), 0.0)
        self._between_s = dict.fromkeys(BETWEEN_STEPS, 0.0)
        self._start_s = self._begin_s = time.perf_counter()
        self._sums: dict[str, Tensor] = {}
        self._reset()

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and time how long each was waited for."""
        while True:
            self._start_s = time.perf_counter()
            batch = next(batches, None)
            self._wait_s += time.perf_counter() - self._start_s
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Count the block's time to one of :data:`BETWEEN_STEPS`, and to no step."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start_s
            self._between_s[part] += seconds
            self.totals_s[part] += seconds

    def add(self, terms: dict[str, Tensor], batch: Batch) -> None:
        """Count a step; its terms stay on the device until :meth:`flush`."""
        for name, term in terms.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term
        for name, number in self.sources.items():
            self._from[name] += int(torch.count_nonzero(batch["source"] == number))
        self._samples += len(batch["source"])
        self._images += sum(len(batch[name]) for name in batch if name.startswith("image_"))
        self._steps += 1
        self._busy_s += time.perf_counter() - self._start_s

    def flush(self) -> Metrics:
        """Means since the last call; what happens between steps does not count as step time."""
        # One transfer for all of them.
        values = torch.stack([total.double() for total in self._sums.values()]).tolist()
        means = {
            f"train/{name}": value / self._steps
            for name, value in zip(self._sums, values, strict=True)
        }
        means |= {
            f"train/share/{curve_name(name)}": number / self._samples
            for name, number in self._from.items()
        }
        rate = self._steps / max(self._busy_s, 1e-9)
        means |= {
            "speed/steps_per_s": rate,
            "speed/samples_per_s": rate * self.samples_per_step,
            "speed/images_per_s": rate * self.samples_per_step * self._images / self._samples,
            "speed/data_wait_share": self._wait_s / max(self._busy_s, 1e-9),
        }
        parts = self._step_parts()
        means |= {f"speed/{part}_s": seconds / self._steps for part, seconds in parts.items()}
        means |= {
            f"speed/{part}_wait_s": self._between_s[part] for part in ("report", "checkpoint")
        }
        means |= self._memory()
        self._reset()
        return means

    def state(self) -> dict[str, Any]:
        """Sums since the last report, as JSON values; empty right after one."""
        if not self._steps:
            return {}
        return {
            "sums": {name: float(total) for name, total in self._sums.items()},
            "from": self._from,
            "counts": [self._samples, self._images, self._steps],
            "seconds": [self._busy_s, self._wait_s],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with a :meth:`state`, so that the next report is a mean over the same steps."""
        if not state:
            return
        # Sums are in float32, which JSON keeps exactly.
        self._sums = {
            name: torch.tensor(total, device=self._device) for name, total in state["sums"].items()
        }
        self._from = {name: state["from"].get(name, 0) for name in self.sources}
        self._samples, self._images, self._steps = state["counts"]
        self._busy_s, self._wait_s = state["seconds"]

    def elapsed_s(self) -> float:
        """Seconds since this process began to train."""
        return time.perf_counter() - self._begin_s

    def _step_parts(self) -> dict[str, float]:
        """Seconds of the steps since the last report, by part."""
        timed = self.timer.take()
        parts = {"data": self._wait_s, **dict.fromkeys(STEP_PARTS[1:-1], 0.0), **timed}
        parts["rest"] = max(0.0, self._busy_s - sum(parts.values()))
        for part, seconds in parts.items():
            self.totals_s[part] += seconds
        return parts

    def _memory(self) -> Metrics:
        """Most memory of the GPU since the last report, in GB: in tensors, and taken from it."""
        if self._device.type != "cuda":
            return {}
        allocated = torch.cuda.max_memory_allocated(self._device)
        reserved = torch.cuda.max_memory_reserved(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return {
            "speed/memory_allocated_gb": allocated / 1e9,
            "speed/memory_reserved_gb": reserved / 1e9,
        }

    def _reset(self) -> None:
        self._sums = {}
        self._from = dict.fromkeys(self.sources, 0)
        self._samples, self._images, self._steps = 0, 0, 0
        self._busy_s, self._wait_s = 0.0, 0.0
        self._between_s = dict.fromkeys(BETWEEN_STEPS, 0.0)
