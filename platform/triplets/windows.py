"""Which frames of a clip become transitions: R3M's rule and our flow window.

R3M (arXiv 2203.12601): one frame from the first tenth of the clip, one from the
last tenth, three in between, in order of time. Neighbours are the transitions.
The paper leaves the length of a transition open; a tracker does not bear seconds,
so the flow is followed for ``min(gap, flow_window_s)``.

R3M's clips last seconds. Drawn from a video of minutes, its five frames would be minutes apart and
a quarter of all windows would lie in its first tenth; and it would give no more windows than a clip
of a second. So a long clip is divided into segments (``segment_s``), each drawn from like a clip.

Two draws of a clip often share a frame t, and their windows then usually end on the same frame:
equal images and equal flow. Such twins are stored once, because as each other's negatives they
would be pushed apart. The first draw's transition stays, with its own five frames and caption;
the later draw's five frames still come with its other transitions.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass

import numpy as np

from dynaflip.platform.triplets.clips import ClipRejected, Doubles
from dynaflip.platform.triplets.schema import R3M_FRAMES

_EDGE_SHARE = 0.1


@dataclass(frozen=True)
class Transition:
    """Frame indices of one triplet.

    Args:
        start: frame t.
        end: last frame of the flow window.
        r3m: the five frames of the draw; ``r3m[position]`` is ``start``.
        position: 0…3.
        draw: number of the draw.
    """

    start: int
    end: int
    r3m: tuple[int, ...]
    position: int
    draw: int

    @property
    def r3m_next(self) -> int:
        """R3M's second frame of the pair."""
        return self.r3m[self.position + 1]


def draw_r3m(frames: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Five distinct frame indices, ascending, by R3M's rule.

    Raises:
        ClipRejected: fewer frames than five.
    """
    if frames < R3M_FRAMES:
        count = "one frame" if frames == 1 else f"{frames} frames"
        raise ClipRejected("sample", f"only {count}; at least five are needed")
    edge = max(1, int(frames * _EDGE_SHARE))
    first = int(rng.integers(0, edge))
    last = int(rng.integers(frames - edge, frames))
    between = rng.choice(np.arange(first + 1, last), size=R3M_FRAMES - 2, replace=False)
    return (first, *sorted(int(i) for i in between), last)


def segments(times_s: Doubles, segment_s: float, most: int) -> list[tuple[int, int]]:
    """Equal segments of a clip: (first frame, number of frames) each, in order of time.

    Args:
        times_s: (N,) time of every frame, ascending.
        segment_s: least length of a segment; 0: the whole clip is one.
        most: of them.

    Returns:
        At least one; where there are several, those without five frames (of uneven video) are
        left out.
    """
    whole = [(0, len(times_s))]
    length_s = times_s[-1] - times_s[0]
    count = min(most, int(length_s / segment_s + 1e-6)) if segment_s > 0 else 1
    if count < 2:
        return whole
    inner_s = times_s[0] + np.arange(1, count) / count * length_s
    ends = [0, *np.searchsorted(times_s, inner_s).tolist(), len(times_s)]
    spans = [(begin, end - begin) for begin, end in itertools.pairwise(ends)]
    return [span for span in spans if span[1] >= R3M_FRAMES] or whole


def sample_transitions(
    times_s: Doubles,
    clip_id: str,
    *,
    draws: int,
    flow_window_s: float,
    min_window_s: float,
    seed: int,
    image_pair: str = "window",
    segment_s: float = 0.0,
    max_segments: int = 1,
) -> list[Transition]:
    """Draw transitions of a clip; the same clip and seed give the same ones, and each comes once.

    Args:
        times_s: (N,) time of every frame, ascending.
        clip_id: content hash, seeds the draw.
        draws: times the five frames are drawn from each segment.
        flow_window_s: longest window.
        min_window_s: shorter transitions are left out.
        seed: beside the content.
        image_pair: which second image the pair has, ``window`` or ``r3m``: see PreprocessConfig.
        segment_s: least length of a segment; 0: the whole clip is one.
        max_segments: most segments.

    Raises:
        ClipRejected: too few frames, or every transition is too short.
    """
    material = hashlib.sha256(f"{seed}:{clip_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(material[:16], "big"))
    found: dict[tuple[int, ...], Transition] = {}  # by the frames of images and flow
    spans = segments(times_s, segment_s, max_segments)
    for draw, (first, frames) in enumerate(span for span in spans for _ in range(draws)):
        r3m = tuple(first + i for i in draw_r3m(frames, rng))
        for position, start in enumerate(r3m[:-1]):
            gap_s = min(times_s[r3m[position + 1]] - times_s[start], flow_window_s)
            # The last frame that is shown within the window.
            end = int(np.searchsorted(times_s, times_s[start] + gap_s + 1e-6, side="right")) - 1
            if end - start < 2 or times_s[end] - times_s[start] < min_window_s - 1e-6:
                continue
            transition = Transition(start, end, r3m, position, draw)
            second = transition.r3m_next if image_pair == "r3m" else end
            found.setdefault((start, end, second), transition)
    if not found and 2 * np.median(np.diff(times_s)) > flow_window_s + 1e-6:
        raise ClipRejected(
            "sample",
            f"the window of {flow_window_s:g} s holds fewer than three frames; raise "
            f"flow_window_s, or source.flow_window_s for this source alone",
        )
    if not found:
        raise ClipRejected(
            "sample",
            f"no transition of at least {min_window_s} s in {times_s[-1] - times_s[0]:.2f} s",
        )
    return list(found.values())
