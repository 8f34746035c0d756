"""Augmentation in one pass over a batch, against a slow reference that takes image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.augment import (
    augment,
    augment_on_device,
    draw_augmentation,
    mapped_by_sums,
)

STILL = {f"jitter_{name}": 0.0 for name in ("brightness", "contrast", "saturation", "hue")}
PX = 24


def images_of(number: int, px: int = PX) -> Tensor:
    """(number, 3, px, px) uint8, smooth, so that interpolation can be compared; channels last."""
    random = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(number, 3, 6, 6, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (px, px), mode="bicubic").clamp(0, 255)
    return smooth.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def batch_of(config: DataConfig, number: int = 6, epoch: int = 0) -> dict[str, Tensor]:
    example = np.arange(100, 100 + number)
    images = {f"image_{name}": images_of(number) for name in ("t", "next", "far")}
    return {**images, **draw_augmentation(config, example, seed=0, epoch=epoch), "other": example}  # type: ignore[dict-item]


def slow_crop(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """(H, W, 3) float: each pixel by bilinear interpolation at its place in the window."""
    left, top, side = window
    px = len(image)
    result = np.empty_like(image)
    for i in range(px):
        for j in range(px):
            y = np.clip((top + side * (i + 0.5) / px) * px - 0.5, 0, px - 1)
            x = np.clip((left + side * (j + 0.5) / px) * px - 0.5, 0, px - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, px - 1), min(x0 + 1, px - 1)
            upper = (1 - x + x0) * image[y0, x0] + (x - x0) * image[y0, x1]
            lower = (1 - x + x0) * image[y1, x0] + (x - x0) * image[y1, x1]
            result[i, j] = (1 - y + y0) * upper + (y - y0) * lower
    return result


def slow_jitter(image: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """(H, W, 3) float: one step after the other, without clipping in between."""
    grey = np.array([0.299, 0.587, 0.114])
    yiq = np.array([grey, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    brightness, contrast, saturation, turns = jitter
    image = brightness * image
    image = contrast * image + (1 - contrast) * (image @ grey).mean()
    image = saturation * image + (1 - saturation) * (image @ grey)[..., None]
    cos, sin = math.cos(2 * math.pi * turns), math.sin(2 * math.pi * turns)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return image @ (np.linalg.inv(yiq) @ turn @ yiq).T


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_min_share": 0.4},
        {"jitter_brightness": 0.4, "jitter_contrast": 0.4},
        {"jitter_saturation": 0.5, "jitter_hue": 0.2, "jitter_per_image": True},
        {"crop_min_share": 0.5, "jitter_contrast": 0.3, "jitter_hue": 0.1},
    ],
)
def test_a_batch_equals_image_by_image(settings: dict) -> None:
    batch = batch_of(DataConfig(**{**STILL, **settings}))
    done = augment_on_device(batch)
    for number, name in enumerate(("image_t", "image_next", "image_far")):
        for i in range(6):
            expected = batch[name][i].permute(1, 2, 0).double().numpy()
            if "augment_crop" in batch:
                expected = slow_crop(expected, batch["augment_crop"][i].numpy())
            if "augment_jitter" in batch:
                expected = slow_jitter(expected, batch["augment_jitter"][i, number].numpy())
            actual = done[name][i].permute(1, 2, 0).numpy()
            apart = np.abs(actual - np.clip(expected, 0, 255)).max()
            assert apart <= 0.51, f"{name} {i}: {apart:.2f} levels apart"


def test_what_is_off_is_neither_drawn_nor_done() -> None:
    batch = batch_of(DataConfig(**STILL))
    assert not [name for name in batch if name.startswith("augment_")]
    assert augment_on_device(batch)["image_t"] is batch["image_t"]
    images = images_of(3)
    nothing = torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 3)
    assert torch.equal(augment(images, jitter=nothing), images)
    assert torch.equal(augment(images, crop=torch.tensor([[0.0, 0.0, 1.0]] * 3)), images)


def test_numbers_are_used_up_and_the_rest_of_the_batch_stays() -> None:
    batch = batch_of(DataConfig(patches=1, crop_min_share=0.5))
    batch.pop("image_far")  # a frame that no term reads
    done = augment_on_device(batch)
    assert set(done) == {"image_t", "image_next", "other"}
    assert done["other"] is batch["other"]
    assert done["image_t"].dtype == torch.uint8
    assert done["image_t"].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(done["image_t"], batch["image_t"])


@pytest.mark.parametrize(
    "settings", [{}, {"crop_min_share": 0.5}, {"patches": 3}, {"jitter_per_image": True}]
)
def test_an_example_is_augmented_alike_in_any_batch_and_otherwise_in_another_epoch(
    settings: dict,
) -> None:
    config = DataConfig(**settings)
    some, others = np.array([5, 9, 2**62]), np.array([9, 1, 2**62 - 1])
    first = draw_augmentation(config, some, seed=1, epoch=3)
    second = draw_augmentation(config, others, seed=1, epoch=3)
    assert first
    for name, value in first.items():
        assert torch.equal(value[1], second[name][0])
        assert not torch.equal(value[0], value[2])
        for seed, epoch in ((1, 4), (2, 3)):
            other = draw_augmentation(config, some, seed=seed, epoch=epoch)
            assert not torch.equal(value, other[name])


def test_settings_are_the_ranges_that_are_drawn_from() -> None:
    example = np.arange(4000)
    config = DataConfig(
        jitter_brightness=0.4,
        jitter_contrast=0.3,
        jitter_saturation=0.2,
        jitter_hue=0.1,
        crop_min_share=0.6,
        patches=3,
    )
    drawn = draw_augmentation(config, example, seed=0, epoch=0)
    jitter = drawn["augment_jitter"]
    assert jitter.shape == (4000, 3, 4)
    assert torch.equal(jitter[:, 0], jitter[:, 2])  # images of one example change alike
    centre, width = torch.tensor([1.0, 1, 1, 0]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert torch.allclose(jitter[:, 0].amin(0), centre - width, atol=0.01)
    assert torch.allclose(jitter[:, 0].amax(0), centre + width, atol=0.01)
    left, top, side = drawn["augment_crop"].unbind(1)
    assert 0.6 <= side.min() < 0.61
    assert 0.99 < side.max() <= 1
    assert min(left.min(), top.min()) >= 0
    assert max((left + side).max(), (top + side).max()) <= 1 + 1e-6
    there = (drawn["augment_patches"][..., 7] > 0).sum(-1)
    shares = torch.stack([(there == number).float().mean() for number in range(4)])
    assert torch.allclose(shares, torch.full((4,), 0.25), atol=0.02)
    each = draw_augmentation(DataConfig(jitter_per_image=True), example[:5], seed=0, epoch=0)
    assert not torch.equal(each["augment_jitter"][:, 0], each["augment_jitter"][:, 1])


def test_hue_keeps_brightness_and_no_saturation_is_grey() -> None:
    images = (images_of(4).float() * 0.3 + 90).to(torch.uint8)
    grey = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    turned = augment(images, jitter=torch.tensor([[1, 1, 1, 0.05]] * 4))
    assert not torch.equal(turned, images)
    before, after = ((x.float() * grey).sum(1) for x in (images, turned))
    assert (before - after).abs().max() < 1.5
    pale = augment(images, jitter=torch.tensor([[1.0, 1, 0, 0]] * 4)).float()
    assert (pale[:, 0] - pale[:, 2]).abs().max() <= 1


def test_the_gpu_s_way_to_map_colours_gives_the_cpu_s() -> None:
    random = torch.Generator().manual_seed(0)
    pixels, matrix, offset = (
        torch.rand(*shape, generator=random) for shape in ((5, 3, 8, 8), (5, 3, 3), (5, 1, 1))
    )
    expected = torch.einsum("bij,bjhw->bihw", matrix, pixels) + offset[..., None]
    assert torch.allclose(mapped_by_sums(pixels, matrix, offset), expected, atol=1e-6)


def patch(**values: float) -> Tensor:
    """One patch (1, 1, 14): an opaque red rectangle in the middle, of half the image's side."""
    names = ("x", "y", "width", "height", "cos", "sin", "ellipse", "opacity", "red", "green",
             "blue", "spread", "cells", "sharp")  # fmt: skip
    usual = {"x": 0.5, "y": 0.5, "width": 0.25, "height": 0.25, "cos": 1, "opacity": 1, "red": 200}
    return torch.tensor([[[{**usual, "cells": 4, **values}.get(name, 0.0) for name in names]]])


