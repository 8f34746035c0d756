"""The one video reader: PyAV, by time stamps.

Frames are found by their presentation time, so B-frames, variable frame rate
and several episodes in one file need no special case. Only what is needed is
decoded, from the nearest key frame on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np

from dynaflip.platform.triplets.clips import ClipError, Doubles, Frames
from dynaflip.platform.triplets.sources.places import Place
from dynaflip.platform.triplets.sources.s3 import NetworkError, S3Path

# A file that ends this much before it says it does was cut off.
_TRUNCATED_S = 0.5
# Half a frame at 1000 fps: how far a stored time may be off through rounding.
TIME_TOLERANCE_S = 5e-4
# Seeking costs more than decoding on over fewer frames than these.
_SEEK_FROM_FRAMES = 12


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video are shown.

    Args:
        pts: (N,) presentation times, ascending, in ticks of the stream.
        key_pts: ascending presentation times of the key frames among all frames.
        tick_s: seconds a tick.
    """

    pts: np.ndarray
    key_pts: np.ndarray
    tick_s: float

    def times_s(self) -> Doubles:
        """(N,) seconds, 0 at the first frame."""
        return (self.pts - self.pts[0]) * self.tick_s


@contextmanager
def _opened(path: Place) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        with _source(path) as source, av.open(source, metadata_errors="replace") as container:
            if not container.streams.video:
                raise ClipError("decode", "the file holds no video stream")
            stream = container.streams.video[0]
            if not stream.codec_context:
                raise ClipError("decode", "nothing here decodes the kind of video that it holds")
            # Ray gives a task one CPU; more threads would fight over it.
            stream.codec_context.thread_count = 1
            yield container, stream
    except NetworkError as error:
        raise ClipError("network", str(error)) from None
    except (av.error.FFmpegError, OSError, EOFError) as error:
        if not path.is_file():
            raise ClipError("decode", f"there is no file {path.name}") from None
        if path.stat().st_size == 0:
            raise ClipError("decode", "the file is empty (zero bytes)") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise ClipError("decode", f"not a readable video: {reason}") from None


@contextmanager
def _source(path: Place) -> Iterator[Any]:
    """What PyAV opens: a name, or a file where the name is not enough."""
    if isinstance(path, S3Path) or not path.name.isprintable():
        with path.open("rb") as file:
            yield file
    else:
        yield str(path)


def read_timeline(path: Place, start_s: float = 0.0, end_s: float | None = None) -> Timeline:
    """Find the times of a video's frames without decoding it.

    Args:
        path: video file.
        start_s: begin of the piece, in the file's own time.
        end_s: end of the piece (its first frame is not part of it), None for the file's end.

    Raises:
        ClipError: no video in it, or it was cut off.
    """
    pts: list[int] = []
    keys: list[int] = []
    with _opened(path) as (container, stream):
        tick_s = float(stream.time_base or 0)
        first = round((start_s - TIME_TOLERANCE_S) / tick_s)
        last = None if end_s is None else round((end_s - TIME_TOLERANCE_S) / tick_s)
        if start_s > 0:
            container.seek(max(first, 0), stream=stream, backward=True)
        found, end_of_file_s = 0, 0.0
        for packet in container.demux() if last is None else container.demux(stream):
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None or not packet.size:
                continue
            end = (time + (packet.duration or 0)) * float(packet.time_base or 0)
            end_of_file_s = max(end_of_file_s, end)
            if packet.stream.index != stream.index:
                continue
            found += 1
            if packet.is_discard:
                continue
            # Packets come in decoding order: frames of B-pyramids are shown within a second.
            if last is not None and (packet.dts or time) * tick_s > float(end_s or 0) + 1.0:
                break
            if packet.is_keyframe:
                keys.append(time)
            if (start_s == 0 or time >= first) and (last is None or time < last):
                pts.append(time)
        if last is None and start_s == 0:
            _check_complete(container, stream, found, end_of_file_s)
    if not pts:
        raise ClipError("decode", "the video holds no frame in its time")
    return Timeline(np.unique(np.array(pts)), np.unique(np.array(keys, dtype=np.int64)), tick_s)


def _check_complete(
    container: av.container.InputContainer, stream: av.VideoStream, found: int, end_s: float
) -> None:
    if stream.frames > found:
        raise ClipError("decode", f"truncated: {found} of {stream.frames} frames are there")
    if container.duration is not None:
        start_s = (container.start_time or 0) / av.time_base
        declared_s = container.duration / av.time_base
        if end_s - start_s < declared_s - max(_TRUNCATED_S, 0.02 * declared_s):
            raise ClipError("decode", f"truncated: {end_s - start_s:.2f} s of {declared_s:.2f} s")


def read_frames(path: Place, timeline: Timeline, indices: list[int], short_side_px: int) -> Frames:
    """Decode frames by index, reduced while decoding.

    Args:
        path: video file.
        timeline: of this file.
        indices: ascending, without repetition.
        short_side_px: short side of the result; smaller videos stay as they are.

    Returns:
        (len(indices), H, W, 3) uint8 RGB, upright, with square pixels.

    Raises:
        ClipError: a frame cannot be decoded.
    """
    out: list[Frames] = []
    for frame, aspect in _decode(path, timeline, indices):
        width, height = _size(frame.width * aspect, frame.height, short_side_px)
        reduced = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
        rgb = np.asarray(reduced.to_ndarray(), dtype=np.uint8)
        turns = round(frame.rotation / 90) % 4  # counter-clockwise
        out.append(np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb)
        if out[-1].shape != out[0].shape:
            raise ClipError("decode", f"the picture changes size at frame {indices[len(out) - 1]}")
    return np.stack(out)


def read_gray12(path: Place, timeline: Timeline, indices: list[int]) -> np.ndarray:
    """Decode 12-bit gray frames (LeRobot's depth codes): (len(indices), H, W) uint16."""
    return np.stack([f.to_ndarray(format="gray12le") for f, _ in _decode(path, timeline, indices)])


def _decode(
    path: Place, timeline: Timeline, indices: list[int]
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Yield frames in order with their pixels' aspect, seeking where that saves decoding."""
    place = -_SEEK_FROM_FRAMES  # index of the last decoded frame
    with _opened(path) as (container, stream):
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        frames = container.decode(stream)
        for index in indices:
            time = int(timeline.pts[index])
            before = timeline.key_pts[timeline.key_pts <= time]
            key = int(before[-1]) if len(before) else 0
            if np.searchsorted(timeline.pts, key) - place >= _SEEK_FROM_FRAMES and key > (
                stream.start_time or 0
            ):
                container.seek(key, stream=stream, backward=True)
                frames = container.decode(stream)
            at: int | None = None
            for frame in frames:
                at = frame.pts if frame.pts is not None else frame.dts
                if at is not None and at >= time:
                    break
            if at != time:
                seconds = (time - timeline.pts[0]) * timeline.tick_s
                raise ClipError("decode", f"frame {index} at {seconds:.3f} s cannot be decoded")
            place = index
            yield frame, aspect


def _size(width: float, height: float, short_side_px: int) -> tuple[int, int]:
    """Width and height to reduce to, before rotation."""
    scale = min(1.0, short_side_px / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
