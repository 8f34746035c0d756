"""Inner products of every row with every other, in full precision forward and backward.

TF32 keeps 10 bits of a float32, and the energies of shuffled examples cancel: 17 % of an area is
rounding already where points lie 1e-3 apart. Whoever lets a GPU's matrix products run in TF32
speeds up the networks; the losses stay exact. Shapes: n rows, N columns, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dynaflip.losses.simplex import full_precision


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Matrix products of float32 in float32, whatever the process allows, for a block.

    It holds for what the block starts: the backward pass of its products runs later, outside.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if before == "ieee":
        yield
        return
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class _InnerProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns)
        with exact_float32():
            return rows @ columns.T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,) = gradients
        rows, columns = ctx.saved_tensors
        of_rows, of_columns = ctx.needs_input_grad
        with torch.autocast(gradient.device.type, enabled=False), exact_float32():
            return (
                gradient @ columns if of_rows else None,
                gradient.T @ rows if of_columns else None,
            )


def inner_products(rows: Tensor, columns: Tensor) -> Tensor:
    """⟨row, column⟩ of (n, D) and (N, D): (n, N), at least float32, with exact gradients."""
    with torch.autocast(rows.device.type, enabled=False):
        return _InnerProducts.apply(full_precision(rows), full_precision(columns))
