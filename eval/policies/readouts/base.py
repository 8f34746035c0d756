"""The contract of a read-out: a small trained module from an encoder's tokens to a vector.

It stands between the frozen encoder and the policy head, and is trained with the head.
Legend of shapes: N frames, B of them in a batch, S scales (feature maps), T tokens and C channels
of a scale, V values of all scales of a frame, W width of what a read-out gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dynaflip.eval.policies.norms import input_norm, set_token_statistics
from dynaflip.eval.policies.readouts.config import PooledConfig
from dynaflip.eval.policies.readouts.grid import TokenGrid
from dynaflip.eval.policies.readouts.token_store import TokenStore


class TokenPooling(Protocol):
    """A read-out that was built for an encoder's grids."""

    width: int  # W

    def __call__(self, tokens: list[Tensor]) -> Tensor:
        """S × (B, T, C), the coarsest scale first, standardised per channel → (B, W)."""
        ...

    # Reports show where it reads, of a module that has one of these two:
    # attention(tokens) → (B, heads, queries, T of all scales), which sums to 1 over tokens;
    # positions(tokens) → (B, P, 2): x and y in [-1, 1], as of TokenGrid.centres.


@dataclass(frozen=True)
class ReadOut:
    """A kind of read-out, as it is registered by name.

    An outsider's is one object of this class: named ``class:MODULE:NAME`` in the settings, or by
    an entry point of the group ``dynaflip.readout``.
    """

    settings: type[Any]
    """Dataclass of its settings; every field has a default and is a plain value. A field
    ``scales`` says how many of an encoder's feature maps it reads; without one it reads one."""

    build: Callable[[Sequence[TokenGrid], Any], nn.Module] | None
    """``build(grids, settings)`` gives a module with random weights, a :class:`TokenPooling`; None
    where the encoder's own embedding is read."""


POOLED_READOUT = ReadOut(PooledConfig, None)


class Reader(nn.Module):
    """A read-out behind the norm of the tokens' channels: (B, V) → (B, W).

    Attributes:
        grids: of the scales that it reads.
        width: W.
    """

    def __init__(self, grids: Sequence[TokenGrid], norm: str, readout: nn.Module) -> None:
        """``norm`` is one of :data:`dynaflip.eval.policies.config.INPUT_NORMS`."""
        super().__init__()
        self.grids = tuple(grids)
        self.norms = nn.ModuleList(input_norm(norm, grid.channels) for grid in grids)
        self.readout = readout

    @property
    def width(self) -> int:
        """W."""
        width = self.readout.width
        assert isinstance(width, int), "a read-out states its width"
        return width

    def forward(self, flat: Tensor) -> Tensor:
        """All scales' values (B, V), as :func:`~.grid.flatten` gives them → (B, W)."""
        return self.readout(self.tokens(flat))

    def tokens(self, flat: Tensor) -> list[Tensor]:
        """The same values as the read-out is given them: S × (B, T, C), standardised."""
        scales = flat.split([grid.values for grid in self.grids], 1)
        tokens = []
        for values, grid, norm in zip(scales, self.grids, self.norms, strict=True):
            # A channel has one mean and std for all places, so that place is told by it.
            of_place = norm(values.reshape(-1, grid.channels))
            tokens.append(of_place.view(len(flat), grid.places, grid.channels))
        return tokens

    def set_statistics(self, store: TokenStore) -> None:
        """Give norms that do not gather their statistics during the fit those of all frames."""
        start = 0
        for grid, norm in zip(self.grids, self.norms, strict=True):
            stop = start + grid.values
            set_token_statistics(norm, partial(store.columns, start, stop), grid.channels)
            start = stop


def new_reader(
    readout: ReadOut, settings: Any, grids: Sequence[TokenGrid], *, norm: str, seed: int
) -> Reader:
    """A read-out with random weights; equal seeds give equal ones."""
    assert readout.build is not None, "pooled features need none"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Reader(grids, norm, readout.build(grids, settings))


_GRIDS = "grids"  # beside the weights in a saved state


def reader_state(reader: Reader) -> dict[str, Tensor]:
    """All that :func:`load_reader` makes it again from."""
    return {_GRIDS: torch.tensor(reader.grids)} | reader.state_dict()


def load_reader(
    readout: ReadOut, settings: Any, state: Mapping[str, Tensor], *, norm: str
) -> Reader:
    """A fitted read-out from its state."""
    grids = [TokenGrid(*map(int, row)) for row in state[_GRIDS]]
    reader = new_reader(readout, settings, grids, norm=norm, seed=0)
    reader.load_state_dict({name: value for name, value in state.items() if name != _GRIDS})
    return reader.eval()
