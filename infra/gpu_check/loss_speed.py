"""The contrastive loss, forward and backward, beside three matrix products of its size."""

from __future__ import annotations

import torch
from part import Part
from torch import Tensor
from torch.nn import functional as F

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.contrastive import contrastive_loss
from dynaflip.losses.examples import Examples, Windows

MODALITIES = ("language", "image", "flow")


def run(part: Part) -> None:
    """A row for each number of examples N: milliseconds, and the products' of (N, D) by (D, N).

    The three products are those that no triangle of three anchored matrices can be without:
    float32, as the loss computes them.
    """
    sizes = (8, 16) if part.dry else (256, 512, 1024, 2048, 4096, 8192)
    dim, repeats = (16, 1) if part.dry else (512, 10)
    for count in sizes:
        if part.left_s() < 5:
            part.add(f"N {count}", note="no time left")
            continue
        _measure(part, count, dim, repeats)


def _measure(part: Part, count: int, dim: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(count, dim, generator=generator).to(part.device) for _ in MODALITIES]
    leaves = [value.requires_grad_() for value in raw]
    ids = torch.arange(count, device=part.device)
    start_s = 0.25 * ids.double()  # eight transitions of a clip, each overlapping the next
    windows = Windows(ids // 8, torch.stack([start_s, start_s + 0.5], 1))
    config = ObjectiveConfig()

    def loss() -> None:
        points = {name: F.normalize(z, dim=-1) for name, z in zip(MODALITIES, leaves, strict=True)}
        examples = Examples(points, ids // 8, ids, windows)
        value = contrastive_loss(config, examples, examples)["loss"]
        torch.autograd.grad(value, leaves)

    def forward_products() -> list[Tensor]:
        return [leaves[i] @ leaves[(i + 1) % 3].T for i in range(3)]

    def products() -> None:
        values = forward_products()
        torch.autograd.grad(values, leaves, [value.detach() for value in values])

    part.forget_peak()
    took = part.seconds(loss, repeats)
    peak = part.peak_gb()
    both = part.seconds(products, repeats)
    with torch.no_grad():
        one_way = part.seconds(forward_products, repeats)
    part.add(
        f"N {count}, D {dim}",
        value=1e3 * took,
        unit="ms",
        reference=1e3 * one_way,
        reference_name="3 products",
        peak_gb=peak,
        note=f"{took / both:.2f} x 3 products with their backward",
    )
