"""Feature maps of several scales, the coarsest of which are the spatial tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from outside_folders import outside_folder
from torch import Tensor, nn

from dynaflip.encoders.backbones.base import Backbone, finer_maps
from dynaflip.encoders.config import ImageConfig
from dynaflip.encoders.image import ImageEncoder, build_image_encoder, encoder_around
from dynaflip.encoders.outside_models import open_outside_model
from dynaflip.errors import UserError


def images(px: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 255, (2, px, px, 3), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def shapes(encoder: ImageEncoder, px: int, scales: int | None = None) -> list[tuple[int, ...]]:
    maps = encoder.feature_maps(images(px), scales)
    assert torch.equal(maps[0], encoder.token_map(images(px)))
    return [tuple(one.shape[1:]) for one in maps]


@pytest.mark.parametrize("frozen_blocks", [0, 5])
def test_efficientnet_has_three_scales(frozen_blocks: int) -> None:
    config = ImageConfig(image_px=112, pretrained=False, frozen_blocks=frozen_blocks)
    encoder = build_image_encoder(config).eval()
    assert shapes(encoder, 112) == [(1280, 4, 4), (112, 7, 7), (40, 14, 14)]
    assert shapes(encoder, 112, scales=2) == [(1280, 4, 4), (112, 7, 7)]
    # The finer maps are the last blocks' outputs of their size.
    pixels, network = encoder.preprocess(images(112)), encoder.backbone.network
    with torch.no_grad():
        x = network.stem(pixels)
        for block in network.blocks[:11]:
            x = block(x)
        assert torch.equal(encoder.feature_maps(images(112))[1], x)


@pytest.mark.parametrize(
    ("kind", "px", "expected"),
    [
        ("dinov2", 56, [(16, 4, 4)]),
        ("dinov3_convnext", 64, [(16, 2, 2), (16, 4, 4), (8, 8, 8)]),
    ],
)
def test_a_transformers_model_has_those_of_its_stages(
    kind: str, px: int, expected: list[tuple[int, ...]], tmp_path: Path
) -> None:
    encoder = open_outside_model(str(outside_folder(kind, tmp_path / kind)), image_px=px)
    assert shapes(encoder, px) == expected


def test_swin_has_those_of_its_stages(tmp_path: Path) -> None:
    import transformers as hf

    sizes = {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2], "window_size": 3}
    hf.SwinModel(hf.SwinConfig(image_size=48, **sizes)).save_pretrained(tmp_path)
    encoder = open_outside_model(str(tmp_path), image_px=48)
    assert shapes(encoder, 48) == [(32, 3, 3), (16, 6, 6), (8, 12, 12)]


def test_a_stage_is_represented_by_its_last_map_up_to_four_times_as_fine() -> None:
    sizes = [16, 8, 8, 4, 2]
    stages = [torch.full((1, 1, size, size), float(i)) for i, size in enumerate(sizes)]
    finer = finer_maps(stages, torch.zeros(1, 1, 2, 2))
    assert [int(one[0, 0, 0, 0]) for one in finer] == [3, 2]


class Rows(Backbone):
    """Three tokens of a square image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(3, 5)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.network(pixels[:, :, :3, 0].transpose(1, 2))
        return tokens.mean(1), tokens


class Column(Rows):
    def token_grid(self, count: int) -> tuple[int, int] | None:
        return count, 1


def test_a_backbone_of_ones_own_has_its_tokens_and_needs_a_grid() -> None:
    config = ImageConfig(name="own", image_px=32)
    settings = {"image_px": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert shapes(encoder_around(Column(), config, settings), 32) == [(5, 3, 1)]
    without = encoder_around(Rows(), config, settings)
    with pytest.raises(UserError, match="backbone Rows: its 3 tokens are no square grid"):
        without.feature_maps(images(32))
