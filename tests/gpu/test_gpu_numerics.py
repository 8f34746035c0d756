"""Numbers of a step on the device: bfloat16 against float64, TF32 kept out of the energy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from gpu_cases import apart, batch_of, gradients, in_float64, on, tiny_model
from torch import Tensor
from torch.nn import functional as F

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.contrastive import contrastive_loss
from dynaflip.losses.energy import energy_matrix
from dynaflip.losses.examples import Examples
from dynaflip.losses.objective import Objective
from dynaflip.platform.training.device import tf32
from dynaflip.platform.training.grad_cache import forward

OBJECTIVE = ObjectiveConfig(negatives=("others", "swapped", "shuffled"), shuffles=3)


def points_of(count: int, dim: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Three (count, dim) leaves, two of them close, as after some training."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    noise = [torch.randn(count, dim, generator=generator, dtype=torch.float64) for _ in range(3)]
    scales = (0.0, 0.3, 1.0)
    return [
        (base + scale * n).to(device, dtype).requires_grad_()
        for scale, n in zip(scales, noise, strict=True)
    ]


def loss_and_slopes(
    leaves: list[Tensor], autocast: bool = False
) -> tuple[float, dict[str, Tensor]]:
    """The contrastive loss of unit vectors, and its gradient before they were normalised."""
    names = ("language", "image", "flow")
    device = leaves[0].device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        points = {n: F.normalize(z, dim=-1) for n, z in zip(names, leaves, strict=True)}
        ids = torch.arange(len(leaves[0]), device=device)
        examples = Examples(points, ids // 2, ids)
        loss = contrastive_loss(OBJECTIVE, examples, examples)["loss"]
    slopes = torch.autograd.grad(loss, leaves)
    return float(loss.detach()), {n: g.double().cpu() for n, g in zip(names, slopes, strict=True)}


@contextlib.contextmanager
def tf32_everywhere() -> Iterator[None]:
    """The process's switches for TF32 on, whatever a training sets."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@on("cpu", "cuda")
def test_the_float32_loss_is_that_of_float64(device: str) -> None:
    exact, slopes = loss_and_slopes(points_of(96, 64, "cpu", torch.float64))
    for autocast in (False, True):  # the loss may stand inside the model's autocast
        value, found = loss_and_slopes(points_of(96, 64, device, torch.float32), autocast)
        assert abs(value - exact) < 1e-5 * abs(exact)
        assert apart(found, slopes) < 1e-4


@on("cpu", "cuda")
def test_a_bfloat16_model_has_the_gradient_of_a_float64_one_but_for_its_rounding(
    device: str,
) -> None:
    batch = batch_of(24, device)
    results = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = tiny_model(device)
        double = dtype == torch.float64
        objective = Objective(OBJECTIVE).to(device)
        if double:
            model, objective = model.double(), objective.double()
        autocast = torch.bfloat16 if dtype == torch.bfloat16 else None
        data = in_float64(batch) if double else batch
        with tf32(False):  # as in a run: torch lets convolutions otherwise
            outputs, backward = forward(model, data, None, autocast)
            loss = objective(outputs, data)["loss"]
            assert loss.dtype == (torch.float64 if double else torch.float32)
            backward(loss)
        results.append((float(loss.detach()), gradients(model)))
    (exact, slopes), (single, single_slopes), (half, half_slopes) = results
    assert abs(single - exact) < 1e-5 * abs(exact)
    assert apart(single_slopes, slopes) < 1e-4
    # Eight bits of mantissa in every layer, divided by a temperature of 0.07.
    assert abs(half - exact) < 0.02 * abs(exact)
    assert apart(half_slopes, slopes) < 0.05


@on("cpu", "cuda")
def test_tf32_never_reaches_the_energy(device: str) -> None:
    """TF32 has 10 bits of mantissa: an error of 1e-3, and 3e-2 of areas near alignment."""
    generator = torch.Generator().manual_seed(0)
    z = [
        F.normalize(torch.randn(64, 512, generator=generator, dtype=torch.float64), dim=-1)
        for _ in range(3)
    ]
    names = ("language", "image", "flow")
    exact = {name: value.to(device) for name, value in zip(names, z, strict=True)}
    single = {name: value.float() for name, value in exact.items()}
    with tf32_everywhere():
        for anchor in names:
            found = energy_matrix(anchor, single, single, 1.0, 1.0).double()
            wanted = energy_matrix(anchor, exact, exact, 1.0, 1.0)
            off_diagonal = ~torch.eye(64, dtype=torch.bool, device=device)
            error = (found - wanted).abs()[off_diagonal].max()
            assert error < 2e-6, f"{anchor}: {float(error):.2g}"
        # The gradient's products are products too.
        value, slopes = loss_and_slopes(points_of(96, 64, device, torch.float32))
    expected, wanted_slopes = loss_and_slopes(points_of(96, 64, "cpu", torch.float64))
    assert abs(value - expected) < 1e-5 * abs(expected)
    assert apart(slopes, wanted_slopes) < 1e-4
