"""Examples of past steps, kept as further negatives (MoCo's queue, arXiv 1911.05722).

Embeddings are those of the step that made them, without a momentum encoder: the queue is
to be short against the pace of training. Every process keeps the same queue, of the
gathered examples. Shapes: Q places, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynaflip.losses.contrastive import Examples


class MemoryBank(nn.Module):
    """The newest Q examples; buffers, so that checkpoints hold them."""

    group: Tensor  # (Q,) int64
    example: Tensor  # (Q,) int64 ids
    # () int64, examples written so far; the next place is this modulo Q.
    written: Tensor

    def __init__(self, size: int, dim: int, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.size, self.modalities = size, modalities
        for name in modalities:
            self.register_buffer(f"z_{name}", torch.zeros(size, dim))
        self.register_buffer("group", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("example", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    def examples(self) -> Examples | None:
        """What the queue holds, or None at the beginning."""
        filled = min(int(self.written), self.size)
        if not filled:
            return None
        # Copies: the places are written anew before the backward pass reads them.
        points = {name: self.get_buffer(f"z_{name}")[:filled].clone() for name in self.modalities}
        return Examples(points, self.group[:filled].clone(), self.example[:filled].clone())

    @torch.no_grad()
    def push(self, examples: Examples) -> None:
        """Take in examples of all processes; the oldest leave."""
        number = len(examples.group)
        kept = slice(max(0, number - self.size), number)
        start = int(self.written) + kept.start
        places = (start + torch.arange(number - kept.start)) % self.size
        places = places.to(self.group.device)
        for name in self.modalities:
            buffer = self.get_buffer(f"z_{name}")
            buffer[places] = examples.points[name][kept].to(buffer.dtype)
        self.group[places] = examples.group[kept]
        self.example[places] = examples.example[kept]
        self.written += number
