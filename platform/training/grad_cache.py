"""GradCache: exact contrastive gradients with micro-batches (arXiv 2101.06983).

A contrastive loss is not a sum over parts of its batch. Cached gradients give its exact gradient
with the memory of one micro-batch: embed all micro-batches without gradient, compute the loss and
its gradient with respect to the embeddings, then embed each micro-batch again and propagate that
gradient into the weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Outputs = dict[str, Tensor]


def forward(
    model: nn.Module,
    batch: Mapping[str, Any],
    micro_batch_size: int | None,
    autocast: torch.dtype | None = None,
) -> tuple[Outputs, Callable[[Tensor], None]]:
    """The model's outputs on a batch, and a function that propagates their loss into the weights.

    Args:
        model: of a batch to named tensors with the batch along the first axis; may be DDP's.
        batch: named tensors with the batch along the first axis; other entries are ignored.
        micro_batch_size: samples of a micro-batch; None or the batch's size or more = one pass.
        autocast: dtype of the model's computation; None = that of the weights.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    some = tensors["image_t"]
    size, device = len(some), some.device

    def run(part: Mapping[str, Tensor]) -> Outputs:
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return model(part)

    if micro_batch_size is None or micro_batch_size >= size:
        return run(tensors), lambda loss: loss.backward()
    starts = range(0, size, micro_batch_size)
    parts = [{n: v[i : i + micro_batch_size] for n, v in tensors.items()} for i in starts]
    random_states, pieces = [], []
    with torch.no_grad():
        for part in parts:
            random_states.append(_random_state(device))
            pieces.append(run(part))
    outputs = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    leaves = {name: value.requires_grad_() for name, value in outputs.items()}

    def backward(loss: Tensor) -> None:
        loss.backward()
        for number, part in enumerate(parts):
            # Dropout must drop the same tokens as before.
            _set_random_state(device, random_states[number])
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else _without_sync(model):
                again = run(part)
                rows = slice(starts[number], starts[number] + micro_batch_size)
                # Frames embedded without gradient (DynaFLIP.learnt_frames) propagate nothing.
                wanted = [
                    name
                    for name, leaf in leaves.items()
                    if leaf.grad is not None and again[name].requires_grad
                ]
                torch.autograd.backward(
                    [again[name] for name in wanted],
                    [_rows(leaves[name].grad, rows) for name in wanted],
                )

    return outputs, backward


def _rows(gradient: Tensor | None, rows: slice) -> Tensor:
    assert gradient is not None
    return gradient[rows]


def _without_sync(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """DDP averages gradients once, with the last part's backward pass."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """State of the generators of the CPU, which some models draw from, and of the device."""
    on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_gpu


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    on_cpu, on_gpu = state
    torch.set_rng_state(on_cpu)
    if on_gpu is not None:
        torch.cuda.set_rng_state(on_gpu, device)
