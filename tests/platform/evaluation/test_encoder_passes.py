"""An encoder in passes of one size: the same features in any company, in less memory, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoder_config import EncoderActorConfig
from dynaflip.platform.evaluation.encoder_passes import (
    FixedPasses,
    check_agreement,
    relative_error,
)
from dynaflip.platform.evaluation.encoder_service import EncoderService, device_of


class Network(nn.Module):
    """A convolution that runs out of memory above a number of images."""

    def __init__(self, fits: int = 1000) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 8, 3)
        self.fits = fits
        self.seen: list[int] = []

    def feature_maps(self, images: torch.Tensor, scales: int) -> list[torch.Tensor]:
        self.seen.append(len(images))
        if len(images) > self.fits:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        pixels = images.permute(0, 3, 1, 2).to(self.layer.weight.dtype) / 255
        return [self.layer(pixels)][:scales]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.feature_maps(images, 1)[0].flatten(1)


IMAGES = np.random.default_rng(0).integers(0, 256, (11, 12, 12, 3), np.uint8)


def test_features_do_not_depend_on_the_company_to_the_last_bit() -> None:
    network = Network()
    passes = FixedPasses(network, "cpu", "float32", 4)
    (together,) = passes.see(IMAGES, None)
    alone = np.concatenate([passes.see(image[None], None)[0] for image in IMAGES])
    assert together.shape == (11, 800)
    np.testing.assert_array_equal(together, alone)
    assert {*network.seen} == {4}
    (maps,) = passes.see(IMAGES[:3], 1)
    np.testing.assert_array_equal(maps.reshape(3, -1), together[:3])


def test_a_pass_that_does_not_fit_is_halved_for_good() -> None:
    network = Network(fits=3)
    passes = FixedPasses(network, "cpu", "float32", 8)
    (features,) = passes.see(IMAGES, None)
    (expected,) = FixedPasses(Network(), "cpu", "float32", 2).see(IMAGES, None)
    np.testing.assert_array_equal(features, expected)
    assert network.seen == [8, 4, 2, 2, 2, 2, 2, 2]
    assert passes.batch == 2
    with pytest.raises(UserError, match=r"one image of shape \(12, 12, 3\) does not fit"):
        FixedPasses(Network(fits=0), "cpu", "float32", 8).see(IMAGES, None)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_told_from_float32_and_refused_where_it_differs(precision: str) -> None:
    def check(tolerance: float) -> None:
        passes = FixedPasses(Network(), "cpu", precision, 4)
        exact = FixedPasses(Network(), "cpu", "float32", 4)
        check_agreement(passes, exact, IMAGES, None, name="mine", tolerance=tolerance)

    check(0.1)
    said = rf"of mine in {precision} on cpu differ .* by 0\.\d+ % of what tells images apart"
    with pytest.raises(UserError, match=said):
        check(1e-5)
    (half,) = FixedPasses(Network(), "cpu", precision, 4).see(IMAGES, None)
    assert half.dtype == np.float32


def test_the_error_is_beside_what_tells_images_apart() -> None:
    true = np.array([[100.0, 1.0], [100.0, -1.0]])
    assert relative_error(true + np.array([3.0, 0.0]), true) == 0, "an offset of all images"
    assert relative_error(true * np.array([1.0, 1.2]), true) == pytest.approx(0.2, rel=1e-3)
    alike, away = np.array([[100.0, 0.0]] * 2), np.array([[0.0, 1.0], [0.0, -1.0]])
    assert relative_error(alike + away, alike) == pytest.approx(1, rel=1e-3)
    assert relative_error(true[:1] * 1.2, true[:1]) == pytest.approx(0.2, rel=1e-3)
    assert relative_error(true * np.nan, true) == float("inf")


def test_another_encoder_on_the_device_is_refused_in_float32_too() -> None:
    other = Network()
    nn.init.normal_(other.layer.weight)
    passes = FixedPasses(other, "cpu", "float32", 4)
    exact = FixedPasses(Network(), "cpu", "float32", 4)
    with pytest.raises(UserError, match=r"encoder_actor\.device: features of mine"):
        check_agreement(passes, exact, IMAGES, None, name="mine", tolerance=0.03)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "none", "precision": "float16"}, r"encoder_actor\.precision would be ignored"),
        ({"device": "none", "batch": 8}, r"encoder_actor\.batch would be ignored"),
        ({"device": "tpu"}, r"encoder_actor\.device must be one of auto, gpu, cpu, none"),
        ({"device": "cpu", "gpus_per_actor": 0}, r"encoder_actor\.gpus_per_actor must be above 0"),
        ({"device": "cpu", "tolerance": 0.2}, r"encoder_actor\.tolerance is of half precision"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(RolloutConfig, None, {f"encoder_actor.{k}": str(v) for k, v in given.items()})


def test_auto_means_workers_themselves_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(EncoderActorConfig()) == "none"
    assert EncoderService(EncoderActorConfig()).for_a_job() is None
    with pytest.raises(UserError, match=r"encoder_actor\.precision would be ignored.*has no GPU"):
        device_of(EncoderActorConfig(precision="bfloat16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of(EncoderActorConfig(precision="bfloat16")) == "gpu"
