"""Mistakes in tables of captions, and settings that say what captions and cameras to take."""

from __future__ import annotations

import datetime
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from triplet_recordings import (
    moving_square,
    numbered,
    write_late_video,
    write_lerobot,
    write_video,
)

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clips import Clip, ClipRejected
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.models.captioner import LoadedCaptioner, caption_clips
from dynaflip.platform.triplets.sources.captions import CaptionRow, read_captions
from dynaflip.platform.triplets.sources.folder import FolderSource
from dynaflip.platform.triplets.sources.formats import open_source, open_sources


def clips_of(folder: Path, **values) -> list[Clip]:
    source = SourceConfig(path=str(folder), **values)
    return list(open_sources(PreprocessConfig(source=source)).list_clips())


def test_a_comma_without_quotes_is_reported(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_video(tmp_path / f"{name}.mp4", moving_square(6, step_px=1 + ord(name) / 50))
    (tmp_path / "captions.csv").write_text(
        "file,caption\na.mp4,pick up the cup, then pour\n"
        'b.mp4,"pick up the cup, then pour"\nc.mp4,push,\n'
    )
    first, second, third = clips_of(tmp_path)
    assert first.problem is not None
    assert first.problem[0] == "list"
    assert "row 1 of captions.csv: has more cells than the first row" in first.problem[1]
    assert second.captions == ("pick up the cup, then pour",)
    assert third.captions == ("push",)  # an empty cell is no loss


@pytest.mark.parametrize("column", ["caption", "task", "camera", "recording", "licence"])
def test_text_that_is_not_utf8_is_reported(tmp_path: Path, column: str) -> None:
    write_video(tmp_path / "a.mp4", moving_square(6))
    write_video(tmp_path / "b.mp4", moving_square(6, step_px=2))
    row = {"file": "a.mp4", "caption": "push", column: "é"}
    lines = [",".join(row), ",".join(row.values()), "b.mp4,push"]
    (tmp_path / "captions.csv").write_bytes("\n".join(lines).encode("latin-1"))
    first, second = clips_of(tmp_path)
    assert first.problem == ("list", f"row 1 of captions.csv: the {column} is not UTF-8")
    assert second.problem is None
    json.dumps([vars(first)], ensure_ascii=False).encode()  # nothing that no table can hold


def test_a_name_in_another_encoding_names_no_video(tmp_path: Path) -> None:
    for name in ("café", "b"):
        write_video(tmp_path / f"{name}.mp4", moving_square(6, step_px=len(name)))
    lines = "file,caption\ncafé.mp4,push\nb.mp4,push\n"
    (tmp_path / "captions.csv").write_bytes(lines.encode("latin-1"))
    problems = [clip.problem and clip.problem[0] for clip in clips_of(tmp_path)]
    assert sorted(problems, key=str) == [None, "caption", "list"]


def test_lines_of_json_may_hold_unicodes_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    rows = [{"file": "a.mp4", "caption": "push\u2028it"}, {"file": "b.mp4", "caption": "\x85"}]
    path.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert [row.caption for row in read_captions(path)] == ["push\u2028it", ""]


def test_times_of_a_caption_count_from_the_videos_beginning(tmp_path: Path) -> None:
    write_late_video(tmp_path / "late.mkv")
    (tmp_path / "captions.csv").write_text(
        f"file,caption,start_s,end_s\nlate.mkv,push,{20 / 30},{35 / 30}\n"
    )
    source = open_source(SourceConfig(path=str(tmp_path)))
    recording = source.open(next(iter(source.list_clips())))
    assert len(recording.times_s()) == 15
    shown = recording.read_frames([0, 14], 96).mean(axis=(1, 2, 3))
    assert [round((level - 20) / 4) for level in shown] == [20, 34]


def test_a_camera_of_a_folder_can_be_chosen(tmp_path: Path) -> None:
    for number, name in enumerate(("left", "right")):
        write_video(tmp_path / f"{name}.mp4", moving_square(6, step_px=1 + number))
    (tmp_path / "captions.csv").write_text(
        "file,caption,camera\nleft.mp4,push,left\nright.mp4,push,right\n"
    )
    assert [clip.path for clip in clips_of(tmp_path, cameras=("right",))] == ["right.mp4"]
    with pytest.raises(UserError, match=r"source\.cameras: .* no camera top; it has left, right"):
        clips_of(tmp_path, cameras=("top",))


def test_a_template_serves_episodes_without_task(tmp_path: Path) -> None:
    episodes = [{"top": numbered(20 + n, 48, 64)} for n in range(2)]
    root = write_lerobot(tmp_path / "robot_set", episodes, ["", "close it"])
    first, second = clips_of(root, caption_template="done in {source}")
    assert (first.captions, first.caption_kind) == (("done in robot set",), "template")
    assert first.caption_group == first.task == "done in robot set"
    assert first.problem is None
    assert (second.captions, second.caption_kind) == (("close it",), "source")
    recording = open_source(SourceConfig(path=str(root))).open(first)
    assert recording.caption_at(3, 1) == "done in robot set"


def test_a_captions_file_is_an_error_for_formats_with_their_own(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "set", [{"top": numbered(20, 48, 64)}], ["open it"])
    table = tmp_path / "mine.csv"
    table.write_text("file,caption\n")
    source = SourceConfig(path=str(root), captions=str(table))
    with pytest.raises(UserError, match=r"source\.captions: .* is read as lerobot"):
        open_source(source)
    write_video(tmp_path / "films" / "a.mp4", moving_square(6))
    (tmp_path / "films" / "narration.json").write_text("{}")
    with pytest.raises(UserError, match=r"source\.captions: .* is read as ego4d"):
        open_source(replace(source, path=str(tmp_path / "films")))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (["pick up", "grab"], "caption is a list, not text; give a row a phrasing"),
        ({"en": "pick up"}, "caption is an object, not text"),
        (7, "caption is a number, not text"),
        (True, "caption is true or false, not text"),
    ],
)
def test_a_caption_that_is_no_text_is_set_aside(tmp_path: Path, value: object, said: str) -> None:
    path = tmp_path / "captions.jsonl"
    rows = [{"file": "a.mp4", "caption": value}, {"file": "a.mp4", "caption": "grab"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_captions(path)
    assert (first.caption, first.problem) == ("", f"row 1 of captions.jsonl: {said}")
    assert (second.caption, second.problem) == ("grab", "")


def test_values_of_parquet_are_read_as_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    times = pa.array([datetime.timedelta(seconds=1.5), None], pa.duration("us"))
    pq.write_table(
        pa.table(
            {
                "file": ["a.mp4", "b.mp4"],
                "caption": pa.array([["pick up"], None], pa.list_(pa.string())),
                "recording": [3, 4],
                "camera": [float("nan"), float("nan")],
                "start_s": times,
                "end_s": [datetime.time(0, 0, 2), None],
            }
        ),
        path,
    )
    first, second = read_captions(path)
    assert first.problem == "row 1 of captions.parquet: end_s is not a time in seconds"
    assert (first.start_s, first.recording, first.camera, first.caption) == (1.5, "3", "", "")
    assert (second.recording, second.problem) == ("4", "")


@pytest.mark.parametrize("value", [[1.0], {"s": 1}, True, 10**400])
def test_a_time_that_is_no_number_is_set_aside(tmp_path: Path, value: object) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"file": "a.mp4", "caption": "push", "start_s": value}))
    (row,) = read_captions(path)
    assert row.problem == "row 1 of captions.jsonl: start_s is not a time in seconds"


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"file": ["a.mp4", "b.mp4"], "caption": "push"}))
    with pytest.raises(UserError, match="row 1: file is a list, not text"):
        read_captions(path)


