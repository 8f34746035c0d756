"""What a head reads in a fit, batch by batch: fixed features, or a read-out that learns with it.

Legend of shapes: N frames, B of them in a batch, I input width, W width of a read-out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynaflip.eval.policies.base import Demonstrations
from dynaflip.eval.policies.norms import set_statistics


class HeadInputs:
    """Rows of a head's inputs: features or what the read-out gives, proprioception, context.

    Attributes:
        width: I.
        trained: the read-out, or nothing where features are fixed; the head's fit trains and
            averages it with the head.
    """

    def __init__(self, demonstrations: Demonstrations, use_proprioception: bool) -> None:
        self._fixed = torch.from_numpy(demonstrations.inputs(use_proprioception))
        self._feature_dim = demonstrations.features.shape[1]
        self._reader, self._tokens = demonstrations.reader, demonstrations.tokens
        self.trained = [] if self._reader is None else [self._reader]
        self._trained_dim = 0 if self._reader is None else self._reader.width
        self.width = self._trained_dim + self._fixed.shape[1]

    def __len__(self) -> int:
        return len(self._fixed)

    def rows(self, rows: Tensor) -> Tensor:
        """Chosen frames (B,) int → (B, I), with gradient to the read-out and no further."""
        if self._reader is None:
            return self._fixed[rows]
        assert self._tokens is not None, "a read-out reads tokens"
        return torch.cat([self._reader(self._tokens.rows(rows)), self._fixed[rows]], 1)

    def set_statistics(self, norm: nn.Module) -> None:
        """Give the head's norm, and the read-out's, the statistics of all frames."""
        set_statistics(norm, self._fixed, self._feature_dim, self._trained_dim)
        if self._reader is not None:
            assert self._tokens is not None, "a read-out reads tokens"
            self._reader.set_statistics(self._tokens)
