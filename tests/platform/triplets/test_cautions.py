"""A set that is too small to say anything is named, with the setting that helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shaken_videos import hand, shaken_square
from triplet_recordings import moving_square, settings, write_video

from dynaflip.platform.training.data.index import read_index
from dynaflip.platform.triplets.flow.config import CameraConfig, LiftingConfig
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.report.cautions import camera_lines, small_set_lines
from dynaflip.platform.triplets.report.inspection import inspect_folder, inspection_lines
from dynaflip.platform.triplets.report.summary import summary_lines
from dynaflip.platform.triplets.split import share_for_two, split_of

pytestmark = pytest.mark.usefixtures("in_process", "in_order")


def manifest(train: int, heldout: int, groups: int = 2, **counts: Any) -> dict[str, Any]:
    splits = {
        name: {"recordings": number, "clips": number, "triplets": 3 * number}
        for name, number in (("train", train), ("heldout", heldout))
    }
    return {
        "counts": {"splits": splits, "triplets": 3 * (train + heldout), **counts},
        "settings": {"heldout_share": 0.2},
        "index": {"caption_groups": groups},
    }


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (manifest(5, 0), "nothing is held out.*none of these 5.*raise heldout_share from 0.2 or"),
        (manifest(5, 0, share_for_two=0.37), "raise heldout_share from 0.2 to 0.37 or add"),
        (manifest(5, 1), "one recording of 6 is held out.*raise heldout_share"),
        (manifest(1, 1), "one recording of 2 is held out: [^;]*; add recordings"),
        (manifest(0, 4), "all 4 recordings are held out.*lower heldout_share"),
        (manifest(1, 0), "one clip: nothing can be compared"),
        (manifest(5, 2, groups=1), "all 5 training clips have one caption.*source.captions"),
    ],
)
def test_each_small_set_is_named(made: dict[str, Any], words: str) -> None:
    (line,) = small_set_lines(made)
    assert re.search(words, line), line


def test_larger_sets_and_those_without_counts_are_not() -> None:
    assert small_set_lines(manifest(5, 2)) == []
    assert small_set_lines({"counts": {}}) == []


def test_the_share_that_is_named_holds_out_two() -> None:
    names = [f"recording {n}" for n in range(7)]
    share = share_for_two(names)
    assert share is not None
    assert [split_of(name, share) for name in names].count("heldout") >= 2
    assert [split_of(name, share - 0.01) for name in names].count("heldout") < 2
    assert share_for_two(names[:2]) is None


def test_preprocessing_and_training_say_it(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    videos = video_folder(4)
    (videos / "captions.csv").write_text(
        "file,caption\n" + "".join(f"clip{n}.mp4,push\n" for n in range(4))
    )
    found = preprocess(settings(videos, heldout_share=0.0), str(tmp_path / "out"))
    said = "\n".join(summary_lines(found, 1.0))
    assert "note: heldout_share is 0: no score shows what is learnt" in said
    assert "note: all 4 training clips have one caption" in said
    assert read_index(str(tmp_path / "out")).notes == found.notes
    again = preprocess(settings(videos, heldout_share=0.0), str(tmp_path / "out"))
    assert again.reused
    assert again.notes == found.notes


def test_interpolated_steps_are_counted_by_source(tmp_path: Path) -> None:
    videos = tmp_path / "slow"
    videos.mkdir()
    captions = ["file,caption"]
    for n in range(2):
        write_video(videos / f"clip{n}.mp4", moving_square(30, step_px=2.0 + n), fps=5)
        captions.append(f"clip{n}.mp4,push {n}")
    (videos / "captions.csv").write_text("\n".join(captions) + "\n")
    found = preprocess(settings(videos), str(tmp_path / "out"))
    numbers = found.counts["sources"]["slow"]
    assert numbers["interpolated"] == pytest.approx(numbers["triplets"] * 4 / 7)
    assert any("slow: 57% of the flow steps are interpolated" in s for s in summary_lines(found, 1))
    lenient = settings(videos, lifting=LiftingConfig(measured_within=2.0))
    assert preprocess(lenient, str(tmp_path / "all")).counts["sources"]["slow"]["interpolated"] == 0


def test_where_nearly_all_points_move_it_is_said() -> None:
    counts = {
        "kept": 40,
        "mostly_moving": 37,
        "camera_motion": {"image": 70, "none": 6, "failed": 4},
    }
    moving, left = camera_lines(counts)
    assert "in 37 of 40 clips more than 80% of the trusted points move" in moving
    assert "in 10 of 80 triplets the camera's motion is not removed" in left
    assert "none 6, failed 4" in left
    usual = {"kept": 40, "mostly_moving": 3, "camera_motion": {"image": 20, "static": 60}}
    assert camera_lines(usual) == []
    assert camera_lines({"kept": 40}) == []


def test_the_job_and_inspect_say_what_of_the_camera_is_left(tmp_path: Path) -> None:
    for number in range(2):
        shaken = shaken_square(16, hand(16, turn_deg=3.0, shift_px=12.0, seed=number))
        write_video(tmp_path / "videos" / f"{number}.mp4", shaken.frames)
    lines = ["file,caption", "0.mp4,push", "1.mp4,pull"]
    (tmp_path / "videos" / "captions.csv").write_text("\n".join(lines) + "\n")
    said = {}
    for motion in ("auto", "none"):
        config = settings(tmp_path / "videos", camera=CameraConfig(motion=motion))
        outcome = preprocess(config, str(tmp_path / motion))
        job = [line for line in summary_lines(outcome, 1.0) if "Hand-held" in line]
        found = inspect_folder(str(tmp_path / motion))
        seen = [line for line in inspection_lines(found) if "Hand-held" in line]
        said[motion] = (job, set(found.rows["camera_motion"]))
        assert job == seen
    assert said["auto"] == ([], {"image"})
    (moving, left), kinds = said["none"]
    assert "in 2 of 2 clips more than 80% of the trusted points move" in moving
    assert "triplets the camera's motion is not removed (camera_motion: none " in left
    assert kinds == {"none"}
