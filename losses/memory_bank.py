"""Memory bank: examples of past steps as further negatives (MoCo's queue, arXiv 1911.05722).

Embeddings are those of the step that made them, without a momentum encoder, so the bank should
hold a few steps' worth of examples and not thousands. Every process has the same bank, of the
examples of all processes. Shapes: Q slots, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynaflip.losses.examples import Examples


class MemoryBank(nn.Module):
    """The newest Q examples; buffers, so that checkpoints hold them."""

    group: Tensor  # (Q,) int64
    example: Tensor  # (Q,) int64 ids
    # () int64, examples written so far; the next slot is this modulo Q.
    written: Tensor

    def __init__(self, size: int, dim: int, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.size, self.modalities = size, modalities
        for name in modalities:
            self.register_buffer(f"z_{name}", torch.zeros(size, dim))
        self.register_buffer("group", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("example", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        # `written` as the host knows it: reading it from a GPU would make the step wait.
        self._written: int | None = 0
        self.register_load_state_dict_post_hook(_forget_count)

    def count(self) -> int:
        """Examples written so far."""
        if self._written is None:
            self._written = int(self.written)
        return self._written

    def examples(self) -> Examples | None:
        """The examples in the bank, or None while it is empty."""
        filled = min(self.count(), self.size)
        if not filled:
            return None
        # Copies: the slots are overwritten before the backward pass reads them.
        points = {name: self.get_buffer(f"z_{name}")[:filled].clone() for name in self.modalities}
        return Examples(points, self.group[:filled].clone(), self.example[:filled].clone())

    @torch.no_grad()
    def push(self, examples: Examples) -> None:
        """Add the examples of all processes in place of the oldest."""
        number = len(examples.group)
        newest = slice(max(0, number - self.size), number)
        start = self.count() + newest.start
        slots = torch.arange(number - newest.start, device=self.group.device)
        slots = (start + slots) % self.size
        for name in self.modalities:
            buffer = self.get_buffer(f"z_{name}")
            buffer[slots] = examples.points[name][newest].to(buffer.dtype)
        self.group[slots] = examples.group[newest]
        self.example[slots] = examples.example[newest]
        self.written += number
        self._written = self.count() + number


def _forget_count(bank: nn.Module, keys: object) -> None:
    """Read the count anew, from the buffer that a checkpoint has filled."""
    assert isinstance(bank, MemoryBank)
    bank._written = None
