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

from dynaflip.platform.s3 import S3Path
from dynaflip.platform.s3_errors import NetworkError
from dynaflip.platform.triplets.clips import ClipRejected, Doubles, Frames, UnknownDepthUnit
from dynaflip.platform.triplets.sources.locations import Location, other_kind_of

# A file that ends this much before its declared duration was cut off.
_TRUNCATED_S = 0.5
# Half a frame at 1000 fps: how far a stored time may be off through rounding.
TIME_TOLERANCE_S = 5e-4
# Seeking costs more than decoding on over fewer frames than these.
_SEEK_FROM_FRAMES = 12
# AVI stores no presentation times and MPEG's program stream some alone: frames after a seek
# are lost, or carry the times of others. In MPEG's transport stream frames after a seek are lost.
_PROGRAM_STREAM = "mpeg"
_NO_SEEK = ("avi", _PROGRAM_STREAM, "mpegts")
# How far a program stream's known times may be off its rate, in frames.
_UNEVEN_FRAMES = 2.0


# Codecs of single images: a stream of one is a cover or a thumbnail beside the film.
_STILLS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff")
# LeRobot's depth codes, whatever the order of their bytes.
_GRAY12 = ("gray12le", "gray12be")


class NoFramesError(ClipRejected):
    """A video without any frame in the time that was asked for."""


class _Overshot(Exception):
    """A seek went beyond the frame that it was for."""


@dataclass(frozen=True)
class Timeline:
    """Times of a video's frames.

    Args:
        pts: (N,) presentation times, ascending, in ticks of the stream.
        key_pts: ascending presentation times of the key frames among all frames.
        tick_s: seconds a tick.
        skipped: frames of the file before these, where it was read from its beginning.
        frames_in_file: as the file's header counts them; 0: it does not.
        rate_hz: frames a second of the whole file by its header; 0: not there.
    """

    pts: np.ndarray
    key_pts: np.ndarray
    tick_s: float
    skipped: int = 0
    frames_in_file: int = 0
    rate_hz: float = 0.0

    def times_s(self) -> Doubles:
        """(N,) seconds, 0 at the first frame."""
        return (self.pts - self.pts[0]) * self.tick_s


@contextmanager
def _opened(path: Location) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        with _source(path) as source, av.open(source, metadata_errors="replace") as container:
            if not container.streams.video:
                raise ClipRejected("decode", "the file holds no video stream")
            stream = _film(container)
            if not stream.codec_context:
                raise ClipRejected("decode", "there is no decoder for its kind of video")
            # Ray gives a task one CPU; more threads would fight over it.
            stream.codec_context.thread_count = 1
            yield container, stream
    except NetworkError as error:
        raise ClipRejected("network", str(error)) from None
    except (av.error.FFmpegError, OSError, EOFError) as error:
        raise _rejection(path, error) from None


