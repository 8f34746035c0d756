"""A policy's recipe and tensors, and the policy that they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dynaflip.eval.policies.config import BATCH

if TYPE_CHECKING:
    from dynaflip.eval.policies.encoder_policy import EncoderPolicy

# They mark tensors of an adapted encoder and of a read-out beside the head's.
ENCODER_PREFIX, READOUT_PREFIX = "encoder.", "readout."


@dataclass(frozen=True)
class PolicyRecipe:
    """Recipe from features to actions: the head, and the read-out before it."""

    head: str
    head_settings: dict[str, Any]
    readout: str
    readout_settings: dict[str, Any]
    use_proprioception: bool


class PolicyTensors(NamedTuple):
    """A policy's tensors by their owner; an empty part has none."""

    encoder: dict[str, Any]  # where it was trained with the policy
    readout: dict[str, Any]
    head: dict[str, Any]


def split_tensors(tensors: Mapping[str, Any]) -> PolicyTensors:
    """The tensors of a fitted policy by their owner, without prefixes."""
    parts = PolicyTensors({}, {}, {})
    prefixes = (ENCODER_PREFIX, READOUT_PREFIX)
    for name, tensor in tensors.items():
        owner = next((i for i, prefix in enumerate(prefixes) if name.startswith(prefix)), 2)
        parts[owner][name.removeprefix((*prefixes, "")[owner])] = tensor
    return parts


def token_norm(head_settings: Any) -> str:
    """Norm of the tokens' channels: that of the head's inputs."""
    return getattr(head_settings, "input_norm", BATCH)


def assemble(
    recipe: PolicyRecipe,
    tensors: PolicyTensors,
    encoder: Any,
    context: Any = None,
    *,
    cameras: int = 1,
) -> EncoderPolicy:
    """A policy that acts.

    Args:
        recipe: of the fit.
        tensors: of read-out and head.
        encoder: that the policy was fitted on, or that was trained with it.
        context: (C,) float32 of the task's words, where the policy serves several tasks.
        cameras: how many it sees.
    """
    from dynaflip.eval.policies.encoder_policy import EncoderPolicy
    from dynaflip.eval.policies.readouts.base import load_reader
    from dynaflip.eval.policies.registry import (
        head_settings,
        policy_head,
        read_out,
        readout_settings,
    )

    settings, reader = head_settings(recipe.head, recipe.head_settings), None
    if tensors.readout:
        reader = load_reader(
            read_out(recipe.readout),
            readout_settings(recipe.readout, recipe.readout_settings),
            tensors.readout,
            norm=token_norm(settings),
        )
    head = policy_head(recipe.head).load(tensors.head, settings)
    return EncoderPolicy(
        encoder,
        head,
        use_proprioception=recipe.use_proprioception,
        context=context,
        reader=reader,
        cameras=cameras,
    )
