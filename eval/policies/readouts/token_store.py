"""Tokens of many frames on disk: half precision, mapped, so that memory holds a batch of them."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dynaflip.errors import UserError
from dynaflip.eval.policies.readouts.grid import TokenGrid

_CHUNK = 64  # frames that are in memory at a time where all are gone through


class TokenStore:
    """Rows (N, V) in a nameless temporary file, which is gone with this object or its process.

    Args:
        frames: N.
        grids: of the tokens of each scale of a frame.

    Raises:
        UserError: the temporary folder has no room for them.
    """

    def __init__(self, frames: int, grids: Sequence[TokenGrid]) -> None:
        self.grids = tuple(grids)
        self._sizes = [grid.values for grid in grids]
        self._file = tempfile.TemporaryFile(prefix="dynaflip-tokens-")  # noqa: SIM115
        need = 2 * frames * sum(self._sizes)
        try:
            # Reserved now: a mapped page for which there is no room kills the process later.
            os.posix_fallocate(self._file.fileno(), 0, max(need, 1))
        except OSError as error:
            self._file.close()
            raise UserError(
                f"readout: the tokens of {frames} frames need {need / 1e9:.2f} GB in "
                f"{tempfile.gettempdir()} ({error.strerror}); set TMPDIR to a larger folder, or "
                "fewer scales or demonstrations"
            ) from None
        self._values = np.memmap(self._file, np.float16, "r+", shape=(frames, sum(self._sizes)))
        self._scale = np.ones(sum(self._sizes), np.float32)
        self._written = 0
        self._chosen = np.arange(frames)

    def __len__(self) -> int:
        return len(self._chosen)

    def some(self, rows: np.ndarray) -> TokenStore:
        """Chosen frames (M,) int as a store that shares the file, which must be filled."""
        part = copy.copy(self)
        part._chosen = self._chosen[rows]
        return part

    def append(self, rows: np.ndarray) -> None:
        """Add rows (B, V) float32.

        The first ones decide the unit of each scale, a power of two, so that half precision has
        its 11 bits for encoders of large and of tiny values.

        Raises:
            UserError: a value is more than 65,504 times as large as they usually are.
        """
        if self._written == 0:
            parts = np.split(rows, np.cumsum(self._sizes)[:-1], axis=1)
            units = [2.0 ** np.round(np.log2(max(_rms(part), 1e-30))) for part in parts]
            self._scale = np.repeat(np.array(units, np.float32), self._sizes)
        with np.errstate(over="ignore"):
            half = (rows / self._scale).astype(np.float16)
        if not np.isfinite(half).all():
            raise UserError("encoder: some tokens are 65,504 times as large as others")
        self._values[self._written : self._written + len(rows)] = half
        self._written += len(rows)

    def rows(self, rows: Tensor) -> Tensor:
        """Chosen frames (B,) int → (B, V) float32."""
        chosen = self._chosen[rows.numpy()]
        return torch.from_numpy(self._values[chosen].astype(np.float32) * self._scale)

    def columns(self, start: int, stop: int) -> Iterator[Tensor]:
        """Some values of all frames, (B, stop − start) float32 at a time."""
        for first in range(0, len(self), _CHUNK):
            chosen = self._chosen[first : first + _CHUNK]
            part = self._values[chosen, start:stop].astype(np.float32)
            yield torch.from_numpy(part * self._scale[start:stop])


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))
