"""AdamW's groups and the schedule of the learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from dynaflip.encoders.model import DynaFLIP
from dynaflip.platform.training.config import OptimizerConfig


def build_optimizer(
    model: DynaFLIP, objective: nn.Module, config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW in four groups: backbone or heads, with or without weight decay.

    Norms, biases, learned tokens and a learned temperature (anything below two dimensions,
    and tokens by their leading dimensions of 1) are not decayed; the flow encoder's embeddings
    of position are.
    """
    backbone = {id(parameter) for parameter in model.image.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in (*model.parameters(), *objective.parameters()):
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and parameter.shape[0] > 1
            groups.setdefault((id(parameter) in backbone, decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": config.lr * (config.backbone_lr_scale if in_backbone else 1.0),
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (in_backbone, decays), parameters in sorted(groups.items(), key=lambda g: g[0])
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,  # one pass over memory; a fifth of a step on a CPU otherwise
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine down to ``final_lr_share`` at the last step."""
    warmup = round(config.warmup_share * total_steps)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, total_steps - 1 - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return config.final_lr_share + (1 - config.final_lr_share) * cosine

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)
