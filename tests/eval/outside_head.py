"""A policy head as somebody outside would write it: least squares, without a norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynaflip.eval.policies.base import Demonstrations, PolicyHead


@dataclass(frozen=True)
class LinearSettings:
    """Ridge regression."""

    penalty: float = 1e-3

    def __post_init__(self) -> None:
        if self.penalty < 0:
            raise ValueError(f"penalty must not be negative, not {self.penalty}")


class Linear(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def plan(self, inputs: Tensor) -> Tensor:
        return (inputs @ self.weight).clamp(-1, 1)[:, None]


def fit(
    demonstrations: Demonstrations,
    settings: LinearSettings,
    *,
    use_proprioception: bool,
    seed: int,
) -> Linear:
    inputs = torch.from_numpy(demonstrations.inputs(use_proprioception))
    gram = inputs.T @ inputs + settings.penalty * torch.eye(inputs.shape[1])
    return Linear(torch.linalg.solve(gram, inputs.T @ torch.from_numpy(demonstrations.actions)))


def load(weights: Mapping[str, Tensor], settings: LinearSettings) -> Linear:
    return Linear(weights["weight"])


HEAD = PolicyHead(LinearSettings, fit, load)
