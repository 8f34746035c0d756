"""Near-duplicates: which copies are found, how often other episodes are taken for them, and time.

    python tests/benchmarks/near_copies.py [--data FOLDER] [--clips 20000]

Each recording of a simulated data set (``make demo`` makes one) is copied in several ways, and the
copies are looked for among the originals. False ones are pairs of different episodes, all of one
task in one scene. Time is that of many made-up clips, a quarter and all of them: of the search for
candidates, which every clip takes part in, and of the comparisons. Made-up clips come so near to
each other that candidates are found by their number squared, up to the bound of two comparisons a
clip; and no more than 20,000 clips of a set are looked at.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from expectation import show

from dynaflip.platform.paths import default_data
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.near_duplicates import Look, near_duplicates
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource
from dynaflip.platform.triplets.thumbnails import (
    decode_thumbnails,
    encode_thumbnails,
    thumbnail_frames,
)

Frames = np.ndarray  # (N, H, W, 3) uint8


def compressed(frames: Frames) -> Frames:
    """At 112 pixels and H.264's quality 32."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        stream.options = {"crf": "32"}
        for frame in frames:
            small = cv2.resize(frame, (112, 112), interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def cropped(left: float, upper: float, right: float, lower: float) -> Callable[[Frames], Frames]:
    """Without these shares of each side."""

    def crop(frames: Frames) -> Frames:
        height, width = frames.shape[1:3]
        rows = slice(round(upper * height), height - round(lower * height))
        return frames[:, rows, round(left * width) : width - round(right * width)]

    return crop


COPIES: dict[str, Callable[[Frames], Frames]] = {
    "compressed": compressed,
    "another brightness": lambda frames: (frames * 0.8 + 20).astype(np.uint8),
    "cropped by 5 % a side": cropped(0.05, 0.05, 0.05, 0.05),
    "cropped by 10 % a side": cropped(0.1, 0.1, 0.1, 0.1),
    "cropped to a corner": cropped(0, 0, 0.1, 0.1),
    "a third of the frames": lambda frames: frames[1::3],
}


def look(name: str, frames: Frames, split: str) -> Look:
    """A clip's look."""
    chosen = thumbnail_frames(np.arange(len(frames)).astype(np.float64))
    return Look(name, split, split, encode_thumbnails([frames[i] for i in chosen]))


def across(a: Look, b: Look) -> bool:
    """Whether two clips are of different splits."""
    return a.split != b.split


def seconds_of(originals: Sequence[Look], clips: int) -> tuple[float, float]:
    """CPU time of search and of comparisons among made-up clips.

    Each is two recordings mixed and moved; a fifth of them are held out.
    """
    rng = np.random.default_rng(0)
    shown = [decode_thumbnails(one.thumbnails) for one in originals]
    looks = []
    for n in range(clips):
        a, b = (shown[i] for i in rng.integers(len(shown), size=2))
        share = rng.uniform(0.3, 0.7)
        shift = np.array([[1, 0, 0], [0, 1, 0]]) + rng.normal(size=(2, 3)) * [0.05, 0.05, 4]
        mixed = [
            cv2.warpAffine(f, shift, f.shape[::-1], borderMode=cv2.BORDER_REFLECT)
            for f in share * a + (1 - share) * b
        ]
        frames = np.repeat((np.stack(mixed)[..., None] * 255).astype(np.uint8), 3, axis=-1)
        split = "train" if n % 5 else "heldout"
        looks.append(Look(str(n), split, split, encode_thumbnails(list(frames))))
    times_s = [time.process_time()]
    for wanted in (lambda a, b: False, across):
        near_duplicates(looks, wanted)
        times_s.append(time.process_time())
    search_s, all_s = np.diff(times_s)
    return float(search_s), float(all_s - search_s)


def main() -> None:
    """Print which copies are found, false ones, and the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=str(default_data()))
    parser.add_argument("--clips", type=int, default=20_000)
    args = parser.parse_args()
    source = LeRobotSource(SourceConfig(path=args.data))
    clips = [clip for clip in source.list_clips() if clip.problem is None]
    films, looks = [], []
    for clip in clips:
        recording = source.open(clip)
        films.append(recording.read_frames(list(range(len(recording.times_s()))), 1000))
        looks.append(look(clip.recording_id, films[-1], "train"))
    for kind, change in COPIES.items():
        copies = [look(f"copy {n}", change(film), "heldout") for n, film in enumerate(films)]
        found = near_duplicates([*looks, *copies], across)
        true = sum(b - a == len(looks) for a, b in found)
        print(f"{kind:<24} {true} of {len(copies)} found, {len(found) - true} others with them")
    tasks = [clip.task for clip in clips]
    pairs = sum(a == b for n, a in enumerate(tasks) for b in tasks[:n])
    print(f"{'different episodes':<24} {len(near_duplicates(looks))} of {pairs} pairs of one task")
    searched_s = []
    for number in (args.clips // 4, args.clips):
        search_s, compare_s = seconds_of(looks, number)
        searched_s.append(search_s)
        print(f"{number:,} clips: search {search_s:.1f} CPU s, comparisons {compare_s:.1f}")
    show("search among 4 times as many clips", searched_s[1] / searched_s[0] / 4, at_most=1.25)


if __name__ == "__main__":
    main()
