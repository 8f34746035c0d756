"""Rows to batches: decode, jitter, crop, stack.

Every random number is a function of (seed, epoch, example id), whichever worker decodes the row.
The example id is the triplet's, and another one for each repetition within an epoch.

Shapes: B samples, K = 7 flow steps, G = 20 grid points a side, H = W = image_px, P = 3
images a sample: frame t, the next one, and a later one of the clip for the temporal term.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch

from dynaflip.encoders.preprocessing import to_square
from dynaflip.platform.training.config import DataConfig
from dynaflip.platform.training.data.augment import colour_jitter, draw_jitter, draw_patches
from dynaflip.platform.training.data.caption_features import TextTable
from dynaflip.platform.training.data.ids import id64
from dynaflip.platform.triplets.schema import GRID, STEPS

Row = dict[str, Any]
Batch = dict[str, Any]

TENSOR_SHAPES = {
    "flow_origin_m": (GRID, GRID, 3),
    "flow_displacement_m": (STEPS, GRID, GRID, 3),
    "flow_visible": (STEPS, GRID, GRID),
}
_IMAGES = ("t", "next", "far")
_IDENTITIES = {
    "group": "caption_group",
    "task": "task",
    "clip": "clip_id",
    "recording": "recording_id",
    "source": "source",
    "triplet": "triplet_id",
}


class Collate:
    """Turns rows into the batch that model and objective take (see :meth:`__call__`)."""

    def __init__(
        self, config: DataConfig, image_px: int, text: TextTable, *, seed: int, augment: bool
    ) -> None:
        self.config, self.image_px, self.text = config, image_px, text
        self.seed, self.augment = seed, augment

    def __call__(self, rows: list[Row], epoch: int) -> Batch:
        """Decode and stack.

        Returns:
            image_t, image_next, image_far (B, 3, H, W) uint8; text_features (B, D_text);
            flow_origin_m (B, G, G, 3), flow_displacement_m (B, K, G, G, 3) in camera frame
            t; flow_visible (B, K, G, G) bool; median_depth_m (B,); group, task, clip,
            recording, source, triplet, example (B,) int64 (a triplet that is drawn several times
            in an epoch is several examples); far_valid (B,) bool; triplet_id, a list of
            B strings.
        """
        samples = [self._sample(row, epoch) for row in rows]
        images = torch.from_numpy(np.stack([sample[0] for sample in samples]))
        if self.augment and self._jitter_widths() != (0, 0, 0, 0):
            jitter = torch.from_numpy(np.stack([sample[1] for sample in samples])).float()
            brightness, contrast, saturation, hue = jitter.unbind(1)
            images = colour_jitter(images, brightness, contrast, saturation, hue)
        batch: Batch = {
            f"image_{name}": images[:, i].contiguous() for i, name in enumerate(_IMAGES)
        }
        captions = self.text.rows([row["caption"] for row in rows])
        batch["text_features"] = torch.from_numpy(self.text.features[captions])
        for name in TENSOR_SHAPES:
            batch[name] = torch.from_numpy(np.stack([row[name] for row in rows]))
        batch["flow_visible"] = batch["flow_visible"] > 0
        batch["median_depth_m"] = torch.tensor([row["median_depth_m"] for row in rows])
        for name, column in _IDENTITIES.items():
            batch[name] = torch.tensor([id64(row[column]) for row in rows])
        batch["example"] = torch.tensor([row["example"] for row in rows])
        batch["far_valid"] = torch.tensor([sample[2] for sample in samples])
        batch["triplet_id"] = [row["triplet_id"] for row in rows]
        return batch

    def _sample(self, row: Row, epoch: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Images (P, 3, H, W) uint8, jitter (4, P or 1), and whether a later frame exists."""
        rng = np.random.default_rng([self.seed, epoch, row["example"]])
        end_s = row["t_s"] + row["window_s"]
        # A millisecond: times of the same frame may differ in the last bits.
        later = [i for i, time_s in enumerate(row["frames_r3m_s"]) if time_s > end_s + 1e-3]
        choice = int(rng.integers(len(later))) if later else -1
        far = row["frames_r3m"][later[choice]] if later else row["frame_next"]
        window = self._crop_window(rng)
        images = [
            decode_image(jpeg, self.image_px, window)
            for jpeg in (row["frame_t"], row["frame_next"], far)
        ]
        draws = len(_IMAGES) if self.config.jitter_per_image else 1
        jitter = draw_jitter(rng, self._jitter_widths(), draws)
        jitter = np.broadcast_to(jitter, (4, len(_IMAGES)))
        if self.augment and self.config.patches:
            images = [draw_patches(rng, p, self.config.patches) for p in images]
        return np.stack(images), jitter, bool(later)

    def _crop_window(self, rng: np.random.Generator) -> tuple[float, float, float] | None:
        if not self.augment or self.config.crop_min_share == 1:
            return None
        side = rng.uniform(self.config.crop_min_share, 1)
        return rng.uniform(0, 1 - side), rng.uniform(0, 1 - side), side

    def _jitter_widths(self) -> tuple[float, float, float, float]:
        config = self.config
        return (
            config.jitter_brightness,
            config.jitter_contrast,
            config.jitter_saturation,
            config.jitter_hue,
        )


def decode_image(
    jpeg: bytes, side_px: int, window: tuple[float, float, float] | None = None
) -> np.ndarray:
    """Decode an image to (3, side_px, side_px) uint8 RGB, the whole of it or a window.

    Args:
        jpeg: the encoded image.
        side_px: side of the square it is resized to, as the encoder does at use.
        window: left, top and side as shares of the image's width and height.
    """
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError("a triplet's image cannot be decoded; run jobs/preprocess.py again")
    height, width = image.shape[:2]
    if window is not None:
        left, top, side = window
        rows = slice(int(top * height), max(int((top + side) * height), int(top * height) + 1))
        cols = slice(int(left * width), max(int((left + side) * width), int(left * width) + 1))
        image = image[rows, cols]
    planes = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))
    return to_square(planes[None], side_px)[0].numpy()
