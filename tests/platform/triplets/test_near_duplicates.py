"""Copies of a video are found across the splits, and other episodes of its scene are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from triplet_recordings import textured, write_video

from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.near_duplicates import Look, near_duplicates
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.publish import Outcome
from dynaflip.platform.triplets.report.copies import copies_across
from dynaflip.platform.triplets.report.inspection import inspect_folder, inspection_lines
from dynaflip.platform.triplets.schema import read_manifest
from dynaflip.platform.triplets.split import split_in
from dynaflip.platform.triplets.thumbnails import encode_thumbnails, thumbnail_frames

EPISODES, FRAMES = 12, 30


def episode(number: int) -> np.ndarray:
    """(30, 120, 160, 3): in one scene, a square goes another way to one of other places."""
    rng = np.random.default_rng(number)
    x0, y0, x1, y1 = rng.uniform([5, 5, 75, 40], [60, 75, 110, 75])
    bend = rng.uniform(-25, 25)
    ground, square = textured(120, 160, 1), textured(36, 36, 2)
    out = np.repeat(ground[None], FRAMES, axis=0)
    for n, share in enumerate(np.linspace(0, 1, FRAMES)):
        x = round(x0 + (x1 - x0) * share)
        y = int(np.clip(y0 + (y1 - y0) * share + bend * np.sin(np.pi * share), 0, 84))
        out[n, y : y + 36, x : x + 36] = square
    return out


def look(number: int, frames: np.ndarray, split: str, source: str, fps: float = 30) -> Look:
    chosen = thumbnail_frames(np.arange(len(frames)) / fps)
    thumbnails = encode_thumbnails([frames[i] for i in chosen])
    return Look(f"{source} {number}", source, split, thumbnails)


def compressed(frames: np.ndarray, folder: Path) -> np.ndarray:
    """Three quarters as large, and compressed until it shows."""
    path = folder / "compressed.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 120, 90, "yuv420p"
        stream.options = {"crf": "26"}
        for frame in frames:
            small = cv2.resize(frame, (120, 90), interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


COPIES: dict[str, Callable[[np.ndarray, Path], np.ndarray]] = {
    "compressed": compressed,
    "darker": lambda frames, _: (frames * 0.7).astype(np.uint8),
    "cropped all round": lambda frames, _: frames[:, 10:-10, 12:-12],
    "cropped to a corner": lambda frames, _: frames[:, :108, :144],
    "larger": lambda f, _: np.stack([cv2.resize(x, None, fx=2, fy=2) for x in f]),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found_and_other_episodes_of_the_scene_are_not(
    kind: str, tmp_path: Path
) -> None:
    episodes = [episode(number) for number in range(EPISODES)]
    looks = [look(n, frames, "train", "bridge") for n, frames in enumerate(episodes)]
    copied = (2, 5, 11)
    looks += [look(n, COPIES[kind](episodes[n], tmp_path), "heldout", "copy") for n in copied]
    looks += [look(n, episode(100 + n), "heldout", "bridge") for n in range(4)]
    pairs = near_duplicates(looks, lambda a, b: a.split != b.split)
    assert pairs == [(n, EPISODES + i) for i, n in enumerate(copied)]
    (line,) = copies_across(looks, EPISODES).lines()
    assert line.startswith("held-out clips with a near copy in train: 3 of 7 (copy ↔ bridge: 3);")
    (sampled,) = copies_across(looks, 10 * EPISODES).lines()
    assert "12 of 120 training clips: reckon with 10 times as many" in sampled


def test_cameras_of_a_recording_and_unwanted_pairs_are_left_out() -> None:
    frames = episode(0)
    same = [look(0, frames, "train", "bridge")] * 2
    assert near_duplicates(same) == []
    both = [look(n, frames, "train", "bridge") for n in range(2)]
    assert near_duplicates(both) == [(0, 1)]
    assert near_duplicates(both, lambda a, b: a.split != b.split) == []
    assert near_duplicates(both[:1]) == []


def test_clips_without_motion_or_contrast_are_no_copies() -> None:
    still = np.repeat(episode(0)[:1], FRAMES, axis=0)
    black = np.zeros_like(still)
    for frames in (still, black):
        assert near_duplicates([look(n, frames, "train", "bridge") for n in range(3)]) == []


@pytest.fixture
def two_sources(tmp_path: Path, in_process: None, in_order: None) -> Callable[..., Outcome]:
    """Make the triplets of numbered videos and of cropped copies of them, half of all held out."""

    def make(numbers: range, **values: bool) -> Outcome:
        changes = (("bridge", lambda f: f), ("bridge_copy", lambda f: f[:, 8:-8, 8:-8]))
        for source, change in changes:
            for n in numbers:
                path = tmp_path / source / f"{n}.mp4"
                if not path.exists():
                    write_video(path, change(episode(n)))
        sources = tuple(
            SourceConfig(path=str(tmp_path / name), caption_template="push {name}")
            for name in ("bridge", "bridge_copy")
        )
        config = PreprocessConfig(
            sources=sources, depth="plane", draws_per_clip=1, heldout_share=0.5, example_images=0
        )
        return preprocess(replace(config, **values), str(tmp_path / "out"))

    return make


def sides(outcome: Outcome) -> dict[tuple[str, str], str]:
    """The split of each video of each source."""
    rows = inspect_folder(str(outcome.folder)).rows.unique(["source", "caption", "split"])
    columns = (rows[name].to_list() for name in ("source", "caption", "split"))
    return {(source, caption): split for source, caption, split in zip(*columns, strict=True)}


def test_copies_are_joined_on_a_whole_rebuild_and_later_ones_only_told_of(
    two_sources: Callable[..., Outcome],
) -> None:
    apart = two_sources(range(5))
    hashed = sides(apart)
    crossing = {c for _, c in hashed if hashed["bridge", c] != hashed["bridge_copy", c]}
    assert crossing
    (line,) = (s for s in inspection_lines(inspect_folder(str(apart.folder))) if "near copy" in s)
    assert f"near copy in train: {len(crossing)} of" in line
    assert "↔" in line
    joined = two_sources(range(5), join_near_duplicates=True)
    together = sides(joined)
    assert all(together["bridge", c] == together["bridge_copy", c] for _, c in together)
    changed = {key for key in hashed if hashed[key] != together[key]}
    assert {c for _, c in changed} == crossing
    assert len(changed) == len(crossing)  # one of two moves to the other
    manifest = read_manifest(str(joined.folder))
    splits = {s["recording_id"]: s["split"] for s in summaries(joined)}
    assert all(split_in(manifest, name) == split for name, split in splits.items())
    assert len(manifest["moved_recordings"]) == len(crossing)
    assert joined.digest != apart.digest
    grown = two_sources(range(7), join_near_duplicates=True)
    after = sides(grown)
    assert {key: after[key] for key in together} == together
    assert read_manifest(str(grown.folder))["moved_recordings"] == manifest["moved_recordings"]


def summaries(outcome: Outcome) -> list[dict[str, str]]:
    assert isinstance(outcome.folder, Path)
    texts = [path.read_text() for path in (outcome.folder / "done").glob("part-*.json")]
    return [clip for text in texts for clip in json.loads(text)["clips"]]
