"""Fifty steps of a tiny model in float64: a refactor must not move the curve.

An intended change writes it anew, with an entry in LOG.md:
``python tests/platform/training/test_golden_curve.py``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.image import Backbone, ImageEncoder
from dynaflip.encoders.model import DynaFLIP
from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.objective import Objective
from dynaflip.platform.training.config import OptimizerConfig
from dynaflip.platform.training.optimizer import build_optimizer, build_schedule
from dynaflip.platform.training.step import train_step

GOLDEN = Path(__file__).with_name("golden_curve.json")
STEPS, BATCH, PX, TEXT = 50, 8, 16, 12


class Patches(Backbone):
    """A frame's embedding as the mean of its patches, each seen by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.mix = nn.Linear(16, 16)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.mix(self.embed(pixels).flatten(2).transpose(1, 2).tanh())
        return tokens.mean(1), tokens


def tiny_model() -> DynaFLIP:
    """Weights from numpy, whose normal numbers are the same on every processor."""
    pre = {"image_px": PX, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    image = ImageEncoder(ImageConfig(image_px=PX), Patches(), 16, 16, pre)
    flow = FlowConfig(width=16, layers=1, heads=2, channels=4, cnn_layers=2)
    config = ModelConfig(flow=flow, embedding_dim=8, hidden_dim=16)
    model = DynaFLIP(config, image=image, text_dim=TEXT).double()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # Scales stay 1, as they are made, but for the noise.
            scale = 0.3 / math.sqrt(math.prod(parameter.shape[1:]) or 1)
            noise = torch.from_numpy(scale * rng.standard_normal(parameter.shape))
            parameter.copy_((parameter == 1).double() + noise)
    return model


def batch_of(rng: np.random.Generator) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    images = {
        f"image_{name}": torch.from_numpy(rng.integers(0, 256, (BATCH, 3, PX, PX), np.uint8))
        for name in ("t", "next", "far")
    }
    return {
        **images,
        "text_features": normal(BATCH, TEXT),
        "flow_origin_m": normal(BATCH, 20, 20, 3),
        "flow_displacement_m": 0.05 * normal(BATCH, 7, 20, 20, 3),
        "flow_visible": torch.from_numpy(rng.random((BATCH, 7, 20, 20)) < 0.8),
        "median_depth_m": 1 + torch.from_numpy(rng.random(BATCH)),
        "group": torch.from_numpy(rng.integers(0, 4, BATCH)),
        "clip": torch.from_numpy(rng.integers(0, 5, BATCH)),
        "triplet": torch.arange(BATCH),
        "window_start_s": torch.arange(BATCH).double(),
        "window_end_s": torch.arange(BATCH) + 0.5,
        "far_valid": torch.from_numpy(rng.random(BATCH) < 0.8),
    }


def curve() -> dict[str, list[float]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = tiny_model()
    objective = Objective(ObjectiveConfig(negatives=("others", "shuffled"), shuffles=4))
    config = OptimizerConfig(lr=3e-3)
    optimizer = build_optimizer(model, objective, config)
    schedule = build_schedule(optimizer, config, STEPS)
    rng = np.random.default_rng(1)
    batches = [batch_of(rng) for _ in range(4)]
    actual: dict[str, list[float]] = {"loss": [], "gradient_norm": []}
    for step in range(STEPS):
        terms = train_step(model, objective, optimizer, schedule, batches[step % 4])
        for name, values in actual.items():
            values.append(float(terms[name]))
    torch.set_num_threads(threads)
    return actual


def test_the_golden_curve_has_not_moved() -> None:
    golden = json.loads(GOLDEN.read_text())
    actual = curve()
    for name, values in golden.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
    assert golden["loss"][-1] < 0.8 * golden["loss"][0], "the tiny model learns its four batches"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(curve(), indent=1) + "\n")
