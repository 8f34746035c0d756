"""Every way to give images gives the same embedding; wrong ways give one clear line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynaflip.encoders.config import ImageConfig
from dynaflip.encoders.image import ImageEncoder, build_image_encoder
from dynaflip.errors import UserError


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return build_image_encoder(ImageConfig(image_px=64)).eval()


def test_layouts_and_types_agree(encoder: ImageEncoder) -> None:
    last = torch.randint(0, 256, (2, 48, 80, 3), dtype=torch.uint8)
    first = last.permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = encoder(last)
        assert expected.shape == (2, encoder.dim)
        for same in (first, last.float() / 255, first.double() / 255, last.numpy()):
            torch.testing.assert_close(encoder(same), expected, atol=1e-4, rtol=1e-4)


def test_tokens_are_spatial_and_average_to_the_embedding(encoder: ImageEncoder) -> None:
    images = torch.rand(2, 64, 64, 3)
    with torch.no_grad():
        tokens = encoder.tokens(images)
        assert tokens.shape == (2, 4, encoder.token_dim)
        torch.testing.assert_close(tokens.mean(1), encoder(images))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(64, 64, 3), r"not \(64, 64, 3\); add a batch axis"),
        (torch.zeros(2, 64, 64, 4), r"not \(2, 64, 64, 4\)"),
        (torch.zeros(2, 1, 64, 64), r"not \(2, 1, 64, 64\)"),
        (torch.zeros(0, 64, 64, 3), r"not \(0, 64, 64, 3\)"),
        (torch.zeros(2, 64, 64, 3, dtype=torch.int64), "not torch.int64"),
        (np.full((1, 64, 64, 3), 255.0), r"not in \[255, 255\]"),
        (torch.full((1, 64, 64, 3), 200.0), r"\[200, 200\]; give uint8, or divide by 255"),
        ((torch.rand(1, 64, 64, 3) - 0.45) / 0.225, "look normalised; give the images before"),
        (torch.rand(1, 64, 64, 3) * 2 - 1, "normalising happens inside"),
        (torch.full((1, 64, 64, 3), torch.nan), "nan"),
        ("a.png", "not str"),
    ],
)
def test_wrong_images_are_named(encoder: ImageEncoder, images: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        encoder(images)
