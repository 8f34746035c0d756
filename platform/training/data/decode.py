"""Decoding of JPEGs into the arrays of a batch, by the fastest library that is installed.

simplejpeg is twice as fast as OpenCV and gives the same pixels. Needs torch and numpy, and one of
simplejpeg, OpenCV, Pillow and torchvision.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dynaflip.encoders.preprocessing import to_square

# JPEG as (N,) uint8, and an array (H, W, 3) that it may be decoded into, to RGB (H, W, 3) uint8:
# that array, or a new one.
Decoder = Callable[[np.ndarray, np.ndarray], np.ndarray]


def decode_into(jpeg: np.ndarray, out: np.ndarray) -> None:
    """Decode an image, and resize it as the encoder does at use where its size is another.

    Args:
        jpeg: (N,) uint8, the encoded image.
        out: (side, side, 3) uint8 RGB, contiguous; written.

    Raises:
        ValueError: not a JPEG, or a damaged one.
    """
    image = decoder()(jpeg, out)
    if image is out:
        return
    if image.shape != out.shape:
        # Channels last, batch first: torch has a fast way for no other order of a single image.
        planes = torch.from_numpy(image[None]).permute(0, 3, 1, 2)
        image = to_square(planes, out.shape[0])[0].permute(1, 2, 0).numpy()
    out[:] = image


def decode_image(jpeg: bytes, side_px: int) -> np.ndarray:
    """Decode one image to (side_px, side_px, 3) uint8 RGB."""
    out = np.empty((side_px, side_px, 3), np.uint8)
    decode_into(np.frombuffer(jpeg, np.uint8), out)
    return out


@functools.cache
def decoder() -> Decoder:
    """The fastest decoder that is installed.

    Raises:
        ImportError: there is none.
    """
    for build in (_simplejpeg, _opencv, _pillow, _torchvision):
        try:
            return build()
        except ImportError:
            continue
    raise ImportError("images cannot be decoded: install simplejpeg")


def _damaged(reason: object) -> ValueError:
    return ValueError(
        f"a triplet's image cannot be decoded ({reason}); run jobs/preprocess.py again"
    )


def _simplejpeg() -> Decoder:
    import simplejpeg

    def decode(jpeg: np.ndarray, out: np.ndarray) -> np.ndarray:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
            if (height, width) != out.shape[:2]:
                return simplejpeg.decode_jpeg(jpeg, "RGB")
            simplejpeg.decode_jpeg(jpeg, "RGB", buffer=out)
        except ValueError as error:
            raise _damaged(error) from None
        return out

    return decode


def _opencv() -> Decoder:
    import cv2

    def decode(jpeg: np.ndarray, out: np.ndarray) -> np.ndarray:
        image = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        if image is None:
            raise _damaged("no JPEG")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    return decode


def _pillow() -> Decoder:
    from PIL import Image

    def decode(jpeg: np.ndarray, out: np.ndarray) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(jpeg.tobytes())) as image:
                return np.array(image.convert("RGB"))
        except OSError as error:
            raise _damaged(error) from None

    return decode


def _torchvision() -> Decoder:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(jpeg: np.ndarray, out: np.ndarray) -> np.ndarray:
        try:
            planes: Any = decode_jpeg(torch.from_numpy(jpeg.copy()), mode=ImageReadMode.RGB)
        except RuntimeError as error:
            raise _damaged(error) from None
        return planes.permute(1, 2, 0).numpy()

    return decode
