"""What every part is given: the device, its time, and where its rows go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rows import Row, number

from dynaflip.platform.training.device import device_name, peak_flops


@dataclass(frozen=True)
class Part:
    """The device, how long the part may take, and where its rows are written."""

    name: str
    device: str  # cuda | cpu
    rows: Path  # a JSON object a line
    began_s: float  # of the whole check, by time.time
    ends_s: float  # of this part, by time.time

    @property
    def dry(self) -> bool:
        """Whether toy sizes are to run, because there is no GPU."""
        return self.device == "cpu"

    def left_s(self) -> float:
        """Seconds that this part still has."""
        return self.ends_s - time.time()

    def say(self, line: str) -> None:
        """Show a line of progress with the time since the check began."""
        print(f"[{time.time() - self.began_s:5.0f} s] {self.name}: {line}", flush=True)

    def add(self, case: str, **fields: Any) -> Row:
        """Write a row at once, so that it is there when the part is stopped later."""
        row = Row(self.name, case, **fields)
        with self.rows.open("a") as file:
            file.write(json.dumps(row.as_json()) + "\n")
        result = "failed" if row.failed else ""
        if row.value is not None:
            result = f"{number(row.value)} {row.unit}"
        if row.ratio is not None:
            result += f", {row.ratio:.2f} x {row.reference_name}"
        self.say(f"{case}: {result} {row.note}".rstrip(" :"))
        return row

    def seconds(self, run: Callable[[], Any], repeats: int, warmup: int = 2) -> float:
        """Median seconds of a call, after some that warm up; the device is waited for."""
        times = []
        for turn in range(warmup + repeats):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            if turn >= warmup:
                times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    def wait(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        """Free cached memory, and measure the peak anew from here."""
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """Most memory allocated on the device since :meth:`forget_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else None

    def peak_flops(self) -> float | None:
        """The device's dense bfloat16 peak in FLOP/s, where it is known."""
        if self.device != "cuda":
            return None
        return peak_flops(device_name("cuda"), "bfloat16", tf32=False)
