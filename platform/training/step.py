"""The training step: plain torch, the same under Ray Train, torchrun and in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynaflip.platform.training.grad_cache import forward


class NonFiniteLoss(RuntimeError):
    """The loss is NaN or infinite: the run stops before the weights are spoilt."""


def train_step(
    model: nn.Module,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batch: Mapping[str, Any],
    *,
    micro_batch_size: int | None = None,
    clip_norm: float = 1.0,
    autocast: torch.dtype | None = None,
    mark: Callable[[str], None] = lambda part: None,
) -> dict[str, Tensor]:
    """One optimizer step; returns the objective's terms and ``gradient_norm``, () each.

    ``mark`` is told when a part is done: ``forward_backward``, ``optimizer``.

    Raises:
        NonFiniteLoss: the loss of this batch or its gradient is not finite; weights are untouched.
    """
    optimizer.zero_grad(set_to_none=True)
    outputs, backward = forward(model, batch, micro_batch_size, autocast)
    terms = objective(outputs, batch)
    backward(terms["loss"])
    limit = clip_norm if clip_norm > 0 else float("inf")
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    check_finite(terms, norm, objective)
    mark("forward_backward")
    optimizer.step()
    schedule.step()
    mark("optimizer")
    terms["loss"] = terms.pop("total")  # of the whole batch, where `loss` is this process's share
    return {name: term.detach() for name, term in terms.items()} | {"gradient_norm": norm}


def check_finite(terms: Mapping[str, Tensor], norm: Tensor, objective: nn.Module) -> None:
    """Refuse a loss or a gradient that is not finite: the one time a step waits for its device.

    Gradients are averaged over processes, so that all of them find the same.
    """
    # The loss terms' own parameters (a learned temperature) are not clipped, but must be finite.
    own = [p.grad.norm() for p in objective.parameters() if p.grad is not None]
    values = torch.stack([value.detach().float() for value in (terms["loss"], norm, *own)])
    if not torch.isfinite(values).all():
        bad = [name for name, term in terms.items() if not torch.isfinite(term)]
        raise NonFiniteLoss(f"{', '.join(bad) or 'gradient_norm'} not finite")
