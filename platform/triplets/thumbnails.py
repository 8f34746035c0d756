"""Thumbnails of a clip: a few small grey frames at fixed shares of its length.

A row's other images lie where the draw of the clip's content fell; these lie at the same moments in
every copy of a video, whatever its size, codec or frame rate. Near-duplicates are found by them.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dynaflip.platform.triplets.clips import Doubles, Floats, Frames

SIDE_PX = 64  # squeezed to a square
# Not the ends, which conversions of a data set often cut by a frame.
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]


def thumbnail_frames(times_s: Doubles) -> list[int]:
    """The frames nearest to :data:`SHARES` of a clip whose frames are shown at (N,) ``times_s``."""
    wanted_s = times_s[0] + np.array(SHARES) * (times_s[-1] - times_s[0])
    return [int(np.abs(times_s - time_s).argmin()) for time_s in wanted_s]


def encode_thumbnails(frames: Sequence[Frames]) -> bytes:
    """A JPEG image with the thumbnails of (H, W, 3) RGB frames beside each other."""
    grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    size = (SIDE_PX, SIDE_PX)
    small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in grey]
    done, data = cv2.imencode(".jpg", np.hstack(small), _JPEG)
    assert done
    return data.tobytes()


def decode_thumbnails(data: bytes) -> Floats:
    """(5, 64, 64) brightness in [0, 1]."""
    strip = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert strip is not None
    assert strip.shape == (SIDE_PX, SIDE_PX * len(SHARES)), strip.shape
    frames = np.stack(np.split(strip, len(SHARES), axis=1))
    return np.asarray(frames / np.float32(255), np.float32)
