"""Policies that train their encoder, fitted on the device: repeatable, near a CPU's, and back."""

from __future__ import annotations

import numpy as np
import torch
from gpu_cases import PX, on, tiny_model

from dynaflip.eval.policies.config import BehaviourCloningConfig, EndToEndConfig
from dynaflip.eval.policies.end_to_end import fit_end_to_end
from dynaflip.platform.training.device import exact

STEPS, LR = 4, 1e-4


def fitted(device: str, mode: str, precision: str = "float32") -> dict[str, torch.Tensor]:
    """Tensors of encoder and head after a few steps."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, PX, PX, 3), dtype=np.uint8)
    rest = rng.standard_normal((24, 8)).astype(np.float32)
    encoder, head = fit_end_to_end(
        tiny_model("cpu").image,
        images,
        rest[:, :4],
        rest[:, None, 4:],
        BehaviourCloningConfig(hidden_dim=8, layers=1, lr=LR),
        EndToEndConfig(STEPS, batch_size=8, encoder_lr=LR, lora_rank=2, precision=precision),
        mode=mode,
        seed=0,
        device=device,
    )
    return {**encoder.state_dict(), **head.state_dict()}


@on("cpu", "cuda")
def test_a_fit_on_the_device_is_repeatable_and_near_a_cpu_s(device: str) -> None:
    with exact():
        there, again = fitted(device, "lora"), fitted(device, "lora")
    here = fitted("cpu", "lora")
    assert {tensor.device.type for tensor in there.values()} == {"cpu"}
    for name, tensor in there.items():
        assert torch.equal(tensor, again[name]), name
        if "running" not in name and tensor.is_floating_point():
            # A step of Adam is at most about the learning rate, whatever the gradient is.
            assert torch.allclose(tensor, here[name], atol=4 * LR * STEPS), name


@on("cpu", "cuda")
def test_bfloat16_on_the_device_differs_by_rounding_and_gives_float32(device: str) -> None:
    half, full = fitted(device, "full", "bfloat16"), fitted(device, "full")
    floats = [name for name, tensor in half.items() if tensor.is_floating_point()]
    assert {half[name].dtype for name in floats} == {torch.float32}
    assert any(not torch.equal(half[name], full[name]) for name in floats)
    assert all(torch.isfinite(half[name]).all() for name in floats)
