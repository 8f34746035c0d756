"""Augmentation on the device: images a second, and how much of its bandwidth that uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from full_model import IMAGES, batch_of, image_px
from part import Part

from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.augment import augment_on_device, draw_augmentation

KINDS: dict[str, dict[str, Any]] = {
    "colour jitter (default)": {},
    "jitter for each image, crop, 3 patches": {
        "jitter_per_image": True,
        "crop_min_share": 0.5,
        "patches": 3,
    },
}


def run(part: Part) -> None:
    """A row for each kind of augmentation, beside a copy of the same images."""
    size, repeats = (4, 1) if part.dry else (256, 10)
    px = image_px(part)
    images = {k: v for k, v in batch_of(size, px, part.device).items() if k.startswith("image_")}
    bytes_moved = 2 * sum(image.numel() for image in images.values())  # read once, written once
    copied = part.seconds(lambda: [image.clone() for image in images.values()], repeats)
    for name, settings in KINDS.items():
        drawn = draw_augmentation(DataConfig(**settings), np.arange(size), seed=0, epoch=0)
        batch = images | {key: value.to(part.device) for key, value in drawn.items()}
        part.forget_peak()
        took = part.seconds(lambda: augment_on_device(batch), repeats)  # noqa: B023
        changed = augment_on_device(batch)["image_t"]
        assert changed.dtype == torch.uint8
        assert not torch.equal(changed, images["image_t"]), "nothing was augmented"
        part.add(
            f"{name}, batch {size}",
            value=IMAGES * size / took,
            unit="images/s",
            reference=IMAGES * size / copied,
            reference_name="a copy",
            peak_gb=part.peak_gb(),
            note=f"{1e-9 * bytes_moved / took:.3g} GB/s read and written, "
            f"a copy {1e-9 * bytes_moved / copied:.3g}",
        )
