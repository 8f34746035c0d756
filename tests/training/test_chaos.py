"""Workers are killed with SIGKILL while they train: the run must not show it afterwards."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.platform import tracking
from dynaflip.platform.home import runs
from dynaflip.platform.training.config import DataConfig, PretrainConfig, TrainConfig

pytestmark = pytest.mark.ray


def config_of(folder: Path, steps: int, kills: int) -> PretrainConfig:
    return PretrainConfig(
        triplets=str(folder),
        model=ModelConfig(
            image=ImageConfig(image_px=32, frozen_blocks=12),
            flow=FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2),
            embedding_dim=8,
            hidden_dim=16,
        ),
        data=DataConfig(batch_size=8),
        train=TrainConfig(
            steps=steps,
            report_every_steps=1,
            checkpoint_every_steps=5,
            eval_every_steps=0,
            diagnostics_every_steps=10,
            threads=1,
            max_failures=2 * kills,
        ),
    )


class Killer(threading.Thread):
    """Kills the training worker when the run's log reaches each of some steps."""

    def __init__(self, steps: list[int]) -> None:
        super().__init__(daemon=True)
        self.steps, self.killed = steps, []  # type: ignore[var-annotated]
        self.started_ns = time.time_ns()

    def run(self) -> None:
        for step in self.steps:
            while self.reached() < step:
                time.sleep(0.05)
            while not (workers := training_workers()):
                time.sleep(0.05)
            os.kill(workers[0], signal.SIGKILL)
            self.killed.append(step)

    def reached(self) -> int:
        logs = [p for p in runs().glob("*/progress.log") if p.stat().st_mtime_ns > self.started_ns]
        lines = logs[0].read_text().splitlines() if logs else []
        found = [re.match(r"step +(\d+)/", line) for line in lines]
        return max((int(match[1]) for match in found if match), default=0)


def training_workers() -> list[int]:
    """Process ids of Ray Train's workers that share this session's home."""
    found = []
    mine = f"DYNAFLIP_HOME={os.environ['DYNAFLIP_HOME']}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
            if b"RayTrainWorker" in name and mine in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # it has ended
    return found


Curves = dict[str, list[tuple[int, float]]]


def curves_and_points(run_id: str) -> tuple[Curves, dict[str, list[int]]]:
    """A run's curves, and every step that MLflow has of each, repetitions and all."""
    store = tracking.client()
    curves = tracking.reopen_run(run_id).curves()
    tracking.reopen_run(run_id).end("FINISHED")
    return curves, {n: [p.step for p in store.get_metric_history(run_id, n)] for n in curves}


@pytest.mark.timeout(1800)  # ten restarts and two runs
@pytest.mark.parametrize(
    ("kills", "steps"), [(1, 14), pytest.param(10, 120, marks=pytest.mark.chaos)]
)
def test_killed_workers_leave_no_trace_in_the_curves(
    ray_cluster: None, triplet_folder: Path, kills: int, steps: int
) -> None:
    from dynaflip.platform.training.pretrain import pretrain

    config = config_of(triplet_folder, steps, kills)
    at = sorted(random.Random(0).sample(range(6, steps - 5), kills))
    killer = Killer(at)
    killer.start()
    broken = pretrain(config)
    assert killer.killed == at
    curves, points = curves_and_points(broken.run_id)
    assert points["train/loss"] == list(range(1, steps + 1)), "each step once"
    if kills == 1:
        return  # what follows takes another run, and a plain one is compared in test_loop.py
    expected, _ = curves_and_points(pretrain(config).run_id)
    for name, values in expected.items():
        if not name.startswith("speed/"):
            assert curves[name] == values, name
