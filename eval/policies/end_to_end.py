"""Behaviour cloning that trains the encoder too: low-rank additions, or all of it.

The frozen encoder is the headline (its features are computed once); these are what a user with
a GPU may do downstream. Training the ``random`` baseline as a whole is training from scratch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dynaflip.encoders import finetune
from dynaflip.eval.policies.base import seeded
from dynaflip.eval.policies.behaviour_cloning import BehaviourCloning
from dynaflip.eval.policies.config import (
    BFLOAT16,
    FLOAT32,
    BehaviourCloningConfig,
    EndToEndConfig,
)


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
    device: str = "cpu",
) -> tuple[Any, BehaviourCloning]:
    """Fit encoder and head together; the encoder is changed in place.

    The first weights and the order of frames are the same on every device; on a CPU equal
    arguments give equal weights.

    Args:
        encoder: :class:`dynaflip.encoders.image.ImageEncoder`, on the CPU.
        images: (N, H, W, 3) uint8.
        proprioception: (N, P) float32, or None where it is not given.
        chunks: (N, T, A) float32, each frame's next actions, of the head's ``chunk``.
        head_config: the head's width and depth.
        config: of the training.
        mode: ``lora`` or ``full``, of :func:`dynaflip.encoders.finetune.prepare`.
        seed: of weights, order and dropout.
        device: of the training. All frames stay in the CPU's memory, and batches are sent to it.

    Returns:
        The encoder, an ordinary one again, and the head, both in evaluation mode on the CPU.
    """
    where = torch.device(device)
    frames = _Frames(images, proprioception, chunks, where, config.batch_size, seed)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        finetune.prepare(encoder, mode, rank=config.lora_rank)
        width = encoder.dim + (0 if proprioception is None else proprioception.shape[1])
        head = BehaviourCloning(width, chunks.shape[2], head_config)
        encoder.to(where).train()
        head.to(where).train()
        # After the move: it may put other objects in the parameters' place.
        trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": trained, "lr": config.encoder_lr},
                {"params": head.parameters(), "lr": head_config.lr},
            ],
            weight_decay=head_config.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
        for _ in range(config.steps):
            batch = frames.next_batch()
            loss = nn.functional.mse_loss(head(_inputs(encoder, batch, config)), batch.chunks)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    finetune.fold(encoder).eval()
    _retake_statistics(head, encoder, frames, config)
    return encoder.cpu(), head.eval().cpu()


class _Batch(NamedTuple):
    """B frames on the device that trains."""

    images: Tensor  # (B, H, W, 3) uint8
    proprioception: Tensor | None  # (B, P)
    chunks: Tensor  # (B, T, A)


class _Frames:
    """Frames in the CPU's memory, of which batches are drawn and sent to a device.

    Args:
        images: (N, H, W, 3) uint8.
        proprioception: (N, P) float32, or None.
        chunks: (N, T, A) float32.
        device: of the batches.
        batch_size: B.
        seed: of the order.
    """

    def __init__(
        self,
        images: np.ndarray,
        proprioception: np.ndarray | None,
        chunks: np.ndarray,
        device: torch.device,
        batch_size: int,
        seed: int,
    ) -> None:
        self._columns = images, proprioception, chunks
        self._device, self._batch_size, self._generator = device, batch_size, seeded(seed)

    def next_batch(self) -> _Batch:
        """Frames drawn with replacement."""
        number = len(self._columns[0])
        return self._send(torch.randint(number, (self._batch_size,), generator=self._generator))

    def once(self, most: int) -> Iterator[_Batch]:
        """At most so many random frames, each once, in batches of two or more."""
        number = len(self._columns[0])
        chosen = torch.randperm(number, generator=self._generator)[:most]
        for rows in chosen.split(self._batch_size):
            if len(rows) > 1:
                yield self._send(rows)

    def _send(self, rows: Tensor) -> _Batch:
        images, proprioception, chunks = self._columns
        chosen = rows.numpy()
        return _Batch(
            self._on_device(images[chosen]),
            None if proprioception is None else self._on_device(proprioception[chosen]),
            self._on_device(chunks[chosen]),
        )

    def _on_device(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        if self._device.type != "cuda":
            return tensor
        # From pinned memory, and not waited for: it is copied while the GPU still computes.
        return tensor.pin_memory().to(self._device, non_blocking=True)


def _inputs(encoder: Any, batch: _Batch, config: EndToEndConfig) -> Tensor:
    """(B, I) float32 of a batch, with gradient."""
    pixels = encoder.preprocess(batch.images)
    half = config.precision == BFLOAT16
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=half):
        features = encoder.features(pixels)[0]
    features = features.float()
    if batch.proprioception is None:
        return features
    return torch.cat([features, batch.proprioception], 1)


@torch.no_grad()
def _retake_statistics(
    head: BehaviourCloning, encoder: Any, frames: _Frames, config: EndToEndConfig
) -> None:
    """Take the head's BatchNorm statistics anew: its running ones are of an encoder that moved.

    Of random frames a batch: of neighbouring ones it would miss what differs between episodes.
    In float32, as the policy acts.
    """
    assert isinstance(head.norm, nn.BatchNorm1d)
    head.norm.reset_running_stats()
    head.norm.momentum = None  # a plain mean over what follows
    head.train()
    acting = replace(config, precision=FLOAT32)
    for batch in frames.once(512):
        head.norm(_inputs(encoder, batch, acting))
