"""SIGKILL or SIGTERM for a training's workers, and the curves that must not show it."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path

from dynaflip.platform import tracking
from dynaflip.platform.paths import runs
from dynaflip.platform.tracking.store import client


class Killer(threading.Thread):
    """Kills the training worker when the run's log reaches each of some steps."""

    def __init__(self, steps: list[int], number: int = signal.SIGKILL) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.steps, self.killed = steps, []  # type: ignore[var-annotated]
        self.started_ns = time.time_ns()

    def run(self) -> None:
        for step in self.steps:
            while self.reached() < step:
                time.sleep(0.05)
            while not (workers := training_workers()):
                time.sleep(0.05)
            os.kill(workers[0], self.number)
            self.killed.append(step)

    def reached(self) -> int:
        logs = [p for p in runs().glob("*/progress.log") if p.stat().st_mtime_ns > self.started_ns]
        lines = logs[0].read_text().splitlines() if logs else []
        matches = [re.match(r"step +(\d+)/", line) for line in lines]
        return max((int(match[1]) for match in matches if match), default=0)


def training_workers() -> list[int]:
    """Process ids of Ray Train's workers that share this session's home."""
    pids = []
    mine = f"DYNAFLIP_HOME={os.environ['DYNAFLIP_HOME']}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
            if b"RayTrainWorker" in name and mine in (folder / "environ").read_bytes():
                pids.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return pids


Curves = dict[str, list[tuple[int, float]]]


def curves_and_points(run_id: str) -> tuple[Curves, dict[str, list[int]]]:
    """A run's curves, and every step that MLflow has of each, repetitions and all."""
    store = client()
    curves = tracking.reopen_run(run_id).curves()
    tracking.reopen_run(run_id).end("FINISHED")
    return curves, {n: [p.step for p in store.get_metric_history(run_id, n)] for n in curves}
