"""Encoded images (JPEG, PNG, …) as a data set's tables and records hold them, one a frame."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import ClipRejected, Frames
from dynaflip.platform.triplets.sources.contents import other_kind

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH, _PNG_COLOUR = 24, 25  # bytes of the header: bits a channel, and kind of colour
_GREY = 0


def read_images(
    indices: list[int], encoded: Callable[[int], bytes | None], short_side_px: int, noun: str
) -> Frames:
    """Decode images, reduced.

    Args:
        indices: of the images.
        encoded: bytes of an image by its index; empty or None: there is none.
        short_side_px: short side of the result; smaller images stay as they are.
        noun: what an image belongs to, for messages: step or frame.

    Returns:
        (len(indices), H, W, 3) uint8 RGB.

    Raises:
        ClipRejected: an image is missing, cannot be decoded, has another size than the others, or
            is 16-bit grey, which is depth and no image.
    """
    out: list[Frames] = []
    for index in indices:
        data = encoded(index)
        if not data:
            raise ClipRejected("decode", f"there is no image at {noun} {index}")
        if is_deep_grey(data):
            raise ClipRejected("decode", "its images are 16-bit grey: depth, not a camera's images")
        image = _decoded(data)
        if image is None:
            kind = other_kind(data)
            reason = f"the image of {noun} {index} cannot be decoded"
            raise ClipRejected("decode", f"{reason}: {kind}" if kind else reason)
        height, width = image.shape[:2]
        scale = min(1.0, short_side_px / min(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        if scale < 1:
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        out.append(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8))
        if out[-1].shape != out[0].shape:
            raise ClipRejected("decode", f"the image changes size at {noun} {index}")
    return np.stack(out)


def is_deep_grey(data: bytes) -> bool:
    """True where an image is a PNG of one channel with 16 bits, as depth is stored."""
    head = data[: _PNG_COLOUR + 1]
    if len(head) <= _PNG_COLOUR or not head.startswith(_PNG):
        return False
    return head[_PNG_DEPTH] == 16 and head[_PNG_COLOUR] == _GREY


def _decoded(data: bytes) -> Frames | None:
    """(H, W, 3) BGR, or None."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)