def _film(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that a player shows: no cover, no thumbnails, the default one of several."""
    unwanted = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = container.streams.video
    films = [stream for stream in streams if not stream.disposition & unwanted]
    moving = [s for s in films if not s.codec_context or s.codec_context.name not in _STILLS]
    chosen = moving or films or list(streams)
    default = (s for s in chosen if s.disposition & av.stream.Disposition.default)
    return next(default, chosen[0])


def _rejection(path: Location, error: Exception) -> ClipRejected:
    """The rejection of a file that cannot be opened or read on."""
    try:
        if not path.is_file():
            return ClipRejected("decode", f"there is no file {path.name}")
        if path.stat().st_size == 0:
            return ClipRejected("decode", "the file is empty (zero bytes)")
        if kind := other_kind_of(path):
            return ClipRejected("decode", kind)
    except NetworkError as failure:
        return ClipRejected("network", str(failure))
    except OSError as failure:  # its folder may not be entered
        error = failure
    reason = getattr(error, "strerror", None) or str(error)
    return ClipRejected("decode", f"not a readable video: {reason}")


@contextmanager
def _source(path: Location) -> Iterator[Any]:
    """The argument that PyAV opens: a name, or a file where the name is not enough."""
    if isinstance(path, S3Path) or not str(path).isprintable():
        with path.open("rb") as file:
            yield file
    else:
        yield str(path)


def read_timeline(
    path: Location,
    start_s: float = 0.0,
    end_s: float | None = None,
    *,
    from_beginning: bool = False,
    seek: bool = True,
) -> Timeline:
    """Find the times of a video's frames without decoding it.

    Args:
        path: video file.
        start_s: begin of the segment, in the file's own time.
        end_s: end of the segment (its first frame is not part of it), None for the file's end.
        from_beginning: both times count from the video's own beginning instead.
        seek: go to the segment at once, where the file allows it.

    Raises:
        ClipRejected: no video in it, or it was cut off.
    """
    pts: set[int] = set()
    keys: set[int] = set()
    with _opened(path) as (container, stream):
        tick_s = float(stream.time_base or 0)
        begin_s = (stream.start_time or 0) * tick_s if from_beginning else 0.0
        if container.format.name == _PROGRAM_STREAM:
            return _counted_timeline(container, stream, start_s, end_s, from_beginning)
        whole = start_s == 0
        first = round((begin_s + start_s - TIME_TOLERANCE_S) / tick_s)
        last_s = None if end_s is None else begin_s + end_s
        last = None if last_s is None else round((last_s - TIME_TOLERANCE_S) / tick_s)
        sought = seek and not whole and container.format.name not in _NO_SEEK
        if sought:
            container.seek(max(first, 0), stream=stream, backward=True)
        found, skipped, end_of_file_s = 0, 0, 0.0
        for packet in container.demux() if last is None else container.demux(stream):
            time = packet.pts if packet.pts is not None else packet.dts
            if time is None or not packet.size:
                continue
            end = (time + (packet.duration or 0)) * float(packet.time_base or 0)
            end_of_file_s = max(end_of_file_s, end)
            if packet.stream.index != stream.index:
                continue
            if sought and not found and time > first:
                break  # beyond: what lies between would be missing
            found += 1
            if packet.is_discard:
                continue
            # Packets come in decoding order: frames of B-pyramids are shown within a second.
            if last_s is not None and (packet.dts or time) * tick_s > last_s + 1.0:
                break
            if packet.is_keyframe:
                keys.add(time)
            if not whole and time < first:
                skipped += 1
            elif last is None or time < last:
                pts.add(time)
        if last is None and whole:
            _check_complete(container, stream, found, end_of_file_s)
    if sought and not found:
        return read_timeline(path, start_s, end_s, from_beginning=from_beginning, seek=False)
    if not pts:
        span = "" if whole and end_s is None else f" ({start_s:g} to {_end(end_s)})"
        lasts = f"; it lasts to {end_of_file_s - begin_s:.3f} s" if end_of_file_s else ""
        raise NoFramesError("decode", f"the video holds no frame in its time{span}{lasts}")
    return Timeline(
        np.array(sorted(pts)),
        np.array(sorted(keys), np.int64),
        tick_s,
        skipped,
        stream.frames,
        float(stream.average_rate or 0),
    )


def _counted_timeline(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    start_s: float,
    end_s: float | None,
    from_beginning: bool,
) -> Timeline:
    """The timeline of MPEG's program stream, by its rate: most of its frames state no time."""
    known: list[int] = []
    count = 0
    for packet in container.demux(stream):
        if packet.size:
            count += 1
            known += [] if packet.pts is None else [packet.pts]
    rate_hz, tick_s = float(stream.average_rate or 0), float(stream.time_base or 0)
    if not count or not known or not rate_hz:
        raise NoFramesError("decode", "the video states no times")
    pts = min(known) + np.rint(np.arange(count) / (rate_hz * tick_s)).astype(np.int64)
    if abs(max(known) - pts[-1]) * tick_s * rate_hz > _UNEVEN_FRAMES:
        stated_s, counted_s = (float(t - pts[0]) * tick_s for t in (max(known), pts[-1]))
        raise ClipRejected(
            "decode",
            f"its {count} frames at {rate_hz:g} Hz last {counted_s:.2f} s, but its stated times "
            f"{stated_s:.2f} s",
        )
    begin_s = float(pts[0]) * tick_s if from_beginning else 0.0
    times_s = pts * tick_s - begin_s
    chosen = times_s >= start_s - TIME_TOLERANCE_S
    if end_s is not None:
        chosen &= times_s < end_s - TIME_TOLERANCE_S
    if not chosen.any():
        span = f"{start_s:g} to {_end(end_s)}"
        reason = f"the video holds no frame in its time ({span}); it lasts to {times_s[-1]:.3f} s"
        raise NoFramesError("decode", reason)
    skipped = int(chosen.argmax())
    return Timeline(pts[chosen], np.empty(0, np.int64), tick_s, skipped, count, rate_hz)


def _end(end_s: float | None) -> str:
    return "its end" if end_s is None else f"{end_s:g} s"


def _check_complete(
    container: av.container.InputContainer, stream: av.VideoStream, found: int, end_s: float
) -> None:
    counted = f"truncated: {found} of {stream.frames} frames are there"
    if container.duration is not None:
        start_s = (container.start_time or 0) / av.time_base
        declared_s = container.duration / av.time_base
        if end_s - start_s >= declared_s - max(_TRUNCATED_S, 0.02 * declared_s):
            return  # frames beyond an edit list are counted, too, and not shown
        if stream.frames <= found:
            counted = f"truncated: {end_s - start_s:.2f} s of {declared_s:.2f} s"
        raise ClipRejected("decode", counted)
    if stream.frames > found:
        raise ClipRejected("decode", counted)


def read_frames(
    path: Location, timeline: Timeline, indices: list[int], short_side_px: int
) -> Frames:
    """Decode frames by index, reduced while decoding.

    Args:
        path: video file.
        timeline: of this file.
        indices: ascending, without repetition.
        short_side_px: short side of the result; smaller videos stay as they are.

    Returns:
        (len(indices), H, W, 3) uint8 RGB, upright, with square pixels.

    Raises:
        ClipRejected: a frame cannot be decoded.
    """
    out: list[Frames] = []
    for frame, aspect in _decode(path, timeline, indices):
        width, height = _size(frame.width * aspect, frame.height, short_side_px)
        reduced = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
        rgb = np.asarray(reduced.to_ndarray(), dtype=np.uint8)
        turns = round(frame.rotation / 90) % 4  # counter-clockwise
        out.append(np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb)
        if out[-1].shape != out[0].shape:
            raise ClipRejected("decode", f"the image changes size at frame {indices[len(out) - 1]}")
    return np.stack(out)


def read_gray12(path: Location, timeline: Timeline, indices: list[int]) -> np.ndarray:
    """Decode 12-bit gray frames (LeRobot's depth codes): (len(indices), H, W) uint16.

    Raises:
        ClipRejected: a frame cannot be decoded, or is stored in another format, whose numbers
            would be scaled.
    """
    out = []
    for frame, _ in _decode(path, timeline, indices):
        if frame.format.name not in _GRAY12:
            raise UnknownDepthUnit(
                "depth",
                f"depth is stored as {frame.format.name} and not in LeRobot's 12 bits (gray12le): "
                f"its unit is not known",
            )
        out.append(frame.to_ndarray(format="gray12le"))
    return np.stack(out)


def _decode(
    path: Location, timeline: Timeline, indices: list[int]
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Yield frames in order with their pixels' aspect, seeking where that saves decoding."""
    done = 0
    try:
        for found in _decode_pass(path, timeline, indices, seek=True):
            yield found
            done += 1
    except _Overshot:
        yield from _decode_pass(path, timeline, indices[done:], seek=False)


def _decode_pass(
    path: Location, timeline: Timeline, indices: list[int], seek: bool
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Yield frames as :func:`_decode` does; without ``seek`` all before them are decoded."""
    decoded = -_SEEK_FROM_FRAMES  # index of the last decoded frame
    with _opened(path) as (container, stream):
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        seek = seek and container.format.name not in _NO_SEEK
        frames = _timed(container, stream, timeline)
        for index in indices:
            time = int(timeline.pts[index])
            before = timeline.key_pts[timeline.key_pts <= time]
            key = int(before[-1]) if len(before) else 0
            far = np.searchsorted(timeline.pts, key) - decoded >= _SEEK_FROM_FRAMES
            sought = seek and bool(far) and key > (stream.start_time or 0)
            if sought:
                container.seek(key, stream=stream, backward=True)
                frames = _timed(container, stream, timeline)
            found: av.VideoFrame | None = None
            for at, frame in frames:
                if at is not None and at >= time:
                    found = frame if at == time else None
                    break
                sought = False
            if found is None and sought:
                raise _Overshot
            if found is None:
                seconds = (time - timeline.pts[0]) * timeline.tick_s
                raise ClipRejected("decode", f"frame {index} at {seconds:.3f} s cannot be decoded")
            decoded = index
            yield found, aspect


def _timed(
    container: av.container.InputContainer, stream: av.VideoStream, timeline: Timeline
) -> Iterator[tuple[int | None, av.VideoFrame]]:
    """Frames with their presentation times; None: not known.

    In AVI a frame that was stored out of order carries its position in the file, and in MPEG's
    program stream most carry none. But frames come out of the decoder in the order in which they
    are shown, so they are counted there.
    """
    counted = container.format.name == "avi" and stream.codec_context.has_b_frames
    counted = counted or container.format.name == _PROGRAM_STREAM
    for number, frame in enumerate(container.decode(stream), start=-timeline.skipped):
        if not counted:
            yield frame.pts if frame.pts is not None else frame.dts, frame
        else:
            yield int(timeline.pts[number]) if 0 <= number < len(timeline.pts) else None, frame


def _size(width: float, height: float, short_side_px: int) -> tuple[int, int]:
    """Width and height to reduce to, before rotation."""
    scale = min(1.0, short_side_px / min(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
