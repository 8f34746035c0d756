"""Images with simulator labels (positions, joint angles): the data that probes are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

# What probes predict from features, and the units of their errors.
POSITIONS = ("hand", "object")
TARGETS = (*POSITIONS, "joints")
UNITS = {"hand": "cm", "object": "cm", "joints": "deg"}
# Made once, because making a converter costs twenty times what converting a small image does.
_TO_VIDEO, _FROM_VIDEO = VideoReformatter(), VideoReformatter()


@dataclass(frozen=True)
class LabelledFrames:
    """N images of known scenes. Positions are in metres in the world frame."""

    images: np.ndarray  # (N, H, W, 3) uint8
    hand_m: np.ndarray  # (N, 3) end effector
    object_m: np.ndarray  # (N, 3) the task's object
    joints_rad: np.ndarray  # (N, J) angles of the arm's joints
    task: np.ndarray  # (N,) str
    episode: np.ndarray  # (N,) str
    condition: np.ndarray  # (N,) str: how the image is perturbed

    def __len__(self) -> int:
        return len(self.images)

    def truth(self, target: str) -> np.ndarray:
        """(N, T) of one of :data:`TARGETS`: metres or radians."""
        return {"hand": self.hand_m, "object": self.object_m, "joints": self.joints_rad}[target]

    def where(self, chosen: np.ndarray) -> LabelledFrames:
        """The frames that a (N,) bool or index array chooses."""
        return LabelledFrames(
            self.images[chosen],
            self.hand_m[chosen],
            self.object_m[chosen],
            self.joints_rad[chosen],
            self.task[chosen],
            self.episode[chosen],
            self.condition[chosen],
        )


def concatenate(parts: Sequence[LabelledFrames]) -> LabelledFrames:
    """All frames of several sets, images of one size."""
    names = [field.name for field in fields(LabelledFrames)]
    return LabelledFrames(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


@torch.no_grad()
def embed(encoder: Any, images: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Frozen features of images: (N, D) float32.

    Args:
        encoder: an :class:`dynaflip.encoders.image.ImageEncoder`; put into eval mode.
        images: (N, H, W, 3) uint8.
        batch_size: images a forward pass.
    """
    encoder.eval()
    parts = [
        encoder(torch.from_numpy(images[i : i + batch_size])).float().cpu().numpy()
        for i in range(0, len(images), batch_size)
    ]
    return np.concatenate(parts)


def raw_pixels(images: np.ndarray, side_px: int = 16) -> np.ndarray:
    """Images themselves as features: (N, side · side · 3) float32 in [0, 1]."""
    small = [cv2.resize(i, (side_px, side_px), interpolation=cv2.INTER_AREA) for i in images]
    return np.stack(small).reshape(len(images), -1).astype(np.float32) / 255


def as_recorded(image: np.ndarray) -> np.ndarray:
    """An image as a video stores it: through 4:2:0 and back, which darkens it by 1 to 2 of 255.

    Probes and policies are fitted on recorded images. What is left between the two is the
    video's compression: 1.6 of 255 on average at the quality that demonstrations have.

    Args:
        image: (H, W, 3) uint8, H and W even.
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    as_video = _TO_VIDEO.reformat(frame, format="yuv420p")
    # AREA as in reading recordings: it decides how colour is brought back to full size.
    return _FROM_VIDEO.reformat(as_video, format="rgb24", interpolation="AREA").to_ndarray()
