"""Workers are killed with SIGKILL while they train: the run must not show it afterwards."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killed_workers import Killer, curves_and_points

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.platform.training.config import DataConfig, PretrainConfig, TrainConfig

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
KILLS, STEPS = 10, 120


def config_of(folder: Path) -> PretrainConfig:
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
            steps=STEPS,
            report_every_steps=1,
            checkpoint_every_steps=5,
            eval_every_steps=0,
            diagnostics_every_steps=10,
            threads=1,
            max_failures=2 * KILLS,
        ),
    )


@pytest.mark.timeout(1800)  # ten restarts and two runs
def test_killed_workers_leave_no_trace_in_the_curves(
    ray_cluster: None, triplet_folder: Path
) -> None:
    from dynaflip.platform.training.run import pretrain

    config = config_of(triplet_folder)
    at = sorted(random.Random(0).sample(range(6, STEPS - 5), KILLS))
    killer = Killer(at)
    killer.start()
    broken = pretrain(config)
    assert killer.killed == at
    curves, points = curves_and_points(broken.run_id)
    assert points["train/loss"] == list(range(1, STEPS + 1)), "each step once"
    expected, _ = curves_and_points(pretrain(config).run_id)
    for name, values in expected.items():
        if not name.startswith("speed/"):
            assert curves[name] == values, name
