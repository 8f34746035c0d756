"""The one place that rebuilds an initialisation: a trained model before its first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynaflip.encoders.config import ModelConfig
    from dynaflip.encoders.model import DynaFLIP


def initialisation_of(trained: DynaFLIP, config: ModelConfig | None = None) -> DynaFLIP:
    """The model that a pretraining began with, rebuilt from its settings and seed; eval mode.

    The run's seed gives the initial weights of the towers, and of the image encoder where that
    does not start from pretrained ones.

    Args:
        trained: as loaded from an encoder's folder.
        config: another architecture to build from the same seed, by default ``trained``'s own.
    """
    import torch

    from dynaflip.encoders.model import DynaFLIP
    from dynaflip.platform.training.checkpoint_format import seed_step
    from dynaflip.platform.training.config import PretrainConfig

    saved = trained.image.info.get("config", {})
    seed = int(saved.get("train", {}).get("seed", PretrainConfig().train.seed))
    with torch.random.fork_rng(devices=[]):
        seed_step(seed, 0, 0)  # as the training loop does before it builds the model
        return DynaFLIP(trained.config if config is None else config).eval()
