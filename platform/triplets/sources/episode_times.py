"""Times of an episode's frames where several statements of them exist.

LeRobot states them up to four times: in ``meta/episodes`` (span and length), in ``info.json``
(frames a second), in the rows of the episode (``timestamp``) and in the video itself. Where they
disagree, what follows from two of them holds; else the clip is rejected with the figures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dynaflip.platform.lerobot.shared_videos import Place
from dynaflip.platform.triplets.clips import ClipRejected, Doubles
from dynaflip.platform.triplets.sources import video
from dynaflip.platform.triplets.sources.locations import Location

# How far a stated start may be off its frame, through rounding.
_ALIGNED_S = 1e-3
# Of a frame: how far times may be off while it is clear which frame they mean.
_CLEAR_SHARE = 0.25
# Two rates that differ by more than this share are not one rate, measured.
_RATES_DIFFER = 0.1
# A file with fewer frames than this beyond those of its episodes has not lost an episode from its
# list: a frame was added somewhere, and all after it are moved.
_FEWEST_FRAMES_OF_AN_EPISODE = 5


@dataclass(frozen=True)
class Span:
    """Statements of a data set about an episode's frames in its video.

    Args:
        start_s, end_s: in the file's own time; None: the file's end.
        length: number of frames; None: not stated.
        fps: frames a second; 0: not stated.
        place: among the frames of the file; None: not known.
    """

    start_s: float
    end_s: float | None
    length: int | None
    fps: float
    place: Place | None

    def __str__(self) -> str:
        end = "its end" if self.end_s is None else f"{self.end_s:.3f}"
        return f"{self.start_s:.3f} to {end} s"


def episode_timeline(path: Location, span: Span) -> video.Timeline:
    """Find the frames of an episode in its video.

    Raises:
        ClipRejected: there are fewer or more, or it is not clear which ones they are.
    """
    if span.length is not None and span.length < 1:
        raise ClipRejected("decode", f"the episode has {span.length} frames by meta/episodes")
    found = None
    try:
        found = video.read_timeline(path, span.start_s, span.end_s)
    except video.NoFramesError:
        if span.length is None:
            raise
    if span.length is None or (found is not None and _is_certain(found, span)):
        assert found is not None
        return found
    return _by_count(path, span, found)


def _is_certain(found: video.Timeline, span: Span) -> bool:
    """True where the frames within the stated times are the episode's by all other statements."""
    if len(found.pts) != span.length:
        return False
    if span.place is None and span.end_s is None:
        return True  # all of the file
    if abs(_start_s(found) - span.start_s) > _ALIGNED_S:
        return False
    if span.place is None:
        return True
    if found.frames_in_file and found.frames_in_file != span.place.total:
        return False
    if not span.fps or span.place.episodes == 1:
        return True
    # Before this episode, the file may run at another rate, or lie at other times than stated.
    slip_s = 0.0
    if found.rate_hz:
        slip_s = abs(found.rate_hz / span.fps - 1) * span.start_s
    moved_s = abs(span.place.before / span.fps - span.start_s)
    return slip_s <= _CLEAR_SHARE / span.fps and moved_s <= 2 * _CLEAR_SHARE / span.fps


def _by_count(path: Location, span: Span, found: video.Timeline | None) -> video.Timeline:
    """The episode's frames by the lengths of all episodes in the file, where they add up."""
    assert span.length is not None
    whole = video.read_timeline(path)
    frames, place = len(whole.pts), span.place
    if place is not None and frames == place.total:
        # Whatever their times are: all frames are meant, each episode's after those before it.
        return _cut(whole, place.before, span.length)
    if place is not None and frames < place.total + _FEWEST_FRAMES_OF_AN_EPISODE:
        together = f", the {place.episodes} episodes in it together {place.total}"
        if place.episodes == 1:
            together = f", the episode {place.total}"
        raise ClipRejected(
            "decode",
            f"its video has {frames} frames{together}: which of them are this episode's is not "
            f"known",
        )
    if found is None or len(found.pts) != span.length or not _is_near(found, span):
        first = int(np.abs(whole.pts * whole.tick_s - span.start_s).argmin())
        nearest = _cut(whole, first, span.length)
        if len(nearest.pts) == span.length and _is_near(nearest, span):
            return nearest
        number = 0 if found is None else len(found.pts)
        raise ClipRejected(
            "decode",
            f"the episode has {span.length} frames, but its video {number} ({span}); the file has "
            f"{frames}, the nearest at {float(whole.pts[first]) * whole.tick_s:.3f} s",
        )
    return found


