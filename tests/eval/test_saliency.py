"""Saliency falls where the embedding comes from, and shares follow the masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dynaflip.encoders.config import ImageConfig
from dynaflip.encoders.image import build_image_encoder
from dynaflip.eval.metrics.saliency import GRID, overlay, saliency, saliency_shares


class Corner(nn.Module):
    """Embeds the upper left quarter of an image and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images.permute(0, 3, 1, 2).float() / 255

    def features(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        side = pixels.shape[2] // 2
        tokens = self.scale * pixels[:, :, :side, :side].flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens


def test_saliency_is_where_the_embedding_comes_from() -> None:
    images = np.random.default_rng(0).integers(1, 255, (3, 56, 56, 3), dtype=np.uint8)
    found = saliency(Corner().eval(), images)
    assert found.shape == (3, GRID, GRID)
    assert found.sum((1, 2)) == pytest.approx(1, abs=1e-5)
    half = GRID // 2
    assert found[:, :half, :half].sum((1, 2)) == pytest.approx(1, abs=1e-5)
    robot, objects = np.zeros((2, 3, 56, 56), bool)
    robot[:, :28, :28] = True
    objects[:, 28:, :14] = True
    shares = saliency_shares(found, robot, objects)
    assert shares.robot == pytest.approx(1, abs=1e-5)
    assert shares.object == pytest.approx(0, abs=1e-5)
    assert (shares.robot_area, shares.object_area) == (0.25, 0.125)
    drawn = overlay(images[0], found[0])
    assert drawn.shape == (56, 56, 3)
    assert drawn[:28, :28].mean() > drawn[28:, 28:].mean()


def test_blocks_that_pretraining_froze_do_not_hide_the_pixels() -> None:
    encoder = build_image_encoder(ImageConfig(image_px=32, frozen_blocks=3)).eval()
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8)
    assert saliency(encoder, images).sum((1, 2)) == pytest.approx(1, abs=1e-5)
