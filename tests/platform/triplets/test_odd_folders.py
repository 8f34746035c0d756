"""Odd videos and captions in a folder: read, or a reason that a person can act on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from odd_folders import (
    CONTAINERS,
    DEPTH_REASONS,
    KINDS,
    READ,
    REASONS,
    write_container,
)
from odd_lerobot import brightness, number
from triplet_recordings import numbered, write_video

from dynaflip.errors import UserError
from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.clip_reader import ClipReader
from dynaflip.platform.triplets.clips import Clip, ClipRejected, Floats
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.flow.config import TrackConfig
from dynaflip.platform.triplets.sources import video
from dynaflip.platform.triplets.sources.captions import read_captions
from dynaflip.platform.triplets.sources.formats import Mix, open_sources
from dynaflip.platform.triplets.windows import Transition

HEADER = "file,caption,depth,start_s,end_s"


def mix_of(root: Path, **values) -> Mix:
    return open_sources(PreprocessConfig(source=SourceConfig(path=str(root), **values)))


def odd_clip(folder: Path, kind: str) -> tuple[Mix, Clip]:
    """A folder with a good video and one of a kind."""
    write_video(folder / "good.mp4", numbered(12))
    line = KINDS[kind](folder, 7)
    lines = [HEADER, "good.mp4,wait", line if "," in line else f"{line},push the square"]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    mix = mix_of(folder)
    clips = [clip for clip in list(mix.list_clips()) if clip.path != "good.mp4"]
    return mix, clips[-1]


@pytest.mark.parametrize("kind", READ)
def test_a_kind_is_read(kind: str, tmp_path: Path) -> None:
    mix, clip = odd_clip(tmp_path, kind)
    recording = mix.open(clip)
    times_s = recording.times_s()
    assert len(times_s) == 40
    assert times_s[-1] == pytest.approx(39 / 30, abs=0.01)
    frames = recording.read_frames([0, 39], 120)
    assert frames.shape[1:] == (120, 160, 3)
    assert clip.captions[0] in ("push the square", "把杯子放到盘子上")


@pytest.mark.parametrize("kind", REASONS)
def test_a_kind_is_rejected_with_its_reason(kind: str, tmp_path: Path) -> None:
    mix, clip = odd_clip(tmp_path, kind)
    said = REASONS[kind]
    with pytest.raises(ClipRejected) as caught:
        mix.open(clip).times_s()
    parts = said.split("|")
    assert any(_is_said(part, caught.value.reason) for part in parts), caught.value.reason


def _is_said(part: str, reason: str) -> bool:
    import re

    return part in reason or bool(re.search(part, reason))


@pytest.mark.parametrize("kind", DEPTH_REASONS)
def test_depth_of_another_unit_is_rejected(kind: str, tmp_path: Path) -> None:
    mix, clip = odd_clip(tmp_path, kind)
    window = Transition(0, 6, (0, 1, 2, 3, 6), 0, 0)
    recording = mix.open(clip)
    times_s = recording.times_s()
    with pytest.raises(ClipRejected, match=DEPTH_REASONS[kind]) as caught:
        ClipReader(recording, PreprocessConfig(), [window], times_s, None)
    assert caught.value.stage == "depth"


def test_depth_is_read_and_reduced_some_frames_at_a_time(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(50, 96, 128))
    depth_m = np.random.default_rng(0).uniform(1, 3, (50, 480, 640)).astype(np.float32)
    depth_m[40, :90] = np.nan  # too few to be rejected for, at full size
    np.save(tmp_path / "a.npy", depth_m)
    (tmp_path / "captions.csv").write_text("file,caption,depth\na.mp4,push,a.npy\n")
    mix = mix_of(tmp_path)
    recording = mix.open(next(iter(mix.list_clips())))
    asked: list[int] = []
    read = recording.read_depth_m

    def counted(indices: list[int]) -> Floats | None:
        asked.append(len(indices))
        return read(indices)

    recording.read_depth_m = counted  # type: ignore[method-assign]
    config = PreprocessConfig(track=TrackConfig(min_frame_gap_s=0.0))
    window = Transition(0, 48, (0, 1, 2, 3, 48), 0, 0)
    reader = ClipReader(recording, config, [window], recording.times_s(), None)
    assert max(asked) <= 32 < sum(asked)
    indices = reader.windows[window]
    small_m, scale = reader.depth_m(indices, reader.tracked_frames(indices))
    assert small_m is not None
    assert scale == "metric"
    size = (small_m.shape[2], small_m.shape[1])
    whole = [cv2.resize(depth_m[i], size, interpolation=cv2.INTER_NEAREST_EXACT) for i in indices]
    np.testing.assert_array_equal(small_m, np.stack(whole))
    np.save(tmp_path / "a.npy", np.where(np.arange(480)[:, None] < 400, np.nan, depth_m))
    with pytest.raises(ClipRejected, match="83% of the pixels of frame 0 hold no depth"):
        ClipReader(recording, config, [window], recording.times_s(), None)


@pytest.mark.parametrize("ending", CONTAINERS)
def test_a_part_in_the_middle_of_a_long_video_has_its_own_frames(
    ending: str, tmp_path: Path
) -> None:
    frames = np.concatenate([brightness(25)] * 8)  # 200 frames, numbered 0…24 again and again
    frames = np.repeat(np.repeat(frames, 3, axis=1), 3, axis=2)
    path = write_container(tmp_path / f"long{ending}", frames, *CONTAINERS[ending])
    whole = video.read_timeline(path)
    assert len(whole.pts) == 200
    part = video.read_timeline(path, 110 / 30, 120 / 30, from_beginning=True)
    shown = video.read_frames(path, part, list(range(len(part.pts))), 96)
    assert [number(frame) for frame in shown] == [(110 + k) % 25 for k in range(10)]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file,caption\na.mp4,öffne es\n", "utf-8-sig"),
        ("file,caption\na.mp4,öffne es\n", "utf-16"),
        ("file;caption\na.mp4;öffne es\n", "utf-8"),
        ("file\tcaption\na.mp4\töffne es\n", "utf-16"),
        ("File,Caption\r\na.mp4,öffne es\r\n", "utf-8"),
        (' FILE , CAPTION \n"a.mp4", "öffne es"\n', "utf-8"),
    ],
)
def test_tables_are_read_as_programs_write_them(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(text.encode(encoding))
    (row,) = read_captions(path)
    assert (row.file, row.caption, row.problem) == ("a.mp4", "öffne es", "")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "needs the columns file and caption"),
        ("file,caption\na.mp4,open\n".encode("utf-16-le"), "zero bytes"),
        (b"\xff\xfe\x00", "begins as UTF-16 and is not"),
        (b'file,caption\na.mp4,"open it\nb.mp4,close it\n', "a quote is opened and never closed"),
        (b"name,text\na.mp4,open\n", "has name, text"),
        (b"", "needs the columns file and caption, has none"),
    ],
)
def test_tables_that_cannot_be_meant_are_one_line(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(data)
    with pytest.raises(UserError, match=said) as caught:
        read_captions(path)
    assert "\n" not in str(caught.value)


def test_a_pointer_as_a_table_says_so(tmp_path: Path) -> None:
    for name in ("captions.parquet", "captions.jsonl"):
        path = tmp_path / name
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(UserError, match=r"Git LFS pointer|is not a JSON object"):
            read_captions(path)


def test_what_lies_there_is_said_where_nothing_is_read(tmp_path: Path) -> None:
    for name in ("a.hdf5", "b.hdf5", "c.zip"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"found 2 \.hdf5, 1 \.zip"):
        mix_of(tmp_path)


def test_a_program_in_typescript_is_no_video(tmp_path: Path) -> None:
    write_video(tmp_path / "good.mp4", numbered(12))
    (tmp_path / "index.ts").write_text("export {}\n")
    (tmp_path / "captions.csv").write_text("file,caption\ngood.mp4,wait\n")
    assert [clip.path for clip in mix_of(tmp_path).list_clips()] == ["good.mp4"]


def test_narrations_of_no_time_are_rejected(tmp_path: Path) -> None:
    import json

    good = {"narration_text": "#C C waits", "timestamp_sec": 1.0}
    told = {
        "good": ("#C C waits", 1.0, ""),
        "negative": ("#C C waits", -3, "a narration '#C C waits' at -3.0 s"),
        "wordless": (None, 1.5, "a narration None at 1.5 s"),
        "endless": ("#C C waits", float("inf"), "a narration '#C C waits' at inf s"),
        "timeless": ("#C C waits", None, "a narration without text or time"),
        "late": ("#C C waits", 500, "no frame in its time (499.5 to 500.5 s)"),
    }
    content = {}
    for n, (name, (text, moment_s, _)) in enumerate(told.items()):
        write_video(tmp_path / f"{name}.mp4", numbered(60 + n))
        bad = {"narration_text": text, "timestamp_sec": moment_s}
        content[name] = {"narration_pass_1": {"narrations": [good, bad] if n else [good]}}
    (tmp_path / "narration.json").write_text(json.dumps(content), encoding="utf-8-sig")
    mix = mix_of(tmp_path, narration_s=1.0)
    reasons: dict[str, list[str]] = {name: [] for name in told}
    for clip in mix.list_clips():
        name = Path(clip.path).stem
        try:
            mix.open(clip).times_s()
            reasons[name].append("")
        except ClipRejected as rejection:
            reasons[name].append(rejection.reason)
    for name, (_, _, said) in told.items():
        # The good narration of the same video is read, and is no cover for the bad one.
        expected = ["", said] if said else [""]
        assert len(reasons[name]) == len(expected)
        for reason, part in zip(sorted(reasons[name]), expected, strict=True):
            assert (part in reason) if part else not reason


@pytest.mark.parametrize("shape", [(2, 2), (2, 40), (40, 2)])
def test_images_of_few_pixels_are_rejected_for_a_reason(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (30, *shape, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames)
    (tmp_path / "captions.csv").write_text("file,caption\na.mp4,push\n")
    source = SourceConfig(path=str(tmp_path))
    config = PreprocessConfig(source=source, depth="plane", draws_per_clip=1)
    mix = open_sources(config)
    (clip,) = mix.list_clips()
    with pytest.raises(ClipRejected, match="no window is left"):
        clip_table(clip, mix.open(clip), config)
