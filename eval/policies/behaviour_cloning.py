"""Behaviour cloning with a small network: the policy of CortexBench and R3M.

Batch norm on the input, three hidden layers of 256 and squared error (Majumdar et al. 2023,
"Where are we in the search for an artificial visual cortex for embodied intelligence?",
arXiv 2303.18240). Frozen features are computed once and never in a minibatch. The policy of
the last step is used: choosing the best of several checkpoints by its success inflates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from dynaflip.eval.policies.base import Demonstrations, PolicyHead, seeded
from dynaflip.eval.policies.config import BehaviourCloningConfig
from dynaflip.eval.policies.inputs import HeadInputs
from dynaflip.eval.policies.norms import input_norm


class BehaviourCloning(nn.Module):
    """(B, I) → the next T actions; T = 1 is CortexBench's policy."""

    def __init__(self, input_dim: int, action_dim: int, config: BehaviourCloningConfig) -> None:
        super().__init__()
        widths = [input_dim] + [config.hidden_dim] * config.layers
        self.norm = input_norm(config.input_norm, input_dim)
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.chunk, self.action_dim = config.chunk, action_dim
        self.out = nn.Linear(widths[-1], config.chunk * action_dim)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, I) → (B, T, A), not bounded."""
        x = self.norm(inputs)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.out(x).unflatten(1, (self.chunk, self.action_dim))

    @torch.no_grad()
    def plan(self, inputs: Tensor) -> Tensor:
        """(B, I) → (B, T, A) in [-1, 1]."""
        return self(inputs).clamp(-1, 1)


def fit_behaviour_cloning(
    demonstrations: Demonstrations,
    config: BehaviourCloningConfig,
    *,
    use_proprioception: bool,
    seed: int,
) -> BehaviourCloning:
    """Fit to demonstrations of a task (or of several, with their words as context).

    Their read-out, where they have one, learns with it, in place. The learning rate falls as a
    cosine; equal arguments give equal weights on one thread.
    """
    inputs = HeadInputs(demonstrations, use_proprioception)
    actions = torch.from_numpy(demonstrations.chunks(config.chunk))
    generator = seeded(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BehaviourCloning(inputs.width, demonstrations.action_dim, config)
    inputs.set_statistics(network.norm)
    trained = nn.ModuleList([network, *inputs.trained])
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    trained.train()
    for _ in range(config.steps):
        rows = torch.randint(len(inputs), (config.batch_size,), generator=generator)
        loss = nn.functional.mse_loss(network(inputs.rows(rows)), actions[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    trained.eval()
    return network


def load_behaviour_cloning(
    weights: Mapping[str, Tensor], config: BehaviourCloningConfig
) -> BehaviourCloning:
    """A fitted head from its state dict."""
    first = weights["hidden.0.weight"] if config.layers else weights["out.weight"]
    action_dim = len(weights["out.bias"]) // config.chunk
    network = BehaviourCloning(first.shape[1], action_dim, config)
    network.load_state_dict(dict(weights))
    return network.eval()


HEAD = PolicyHead(
    BehaviourCloningConfig, fit_behaviour_cloning, load_behaviour_cloning, trains_readout=True
)
