"""Meter: means of the steps' metrics, throughput, and the share of time spent waiting for data."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from dynaflip.platform.training.data.collate import Batch
from dynaflip.platform.training.data.ids import id64

Metrics = dict[str, float]


def curve_name(source: str) -> str:
    """A source's name as part of a curve's: MLflow takes no other characters."""
    return re.sub(r"[^\w.-]", "_", source)


class Meter:
    """Metrics collected between two reports."""

    def __init__(self, samples_per_step: int, sources: tuple[str, ...] = ()) -> None:
        """``sources`` are counted, in this process's batches, where there is more than one."""
        self.samples_per_step = samples_per_step
        self.sources = {name: id64(name) for name in sources} if len(sources) > 1 else {}
        self._start_s = time.perf_counter()
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

    def add(self, terms: dict[str, Tensor], batch: Batch) -> None:
        """Count a step; its terms stay on the device until :meth:`flush`."""
        for name, term in terms.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term
        for name, number in self.sources.items():
            self._from[name] += int(torch.count_nonzero(batch["source"] == number))
        self._samples += len(batch["source"])
        self._steps += 1
        self._busy_s += time.perf_counter() - self._start_s

    def flush(self) -> Metrics:
        """Means since the last call; evaluation and checkpoints do not count as step time."""
        means = {f"train/{name}": float(total) / self._steps for name, total in self._sums.items()}
        means |= {
            f"train/share/{curve_name(name)}": number / self._samples
            for name, number in self._from.items()
        }
        rate = self._steps / max(self._busy_s, 1e-9)
        means |= {
            "speed/steps_per_s": rate,
            "speed/samples_per_s": rate * self.samples_per_step,
            "speed/data_wait_share": self._wait_s / max(self._busy_s, 1e-9),
        }
        self._reset()
        return means

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._from = dict.fromkeys(self.sources, 0)
        self._samples, self._steps, self._busy_s, self._wait_s = 0, 0, 0.0, 0.0
