"""The batch of all processes, with gradients that DDP's averaging turns into the exact ones.

Every process computes the loss rows of its own examples against the examples of all
processes. The gather sends gradients back to the process that owns an example, summed;
DDP then divides by the world size. With rows r of W processes and the loss the mean of
all rows, process s ends with (1/W) Σ_s Σ_r ∂L_r/∂θ_s = ∂L/∂θ: what one process with the
whole batch computes. Gathering without gradient loses the second sum; every process
computing all rows counts it W times. (open_clip: ``local_loss`` with ``gather_with_grad``.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of training processes; 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 without ``torch.distributed``."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherRows(torch.autograd.Function):
    """All processes' rows forward; the summed gradient of this process's rows backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = rows.shape[0]
        return _all_gather(rows)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        # A copy: all_reduce works in place and autograd may share the gradient.
        summed = grad_outputs[0].contiguous().clone()
        dist.all_reduce(summed)
        first = rank() * ctx.num_rows
        return summed[first : first + ctx.num_rows]


def _all_gather(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order, with gradient: (n, …) → (W·n, …).

    Every process must hold the same number of rows n.
    """
    if world_size() == 1:
        return rows
    if rows.requires_grad:
        return _GatherRows.apply(rows)
    return _all_gather(rows)


def global_sum(value: Tensor) -> Tensor:
    """Sum over all processes, without gradient; same shape as ``value``."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """Mean over the examples of all processes, as this process's share of it.

    ``total`` () sums this process's rows, ``count`` () counts them. The mean of the results
    over processes, which is what DDP takes of the gradients, is Σ total / Σ count also
    where processes count differently. No rows anywhere give 0.
    """
    return total * world_size() / global_sum(count).clamp(min=1)
