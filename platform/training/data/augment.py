"""Augmentation: drawn on the host for each example, laid over the images on their device.

A random crop, patches of random texture, and colour jitter, in this order, with one conversion to
float and back. Brightness, contrast, saturation and (in YIQ) hue are all affine in RGB, so that
jitter is one 3×3 matrix and an offset for each image.

Shapes: B examples, F = 3 frames of an example (t, next, far), H = W pixels, N patches at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dynaflip.losses.base import FRAMES
from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.random_numbers import Purpose, bits, uniform

_PREFIX = "augment_"
_GREY = (0.299, 0.587, 0.114)
_YIQ = (_GREY, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
_CELLS = 40  # most cells a side of a patch's texture
_PATCH = 14  # numbers that describe a patch, see `_draw_patches`
# Images that are floats at a time: on a CPU as many as its cache holds.
_AT_ONCE, _AT_ONCE_ON_GPU = 8, 128


def draw_augmentation(
    config: DataConfig, example: np.ndarray, seed: int, epoch: int
) -> dict[str, Tensor]:
    """Random numbers of some examples, for those augmentations that are on.

    Args:
        config: the settings.
        example: (B,) int64 ids.
        seed: of the run.
        epoch: of the run.

    Returns:
        ``augment_crop`` (B, 3): left, top and side of a window, as shares of the image's side;
        ``augment_jitter`` (B, F, 4): factors of brightness, contrast and saturation, and turns of
        hue; ``augment_patches`` (B, F, N, 14) and ``augment_textures`` (B, F, N) int64.
    """
    drawn: dict[str, np.ndarray] = {}
    if config.crop_min_share < 1:
        chance = uniform(Purpose.CROP, seed, epoch, example[:, None], np.arange(3))
        side = config.crop_min_share + (1 - config.crop_min_share) * chance[:, 2:]
        drawn["crop"] = np.concatenate([chance[:, :2] * (1 - side), side], 1)
    widths = (
        config.jitter_brightness,
        config.jitter_contrast,
        config.jitter_saturation,
        config.jitter_hue,
    )
    if any(widths):
        frame = np.arange(len(FRAMES)) if config.jitter_per_image else np.zeros(len(FRAMES), int)
        keys = (example[:, None, None], frame[None, :, None], np.arange(4))
        chance = uniform(Purpose.JITTER, seed, epoch, *keys)
        drawn["jitter"] = (1, 1, 1, 0) + np.array(widths) * (2 * chance - 1)
    tensors = {_PREFIX + name: torch.from_numpy(v).float() for name, v in drawn.items()}
    if config.patches:
        patches, textures = _draw_patches(config.patches, example, seed, epoch)
        tensors[_PREFIX + "patches"] = torch.from_numpy(patches).float()
        tensors[_PREFIX + "textures"] = torch.from_numpy(textures)
    return tensors


def _draw_patches(
    most: int, example: np.ndarray, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Patches of each image: (B, F, most, 14), and a number of their texture's noise.

    0, 1 centre, 2, 3 half the sides, all as shares of the image's side; 4, 5 cosine and sine of
    the angle; 6 whether it is an ellipse; 7 opacity, 0 where there is no patch; 8-10 colour and 11
    its standard deviation, of 255 levels; 12 cells of the texture a side; 13 whether these have
    sharp edges.
    """
    image = (seed, epoch, example[:, None, None], np.arange(len(FRAMES))[None, :, None])
    number = np.arange(most)
    chance = uniform(Purpose.PATCHES, *(np.asarray(k)[..., None] for k in image),
                     number[:, None], np.arange(16))  # fmt: skip
    count = uniform(Purpose.PATCHES, *image, -1) * (most + 1)  # 0 to `most`, equally likely
    # Uniform in the logarithm: many small things, few surfaces, up to the whole image.
    half = np.exp(np.log(0.03) * (1 - chance[..., 2:4]))
    angle = np.pi * chance[..., 4]
    patches = np.empty((*chance.shape[:-1], _PATCH))
    patches[..., 0:2], patches[..., 2:4] = chance[..., 0:2], half
    patches[..., 4], patches[..., 5] = np.cos(angle), np.sin(angle)
    patches[..., 6] = chance[..., 5] < 0.5
    # What is large is see-through, so that something of the scene is left.
    opacity = 0.3 + (0.7 - 0.5 * half.min(-1)) * chance[..., 6]
    patches[..., 7] = np.where(number < np.floor(count), opacity, 0)
    patches[..., 8:11] = 255 * chance[..., 7:10]
    patches[..., 11] = np.where(chance[..., 10] < 0.5, 0, 80 * chance[..., 11])
    patches[..., 12] = np.floor(np.exp(np.log(2) + np.log(_CELLS / 2) * chance[..., 12]))
    patches[..., 13] = chance[..., 13] < 0.3
    return patches, bits(Purpose.PATCHES, *image, number, -2).view(np.int64)


