"""The whole training step around a ViT-B/14 with random weights, and batches of random numbers."""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from part import Part
from torch import Tensor

from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.platform.training.config import DataConfig, PretrainConfig, TrainConfig
from dynaflip.platform.training.step import train_step
from dynaflip.platform.training.train_state import TrainingState

IMAGES = 3  # of a sample: frame t, the next one, and a later one
STEPS, GRID, TEXT_DIM = 7, 20, 384
TOY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def image_px(part: Part) -> int:
    """Side of the images, 16 patches of 14 px each way or 2 of a toy."""
    return 28 if part.dry else 224


@contextlib.contextmanager
def dinov2_folder(part: Part) -> Iterator[str]:
    """A folder with the configuration of DINOv2-Base (ViT-B/14), or of a toy; no weights."""
    from transformers import Dinov2Config

    size: dict[str, Any] = TOY if part.dry else {}
    with tempfile.TemporaryDirectory() as folder:
        config = Dinov2Config(**size, image_size=image_px(part), patch_size=14)
        config.save_pretrained(folder)
        yield folder


def config_of(folder: str, px: int, batch_size: int, **train: Any) -> PretrainConfig:
    """Settings of a run with this backbone in bfloat16; ``train`` are further ones of it."""
    image = ImageConfig(name=folder, pretrained=False, image_px=px)
    return PretrainConfig(
        model=ModelConfig(image=image, flow=FlowConfig()),
        data=DataConfig(batch_size=batch_size),
        train=TrainConfig(precision="bfloat16", **train),
    )


def batch_of(size: int, px: int, device: str) -> dict[str, Tensor]:
    """Random numbers in the shapes of a batch, on the device."""
    flow = (size, STEPS, GRID, GRID)
    ids = torch.arange(size, device=device)
    images = {
        f"image_{name}": torch.randint(
            0, 256, (size, 3, px, px), dtype=torch.uint8, device=device
        ).to(memory_format=torch.channels_last)
        for name in ("t", "next", "far")
    }
    return {
        **images,
        "text_features": torch.randn(size, TEXT_DIM, device=device),
        "flow_origin_m": torch.randn(size, GRID, GRID, 3, device=device),
        "flow_displacement_m": 0.05 * torch.randn(*flow, 3, device=device),
        "flow_visible": torch.rand(flow, device=device) < 0.8,
        "median_depth_m": 1 + torch.rand(size, device=device),
        "window_start_s": torch.zeros(size, dtype=torch.float64, device=device),
        "window_end_s": torch.full((size,), 0.5, dtype=torch.float64, device=device),
        "far_valid": torch.ones(size, dtype=torch.bool, device=device),
        **dict.fromkeys(("group", "clip", "triplet", "task", "recording", "source"), ids),
    }


def step_of(state: TrainingState, data: dict[str, Tensor]) -> Callable[[], Any]:
    """A function that does one training step on the same batch again and again."""
    model, objective = state.parallel()
    train = state.config.train

    def step() -> dict[str, Tensor]:
        return train_step(
            model,
            objective,
            state.optimizer,
            state.schedule,
            data,
            micro_batch_size=train.micro_batch_size,
            clip_norm=state.config.optimizer.clip_norm,
            autocast=torch.bfloat16,
        )

    return step


def free() -> None:
    """Give back what the last model held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