def test_a_row_that_cannot_be_used_is_a_rejection_of_its_own(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(6))
    (tmp_path / "captions.csv").write_text(
        "file,caption,start_s,end_s\na.mp4,push,,\na.mp4,pull,0:10,0:20\n"
    )
    good, bad = clips_of(tmp_path)
    assert bad.problem == ("list", "row 2 of captions.csv: end_s is not a time in seconds")
    assert (good.captions, good.problem) == (("push",), None)


@pytest.mark.parametrize("column", ["task", "recording", "camera", "licence", "depth"])
def test_phrasings_that_disagree_are_rejected_with_both(tmp_path: Path, column: str) -> None:
    write_video(tmp_path / "a.mp4", moving_square(6))
    values = ("", "one.npy", "two.npy") if column == "depth" else ("", "one", "two")
    lines = [f"a.mp4,push {n},{value}" for n, value in enumerate(values)]
    table = tmp_path / "captions.csv"
    table.write_text("\n".join([f"file,caption,{column}", *lines]))
    (clip,) = clips_of(tmp_path)
    said = f"its captions have {column} {values[1]!r} and {column} {values[2]!r}: leave one"
    assert clip.problem == ("list", said)
    table.write_text("\n".join([f"file,caption,{column}", *lines[:2]]))
    (clip,) = clips_of(tmp_path)
    assert clip.problem is None
    assert len(clip.captions) == 2  # an empty cell says nothing against the other row's
    if column != "recording":
        assert values[1] in (clip.task, clip.camera, clip.licence, clip.extra)