def augment_on_device(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Augment a batch's images where they are; its ``augment_…`` entries are used up."""
    result = {name: value for name, value in batch.items() if not name.startswith(_PREFIX)}
    drawn = {k.removeprefix(_PREFIX): v for k, v in batch.items() if k.startswith(_PREFIX)}
    if drawn:
        crop = drawn.pop("crop", None)
        for number, name in enumerate(FRAMES):
            if (images := batch.get(f"image_{name}")) is not None:
                own = {key: value[:, number] for key, value in drawn.items()}
                result[f"image_{name}"] = augment(images, crop=crop, **own)
    return result


def augment(images: Tensor, **drawn: Tensor | None) -> Tensor:
    """Augment images (B, 3, H, W) uint8 RGB, best with channels last in memory.

    Args:
        images: left as they are.
        drawn: of :func:`draw_augmentation` for one frame: ``crop`` (B, 3), ``jitter`` (B, 4),
            ``patches`` (B, N, 14) and ``textures`` (B, N), each or None.

    Returns:
        (B, 3, H, W) uint8, channels last in memory.
    """
    size = _AT_ONCE if images.device.type == "cpu" else _AT_ONCE_ON_GPU
    result = torch.empty_like(images, memory_format=torch.channels_last)
    for start in range(0, len(images), size):
        rows = slice(start, start + size)
        some = {name: value[rows] for name, value in drawn.items() if value is not None}
        pixels = images[rows].float().contiguous()  # plane by plane
        if "crop" in some:
            pixels = _cropped(pixels, some["crop"])
        if "patches" in some:
            pixels = _patched(pixels, some["patches"], some["textures"])
        if "jitter" in some:
            pixels = _jittered(pixels, some["jitter"])
        result[rows] = pixels.add_(0.5).clamp_(0, 255)  # cut off to whole levels
    return result


def _cropped(pixels: Tensor, window: Tensor) -> Tensor:
    """Windows (B, 3) of images (B, 3, H, W), enlarged to their size by bilinear interpolation."""
    left, top, side = window[:, :, None].unbind(1)
    x, y = (begin + side * _centres(pixels) for begin in (left, top))  # (B, W), in [0, 1]
    return _sampled(pixels, x, y)


def _jittered(pixels: Tensor, jitter: Tensor) -> Tensor:
    """Images (B, 3, H, W) by factors (B, 4): brightness, contrast, saturation, then hue."""
    brightness, contrast, saturation, turns = jitter[:, :, None, None].unbind(1)  # (B, 1, 1)
    grey = jitter.new_tensor(_GREY)
    saturate = saturation * torch.eye(3, device=jitter.device) + (1 - saturation) * grey
    matrix = brightness * contrast * _product(_hue_rotation(turns), saturate)
    # Rotation and saturation leave grey alone, so that contrast about the mean grey is an offset.
    mean_grey = (pixels.mean((2, 3)) * grey).sum(-1)[:, None, None]
    offset = (1 - contrast) * brightness * mean_grey
    if pixels.device.type == "cpu":  # a third faster there
        return torch.baddbmm(offset, matrix, pixels.flatten(2)).view_as(pixels)
    return mapped_by_sums(pixels, matrix, offset)


def mapped_by_sums(pixels: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Matrices (B, 3, 3) times the colours of (B, 3, H, W), plus offsets (B, 1, 1).

    For GPUs, where a matrix product in TF32 would lose a quarter of a level.
    """
    red, green, blue = pixels.split(1, dim=1)
    of_red, of_green, of_blue = matrix[..., None, None].unbind(2)
    changed = torch.addcmul(offset[..., None], red, of_red)
    return changed.addcmul_(green, of_green).addcmul_(blue, of_blue)


def _hue_rotation(turns: Tensor) -> Tensor:
    """(B, 3, 3) rotation of RGB about the grey axis of YIQ by turns (B, 1, 1)."""
    to_yiq = torch.tensor(_YIQ, device=turns.device)
    back = torch.tensor(np.linalg.inv(np.array(_YIQ)), device=turns.device).float()
    cos, sin = (2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()
    one, zero = torch.ones_like(cos), torch.zeros_like(cos)
    rows = ((one, zero, zero), (zero, cos, -sin), (zero, sin, cos))
    rotation = torch.cat([torch.cat(row, 2) for row in rows], 1)
    return _product(_product(back.expand_as(rotation), rotation), to_yiq.expand_as(rotation))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Products of (B, 3, 3) matrices in full precision, whatever is allowed for others."""
    return (a[:, :, :, None] * b[:, None]).sum(2)


def _patched(pixels: Tensor, patches: Tensor, textures: Tensor) -> Tensor:
    """Lay patches (B, N, 14) of random texture over images (B, 3, H, W), some see-through.

    Random erasing (Zhong et al. 2020, arXiv 1708.04896) with what stands in scenes: things
    (opaque), shadows (dark and see-through) and other surfaces (large). The other images of
    an example show what a patch hides, because patches are drawn for each image alone.
    """
    for number in range(patches.shape[1]):
        patch, texture = patches[:, number], textures[:, number]
        if pixels.device.type != "cpu":  # choosing rows would wait for the device
            mask = _mask(pixels, patch)
            pixels = pixels + mask * (_texture(pixels, patch, texture) - pixels)
            continue
        there = patch[:, 7] > 0
        some = pixels[there]
        mask = _mask(some, patch[there])
        pixels[there] = some + mask * (_texture(some, patch[there], texture[there]) - some)
    return pixels


def _mask(pixels: Tensor, patch: Tensor) -> Tensor:
    """(B, 1, H, W) opacity of patches (B, 14): 0 outside."""
    at = patch[:, :, None, None].unbind(1)  # (B, 1, 1) each
    centre = _centres(pixels)
    x, y = centre - at[0], centre[:, None] - at[1]
    along, across = (x * at[4] + y * at[5]) / at[2], (y * at[4] - x * at[5]) / at[3]
    ellipse = along.square() + across.square() <= 1
    rectangle = torch.maximum(along.abs(), across.abs()) <= 1
    return (torch.where(at[6] > 0, ellipse, rectangle) * at[7])[:, None]


def _texture(pixels: Tensor, patch: Tensor, number: Tensor) -> Tensor:
    """(B, 3, H, W) a colour, with a field of others around it, coarse or fine."""
    noise = _noise(number, _CELLS * _CELLS * 3).view(-1, 3, _CELLS, _CELLS)
    colour, spread = patch[:, 8:11, None, None], patch[:, 11, None, None, None]
    field = (colour + spread * noise).clamp_(0, 255)
    cells, sharp = patch[:, 12:13], patch[:, 13:14] > 0
    place = _centres(pixels) * cells  # (B, H) in cells
    smooth = torch.minimum(place.clamp(min=0.5), cells - 0.5)
    place = torch.where(sharp, place.floor() + 0.5, smooth) / _CELLS
    return _sampled(field, place, place)


def _sampled(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Images (B, 3, h, w) at columns x (B, W) and rows y (B, H), in [0, 1]: (B, 3, H, W)."""
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)
    return F.grid_sample(images, 2 * grid - 1, padding_mode="border", align_corners=False)


def _centres(pixels: Tensor) -> Tensor:
    """Centres of the pixels along a side of (B, 3, H, W) images: (H,) in [0, 1]."""
    side = pixels.shape[-1]
    return (torch.arange(side, device=pixels.device) + 0.5) / side


def _noise(seeds: Tensor, size: int) -> Tensor:
    """(B, size) nearly normal numbers of seeds (B,) int64, the same on every device."""
    x = seeds[:, None] + torch.arange(1, size + 1, device=seeds.device) * -0x61C8864680B583EB
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    x = x ^ _shifted(x, 31)
    # The sum of four uniform numbers has variance 1/3.
    pieces = [(_shifted(x, shift) & 0xFFFF).float() for shift in (0, 16, 32, 48)]
    total = pieces[0] + pieces[1] + pieces[2] + pieces[3]
    return (total / 65536 - 2) * math.sqrt(3)


def _shifted(x: Tensor, by: int) -> Tensor:
    """A logical right shift of int64."""
    return (x >> by) & ((1 << (64 - by)) - 1) if by else x
