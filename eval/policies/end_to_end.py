"""Behaviour cloning that trains the encoder too: low-rank additions, or all of it.

The frozen encoder is the headline (its features are computed once); these are what a user with
a GPU may do downstream. Training the ``random`` baseline as a whole is training from scratch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynaflip.encoders import finetune
from dynaflip.eval.policies.base import seeded
from dynaflip.eval.policies.behaviour_cloning import BehaviourCloning
from dynaflip.eval.policies.config import BehaviourCloningConfig, EndToEndConfig


def fit_end_to_end(
    encoder: Any,
    images: np.ndarray,
    proprioception: np.ndarray | None,
    chunks: np.ndarray,
    head_config: BehaviourCloningConfig,
    config: EndToEndConfig,
    *,
    mode: str,
    seed: int,
) -> tuple[Any, BehaviourCloning]:
    """Fit encoder and head together; the encoder is changed in place.

    Args:
        encoder: :class:`dynaflip.encoders.image.ImageEncoder`.
        images: (N, H, W, 3) uint8.
        proprioception: (N, P) float32, or None where it is not given.
        chunks: (N, T, A) float32, each frame's next actions, of the head's ``chunk``.
        head_config: the head's width and depth.
        config: of the training.
        mode: ``lora`` or ``full``, of :func:`dynaflip.encoders.finetune.prepare`.
        seed: of weights and order.

    Returns:
        The encoder, an ordinary one again, and the head, both in evaluation mode.
    """
    generator = seeded(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trained = finetune.prepare(encoder, mode, rank=config.lora_rank)
        width = encoder.dim + (0 if proprioception is None else proprioception.shape[1])
        head = BehaviourCloning(width, chunks.shape[2], head_config)
    optimizer = torch.optim.AdamW(
        [
            {"params": trained, "lr": config.encoder_lr},
            {"params": head.parameters(), "lr": head_config.lr},
        ],
        weight_decay=head_config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    encoder.train()
    head.train()
    for _ in range(config.steps):
        rows = torch.randint(len(images), (config.batch_size,), generator=generator).numpy()
        inputs = _inputs(encoder, images, proprioception, rows)
        loss = nn.functional.mse_loss(head(inputs), torch.from_numpy(chunks[rows]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    finetune.fold(encoder).eval()
    _retake_statistics(head, encoder, images, proprioception, config.batch_size, generator)
    return encoder, head.eval()


def _inputs(
    encoder: Any, images: np.ndarray, proprioception: np.ndarray | None, rows: np.ndarray
) -> Tensor:
    """(B, I) of chosen frames, with gradient."""
    features = encoder.features(encoder.preprocess(torch.from_numpy(images[rows])))[0]
    if proprioception is None:
        return features
    return torch.cat([features, torch.from_numpy(proprioception[rows])], 1)


@torch.no_grad()
def _retake_statistics(
    head: BehaviourCloning,
    encoder: Any,
    images: np.ndarray,
    proprioception: np.ndarray | None,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Take the head's BatchNorm statistics anew: its running ones are of an encoder that moved.

    Of random frames a batch: of neighbouring ones it would miss what differs between episodes.
    """
    assert isinstance(head.norm, nn.BatchNorm1d)
    head.norm.reset_running_stats()
    head.norm.momentum = None  # a plain mean over what follows
    head.train()
    chosen = torch.randperm(len(images), generator=generator)[:512].numpy()
    for start in range(0, len(chosen), batch_size):
        rows = chosen[start : start + batch_size]
        if len(rows) > 1:
            head.norm(_inputs(encoder, images, proprioception, rows))
