"""Tests on a CPU and on a GPU, which run under pytest and without it (`make gpu`).

A GPU machine may have no pytest: these tests take no fixtures, skip by ``unittest.SkipTest``
(which pytest knows too), and each names the devices it runs on with :func:`on`. The part for CUDA
has the marker ``gpu``; the one for the CPU tests the test itself where there is no GPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from unittest import SkipTest

# Before the first product on the device: cuBLAS reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dynaflip.encoders.backbones.base import Backbone
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.encoders.image import ImageEncoder
from dynaflip.encoders.model import DynaFLIP

try:
    import pytest
except ModuleNotFoundError:
    pytest = None  # type: ignore[assignment]

PX, TEXT_DIM, EMBEDDING_DIM = 16, 12, 16
Test = Callable[..., None]


def on(*devices: str, markers: tuple[str, ...] = ()) -> Callable[[Test], Test]:
    """Run a test with each device, ``cpu`` or ``cuda``, as its first argument.

    Args:
        devices: to run on; without CUDA the test is skipped there.
        markers: of the part for the CPU, where it is slow.
    """

    def mark(test: Test) -> Test:
        @functools.wraps(test)
        def run(device: str) -> None:
            if device == "cuda" and not torch.cuda.is_available():
                raise SkipTest("needs a GPU, and torch sees none")
            test(device)

        # pytest would look for the parameters of what is wrapped.
        del run.__wrapped__  # type: ignore[attr-defined]
        run.devices = devices  # type: ignore[attr-defined]
        run.cpu_markers = markers  # type: ignore[attr-defined]
        if pytest is None:
            return run
        marks = {"cuda": [pytest.mark.gpu], "cpu": [getattr(pytest.mark, m) for m in markers]}
        values = [pytest.param(device, marks=marks[device]) for device in devices]
        return pytest.mark.parametrize("device", values)(run)

    return mark


class Patches(Backbone):
    """A frame's embedding as the mean of its patches, each seen by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.mix = nn.Linear(16, 16)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, px, px) → (B, 16) and (B, P, 16)."""
        tokens = self.mix(self.embed(pixels).flatten(2).transpose(1, 2).tanh())
        return tokens.mean(1), tokens


def tiny_model(device: str, *, dropout: float = 0.0, seed: int = 0) -> DynaFLIP:
    """A small model in training mode; equal seeds give equal weights on every device.

    Args:
        device: that the weights lie on.
        dropout: share of condition tokens that are withheld, so that steps draw random numbers.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    pre = {"image_px": PX, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    image = ImageEncoder(ImageConfig(image_px=PX), Patches(), 16, 16, pre)
    flow = FlowConfig(
        width=16, layers=1, heads=2, channels=4, cnn_layers=2, condition_dropout=dropout
    )
    config = ModelConfig(flow=flow, embedding_dim=EMBEDDING_DIM, hidden_dim=32)
    model = DynaFLIP(config, image=image, text_dim=TEXT_DIM).train()
    # The flow head starts at zero, and would hide what its gradient is.
    nn.init.normal_(model.flow_head[-1].weight, std=0.1)  # type: ignore[arg-type]
    return model.to(device)


def batch_of(size: int, device: str, seed: int = 0) -> dict[str, Tensor]:
    """A batch of random numbers, float32; equal seeds give equal numbers on every device."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    images = {
        f"image_{name}": torch.from_numpy(rng.integers(0, 256, (size, 3, PX, PX), np.uint8))
        for name in ("t", "next", "far")
    }
    batch = {
        **images,
        "text_features": normal(size, TEXT_DIM),
        "flow_origin_m": normal(size, 20, 20, 3),
        "flow_displacement_m": 0.05 * normal(size, 7, 20, 20, 3),
        "flow_visible": torch.from_numpy(rng.random((size, 7, 20, 20)) < 0.8),
        "median_depth_m": 1 + normal(size).abs(),
        "group": torch.from_numpy(rng.integers(0, size, size)),
        "clip": torch.from_numpy(rng.integers(0, size, size)),
        "triplet": torch.arange(size) + size * seed,
        "example": torch.arange(size) + size * seed,
        "source": torch.zeros(size, dtype=torch.int64),
        # Half a second, one each quarter: some of a clip overlap.
        "window_start_s": torch.arange(size, dtype=torch.float64) / 4,
        "window_end_s": torch.arange(size, dtype=torch.float64) / 4 + 0.5,
        "far_valid": torch.from_numpy(rng.random(size) < 0.8),
    }
    return {name: value.to(device) for name, value in batch.items()}


def in_float64(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with its floating point numbers in float64."""
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of each parameter that has one, float64 on the CPU."""
    return {
        name: parameter.grad.detach().double().cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def apart(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """‖found − exact‖ / ‖exact‖ over all tensors together."""
    assert found.keys() == exact.keys()
    differences = torch.cat([(found[name] - exact[name]).flatten() for name in exact])
    return float(differences.norm() / torch.cat([v.flatten() for v in exact.values()]).norm())


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Kernels that sum in one order, where torch has such; attention in its plain form has."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def differing(one: nn.Module, two: nn.Module) -> list[str]:
    """Names of the entries of two modules' states that differ in any bit."""
    other = two.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, other[name])]
