"""Memory bank: examples of past steps as further negatives (MoCo's queue, arXiv 1911.05722).

Embeddings are those of the step that made them, without a momentum encoder, so the bank should
hold a few steps' worth of examples and not thousands. Every process has the same bank, of the
examples of all processes. Shapes: Q slots, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynaflip.losses.examples import Examples, Windows


class MemoryBank(nn.Module):
    """The newest Q examples; buffers, so that checkpoints hold them."""

    group: Tensor  # (Q,) int64
    example: Tensor  # (Q,) int64 ids
    clip: Tensor  # (Q,) int64 ids
    window_s: Tensor  # (Q, 2) float64 start and end
    # () int64, examples written so far; the next slot is this modulo Q.
    written: Tensor

    def __init__(
        self, size: int, dim: int, modalities: tuple[str, ...], *, windows: bool = False
    ) -> None:
        """``windows``: also when each example's window is, to leave overlapping ones out."""
        super().__init__()
        self.size, self.modalities, self.windows = size, modalities, windows
        for name in modalities:
            self.register_buffer(f"z_{name}", torch.zeros(size, dim))
        self.register_buffer("group", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("example", torch.zeros(size, dtype=torch.int64))
        if windows:
            self.register_buffer("clip", torch.full((size,), -1))  # no clip's id
            self.register_buffer("window_s", torch.zeros(size, 2, dtype=torch.float64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_add_windows)
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
        windows = None
        if self.windows:
            windows = Windows(self.clip[:filled].clone(), self.window_s[:filled].clone())
        group, example = self.group[:filled].clone(), self.example[:filled].clone()
        return Examples(points, group, example, windows)

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
        if self.windows:
            assert examples.windows is not None
            self.clip[slots] = examples.windows.clip[newest]
            self.window_s[slots] = examples.windows.times_s[newest]
        self.written += number
        self._written = self.count() + number


def _forget_count(bank: nn.Module, keys: object) -> None:
    """Read the count anew, from the buffer that a checkpoint has filled."""
    assert isinstance(bank, MemoryBank)
    bank._written = None


def _add_windows(bank: nn.Module, state: dict[str, Any], prefix: str, *unused: object) -> None:
    """Give the examples of checkpoints from before banks had windows those of no clip."""
    assert isinstance(bank, MemoryBank)
    if bank.windows and f"{prefix}group" in state and f"{prefix}clip" not in state:
        state[f"{prefix}clip"] = torch.full((bank.size,), -1)
        state[f"{prefix}window_s"] = torch.zeros(bank.size, 2, dtype=torch.float64)
