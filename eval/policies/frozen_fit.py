"""Fitting a head, and the read-out that learns with it, on what a frozen encoder gives.

Legend of shapes: N frames, B of them in a batch, V values of all tokens of a frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynaflip.eval.policies.recipe import READOUT_PREFIX, PolicyRecipe, token_norm

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dynaflip.eval.policies.base import Demonstrations
    from dynaflip.eval.policies.readouts.grid import TokenGrid
    from dynaflip.eval.policies.readouts.token_store import TokenStore


def fit_frozen(
    recipe: PolicyRecipe, demonstrations: Demonstrations, seed: int
) -> dict[str, Tensor]:
    """Tensors of a fitted head, and of the read-out that learnt with it.

    Args:
        recipe: of the policy.
        demonstrations: with features, or with the tokens that the read-out reads.
        seed: of initial weights and batches; equal arguments give equal weights.
    """
    from dynaflip.eval.policies.readouts.base import new_reader, reader_state
    from dynaflip.eval.policies.registry import (
        head_settings,
        policy_head,
        read_out,
        readout_settings,
    )

    settings, reader = head_settings(recipe.head, recipe.head_settings), None
    if demonstrations.tokens is not None:
        reader = new_reader(
            read_out(recipe.readout),
            readout_settings(recipe.readout, recipe.readout_settings),
            demonstrations.tokens.grids,
            norm=token_norm(settings),
            seed=seed,
        )
    head = policy_head(recipe.head).fit(
        replace(demonstrations, reader=reader),
        settings,
        use_proprioception=recipe.use_proprioception,
        seed=seed,
    )
    read = {} if reader is None else reader_state(reader)
    return head.state_dict() | {READOUT_PREFIX + name: tensor for name, tensor in read.items()}


def scales_of(readout: str, settings: Mapping[str, Any]) -> int | None:
    """Number of feature maps that a read-out reads; None where it reads the encoder's embedding.

    Args:
        readout: its name.
        settings: its settings as plain values.
    """
    from dynaflip.eval.policies.registry import read_out, readout_settings

    if read_out(readout).build is None:
        return None
    return getattr(readout_settings(readout, settings), "scales", 1)


def store_tokens(
    batches: Iterable[tuple[np.ndarray, tuple[TokenGrid, ...]]], number: int
) -> TokenStore:
    """Tokens of all frames, on disk.

    Args:
        batches: (B, V) float32 with their grids, the same for all; at least one.
        number: N, of all of them together.
    """
    from dynaflip.eval.policies.readouts.token_store import TokenStore

    store = None
    for tokens, grids in batches:
        if store is None:
            store = TokenStore(number, grids)
        store.append(tokens)
    assert store is not None, "there are frames"
    return store