def covered(images: Tensor, **values: float) -> Tensor:
    return augment(images, patches=patch(**values), textures=torch.tensor([[7]]))


def test_a_patch_lies_where_it_is_said_and_shows_what_is_below_as_far_as_it_is_see_through() -> (
    None
):
    images = torch.full((1, 3, PX, PX), 100, dtype=torch.uint8)
    done = covered(images)
    middle = slice(PX // 4, 3 * PX // 4)
    assert (done[0, :, middle, middle] == torch.tensor([200, 0, 0])[:, None, None]).all()
    outside = done.clone()
    outside[0, :, middle, middle] = 100
    assert (outside == 100).all()
    faint = covered(images, opacity=0.25)
    assert faint[0, :, PX // 2, PX // 2].tolist() == [125, 75, 75]
    area = {n: float((covered(images, ellipse=n) != 100).any(1).float().mean()) for n in (0, 1)}
    assert area[0] == pytest.approx(0.25, abs=0.01)
    assert area[1] == pytest.approx(0.25 * math.pi / 4, abs=0.02)
    # Turned by 90°, a wide patch is a high one.
    wide = (covered(images, height=0.1) != 100).any(1)
    high = (covered(images, height=0.1, cos=0, sin=1) != 100).any(1)
    assert torch.equal(wide, high.mT)
    assert not torch.equal(wide, high)
    assert torch.equal(covered(images, opacity=0), images)


def test_a_patch_s_texture_is_coarse_or_fine_sharp_or_smooth() -> None:
    images = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    whole = {"width": 1.0, "height": 1.0, "red": 128.0, "green": 128.0, "blue": 128.0}
    plain = covered(images, **whole)
    assert (plain == 128).all()
    sharp = covered(images, **whole, spread=40, sharp=1)
    assert len(sharp[0, 0].unique()) <= 16  # 4 × 4 cells
    assert (sharp[0, :, :12, :12] == sharp[0, :, :1, :1]).all()
    smooth = covered(images, **whole, spread=40).float()
    assert len(smooth[0, 0].unique()) > 30
    assert smooth.diff(dim=-1).abs().max() < 0.5 * sharp.float().diff(dim=-1).abs().max()
    fine = covered(images, **whole, spread=40, cells=24, sharp=1).float()
    assert (fine.diff(dim=-1) != 0).float().mean() > 2 * (sharp.diff(dim=-1) != 0).float().mean()
    assert fine.mean() == pytest.approx(128, abs=6)
    assert fine.std() == pytest.approx(40, rel=0.2)


def test_patches_differ_between_the_images_of_an_example() -> None:
    config = DataConfig(patches=3, **STILL)
    batch = batch_of(config, 20)
    done = augment_on_device(batch)
    names = ("image_t", "image_next", "image_far")
    changed = torch.stack([(done[name] != batch[name]).any(1) for name in names])
    share = changed.float().mean((2, 3))
    assert 0.05 < share.mean() < 0.6
    assert (share == 0).any()  # from none to several
    assert not torch.equal(changed[0], changed[1])
    again = augment_on_device(batch_of(config, 20))
    assert all(torch.equal(again[name], done[name]) for name in names)