def _is_near(timeline: video.Timeline, span: Span) -> bool:
    """True where the first and the last frame lie where they are stated, within part of a frame."""
    frame_s = 1 / span.fps if span.fps else float(np.median(np.diff(timeline.times_s())))
    begins = abs(_start_s(timeline) - span.start_s) <= _CLEAR_SHARE * frame_s
    if span.end_s is None:
        return begins
    end_s = float(timeline.pts[-1]) * timeline.tick_s + frame_s
    return begins and abs(end_s - span.end_s) <= _CLEAR_SHARE * frame_s


def _start_s(timeline: video.Timeline) -> float:
    return float(timeline.pts[0]) * timeline.tick_s


def _cut(whole: video.Timeline, first: int, length: int) -> video.Timeline:
    pts = whole.pts[first : first + length]
    return replace(whole, pts=pts, skipped=whole.skipped + first)


def agreed_times_s(shown_s: Doubles, rows_s: Doubles | None, fps: float) -> Doubles:
    """Times of an episode's frames, 0 at the first.

    Args:
        shown_s: (N,) when the video shows them.
        rows_s: ``timestamp`` of the episode's rows; None: the data set has none.
        fps: frames a second by ``info.json``; 0: not stated.

    Raises:
        ClipRejected: no two of the three agree, or the numbers of rows and frames differ.
    """
    if rows_s is not None:
        rows_s = _checked_rows_s(rows_s, len(shown_s))
    if len(shown_s) < 2:
        return shown_s
    took_s = float(shown_s[-1])
    stated_s = (len(shown_s) - 1) / fps if fps else None
    if rows_s is None:
        if stated_s is not None and _differ(took_s, stated_s):
            raise _disagreement(shown_s, None, fps)
        return shown_s
    frame_s = took_s / (len(shown_s) - 1)
    agree = float(np.abs(rows_s - shown_s).max()) <= _CLEAR_SHARE * frame_s
    known_s = took_s if agree else float(rows_s[-1])
    other_s = stated_s if stated_s is not None else took_s
    if _differ(known_s, other_s):
        raise _disagreement(shown_s, rows_s, fps)
    # LeRobot means the rows' times; the video's are the same ones where they agree.
    return shown_s if agree else rows_s


def _checked_rows_s(rows_s: Doubles, frames: int) -> Doubles:
    if len(rows_s) != frames:
        raise ClipRejected(
            "decode", f"the episode's table has {len(rows_s)} rows, its video {frames} frames"
        )
    gaps = np.diff(rows_s)
    if not np.isfinite(rows_s).all() or (gaps <= 0).any():
        wrong = ~np.isfinite(rows_s)
        wrong[1:] |= ~(gaps > 0)
        at = int(wrong.argmax())
        raise ClipRejected(
            "decode", f"the rows' timestamp does not rise: {rows_s[at]:g} s at frame {at}"
        )
    return rows_s - rows_s[0]


def _differ(a_s: float, b_s: float) -> bool:
    return abs(a_s - b_s) > _RATES_DIFFER * max(a_s, b_s)


def _disagreement(shown_s: Doubles, rows_s: Doubles | None, fps: float) -> ClipRejected:
    frames = len(shown_s)
    parts = [f"{shown_s[-1]:.3f} s by its video"]
    if rows_s is not None:
        parts.append(f"{rows_s[-1]:.3f} s by the rows' timestamp")
    if fps:
        parts.append(f"{(frames - 1) / fps:.3f} s by info.json (fps {fps:g})")
    reason = f"the episode's {frames} frames last {', '.join(parts)}"
    return ClipRejected("decode", reason)