def test_two_segments_of_one_video_are_of_one_recording(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(30))
    (tmp_path / "captions.csv").write_text(
        "file,caption,recording,start_s,end_s\na.mp4,push,one,0,0.4\na.mp4,pull,two,0.4,0.9\n"
    )
    for clip in clips_of(tmp_path):
        assert clip.problem is not None
        assert "recording 'one' and recording 'two'" in clip.problem[1]


def test_names_of_missing_videos_are_looked_up_and_not_searched() -> None:
    class Counted(str):
        compared = 0

        def __lt__(self, other: str) -> bool:
            Counted.compared += 1
            return str.__lt__(self, other)

        def startswith(self, *args: object) -> bool:
            Counted.compared += 1
            return str.startswith(self, *args)  # type: ignore[arg-type]

    source = object.__new__(FolderSource)
    source.name, source.config = "films", SourceConfig(path="films")
    names = [Counted(f"film{n:05d}.mp4") for n in range(3000)]
    rows = [CaptionRow(f"film{n:05d}") for n in range(3000)]
    clips = source._strays(rows, list(names))
    assert all(c.problem and f"is {c.path}.mp4 meant" in c.problem[1] for c in clips)
    assert Counted.compared < 40 * len(names)  # and not rows times names


@pytest.mark.parametrize(
    ("name", "said"),
    [(b"__.mp4", "the caption '' holds no word"), (b"caf\xe9.mp4", "they hold half characters")],
)
def test_captions_of_a_template_are_checked_like_others(
    tmp_path: Path, name: bytes, said: str
) -> None:
    written = write_video(tmp_path / "film.mp4", moving_square(6))
    os.rename(written, os.path.join(os.fsencode(tmp_path), name))
    (clip,) = clips_of(tmp_path, caption_template="{name}")
    assert clip.problem is not None
    assert clip.problem[0] == "caption"
    assert said in clip.problem[1]
    json.dumps([clip.captions, clip.task, clip.caption_group], ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("said", "reason"),
    [(".", "holds no word"), ("", "holds no word"), ("lift \ud83d", "is not Unicode")],
)
def test_captions_of_a_captioner_are_checked_like_others(
    home: Path, said: str, reason: str
) -> None:
    class Says:
        def describe(self, image: np.ndarray, prompt: str) -> str:
            return said

    texts = ((), "", "", "robot", "none")
    clip = Clip("id", "recording", "set", "a.mp4", "main", *texts, caption_kind="model:x")
    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ClipRejected, match=reason) as caught:
        caption_clips([clip], [image], LoadedCaptioner(Says(), f"digest of {said!r}"))
    assert caught.value.stage == "caption"
