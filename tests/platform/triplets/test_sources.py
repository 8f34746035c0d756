"""What lies in a folder is found, and what is wrong with it is words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from triplet_recordings import moving_square, numbered, write_lerobot, write_video

from dynaflip.errors import UserError
from dynaflip.platform.lerobot.depth_codec import decode_depth_m
from dynaflip.platform.triplets.clips import ClipRejected
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.folder import FolderSource
from dynaflip.platform.triplets.sources.formats import mark_duplicates, open_source
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource
from dynaflip.platform.triplets.split import split_of


def lerobot(root: Path, **options) -> LeRobotSource:
    episodes = [
        {"top": numbered(20 + n, 48, 64), "wrist": numbered(20 + n, 48, 64)[:, ::-1]}
        for n in range(3)
    ]
    write_lerobot(root / "set", episodes, ["open it", "open it", "close it"], **options)
    return LeRobotSource(SourceConfig(path=str(root / "set")))


def test_formats_are_detected(tmp_path: Path, video_folder: Callable[..., Path]) -> None:
    lerobot(tmp_path)
    assert isinstance(open_source(SourceConfig(path=str(tmp_path / "set"))), LeRobotSource)
    assert isinstance(open_source(SourceConfig(path=str(video_folder()))), FolderSource)


def test_a_missing_folder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        open_source(SourceConfig(path=str(tmp_path / "nothing")))


def test_a_folder_without_video_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no video found"):
        list(open_source(SourceConfig(path=str(tmp_path))).list_clips())


def test_captions_without_any_video_are_a_user_error(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(5))
    (tmp_path / "captions.csv").write_text("file,caption\nghost.mp4,haunt the house\n")
    with pytest.raises(UserError, match=r"such as ghost\.mp4"):
        list(open_source(SourceConfig(path=str(tmp_path))).list_clips())


def test_videos_without_captions_csv_are_a_user_error(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(5))
    with pytest.raises(UserError, match=r"captions\.csv"):
        list(open_source(SourceConfig(path=str(tmp_path))).list_clips())


def test_a_missing_caption_rejects_the_clip(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(2, {"clip0.mp4": ""})
    write_video(folder / "unnamed.mp4", numbered(12))
    clips = {c.path: c for c in list(open_source(SourceConfig(path=str(folder))).list_clips())}
    assert clips["clip0.mp4"].problem is None  # its other row has one
    assert clips["unnamed.mp4"].problem == ("caption", "no caption in the captions file")


def test_phrasings_take_turns_and_cameras_share_a_recording(tmp_path: Path) -> None:
    write_video(tmp_path / "left.mp4", moving_square())
    write_video(tmp_path / "right.mp4", moving_square(step_px=2))
    (tmp_path / "captions.csv").write_text(
        "file,caption,task,recording,camera\n"
        "left.mp4,Push it,push,one,left\nleft.mp4,Give it a push,push,one,left\n"
        "right.mp4,Push it,push,one,right\n"
    )
    source = open_source(SourceConfig(path=str(tmp_path)))
    left, right = source.list_clips()
    assert left.recording_id == right.recording_id
    assert left.clip_id != right.clip_id
    assert left.caption_group == right.caption_group == "push"
    recording = source.open(left)
    assert [recording.caption_at(0, draw) for draw in (0, 1, 2)] == [
        "Push it",
        "Give it a push",
        "Push it",
    ]


def test_the_same_content_under_two_names_counts_once(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(1, {"copy.mp4": "push the square again"})
    (folder / "copy.mp4").write_bytes((folder / "clip0.mp4").read_bytes())
    clips = list(open_source(SourceConfig(path=str(folder))).list_clips())
    assert [c.problem for c in mark_duplicates(clips)] == [
        None,
        ("list", "same content as clip0.mp4"),
    ]


def test_ids_follow_content_and_not_names(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(1)
    before = next(iter(open_source(SourceConfig(path=str(folder))).list_clips()))
    (folder / "clip0.mp4").rename(folder / "other.mp4")
    (folder / "captions.csv").write_text("file,caption\nother.mp4,push\n")
    after = next(iter(open_source(SourceConfig(path=str(folder))).list_clips()))
    assert (before.clip_id, before.recording_id) == (after.clip_id, after.recording_id)


def test_lerobot_episodes_share_a_file_and_have_several_cameras(tmp_path: Path) -> None:
    source = lerobot(tmp_path)
    clips = list(source.list_clips())
    assert [(c.episode_index, c.camera) for c in clips] == [
        (n, camera) for n in range(3) for camera in ("top", "wrist")
    ]
    assert clips[0].recording_id == clips[1].recording_id != clips[2].recording_id
    assert [c.captions for c in clips[::2]] == [("open it",), ("open it",), ("close it",)]
    for clip in clips:
        recording = source.open(clip)
        length = 20 + int(clip.episode_index or 0)
        np.testing.assert_allclose(recording.times_s(), np.arange(length) / 30, atol=1e-3)
        shown = recording.read_frames([0, length - 1], 48).mean(axis=(1, 2, 3))
        np.testing.assert_allclose((shown - 20) / 4, [0, length - 1], atol=0.5)
        assert recording.read_depth_m([0]) is None
        assert recording.cameras([0]) is None


def test_one_camera_can_be_chosen_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    lerobot(tmp_path)
    path = str(tmp_path / "set")
    chosen = list(open_source(SourceConfig(path=path, cameras=("wrist",))).list_clips())
    assert {c.camera for c in chosen} == {"wrist"}
    with pytest.raises(UserError, match="top, wrist"):
        list(open_source(SourceConfig(path=path, cameras=("front",))).list_clips())


def test_lerobot_depth_is_read_as_it_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    depth = [rng.uniform(1, 3, (20 + n, 48, 64)).astype(np.float32) for n in range(3)]
    depth[1][4, 3, 7] = np.nan
    depth[1][4, 3, 8] = 9.0
    source = lerobot(tmp_path, depth_m=depth)
    clip = next(c for c in list(source.list_clips()) if c.episode_index == 1 and c.camera == "top")
    read = source.open(clip).read_depth_m([4, 20])
    assert read is not None
    assert np.isnan(read[0, 3, 7])
    assert np.isinf(read[0, 3, 8])
    fine = np.isfinite(read[0]) & (depth[1][4] < 4.4)
    assert np.abs(read[0] - depth[1][4])[fine].max() < 0.001
    wrist = next(c for c in list(source.list_clips()) if c.camera == "wrist")
    assert source.open(wrist).read_depth_m([0]) is None


def test_depth_codes_follow_lerobots_logarithm() -> None:
    info = {"video.depth_min": 0.01, "video.depth_max": 10.0, "video.shift": 3.5}
    depth = np.linspace(0.1, 9.0, 50)
    low, high = np.log(3.51), np.log(13.5)
    codes = np.rint((np.log(depth + 3.5) - low) / (high - low) * 4095).astype(np.uint16)
    assert np.abs(decode_depth_m(codes, info) - depth).max() < 0.003
    np.testing.assert_array_equal(decode_depth_m(codes, {}), decode_depth_m(codes, info))


def test_depth_of_another_length_rejects_the_clip(tmp_path: Path) -> None:
    depth = [np.ones((n, 48, 64), np.float32) for n in (20, 21, 15)]
    source = lerobot(tmp_path, depth_m=depth)
    with pytest.raises(ClipRejected, match="56 frames, the 3 episodes in it together 63") as caught:
        source.open(list(source.list_clips())[4]).read_depth_m([0])
    assert caught.value.stage == "depth"


def test_depth_beside_a_video_is_read(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(10))
    np.save(tmp_path / "a.npy", np.full((10, 120, 160), 1500, np.uint16))
    (tmp_path / "captions.csv").write_text("file,caption,depth\na.mp4,push,a.npy\n")
    source = open_source(SourceConfig(path=str(tmp_path)))
    depth = source.open(next(iter(source.list_clips()))).read_depth_m([2, 3])
    assert depth is not None
    np.testing.assert_allclose(depth, 1.5)


def test_an_older_lerobot_version_is_an_error(tmp_path: Path) -> None:
    lerobot(tmp_path)
    info = tmp_path / "set" / "meta" / "info.json"
    info.write_text(info.read_text().replace("v3.0", "v1.6"))
    with pytest.raises(UserError, match=r"v1\.6.*v3\.0"):
        open_source(SourceConfig(path=str(tmp_path / "set")))


def test_a_folder_named_video_is_found(tmp_path: Path) -> None:
    lerobot(tmp_path)
    (tmp_path / "set" / "videos").rename(tmp_path / "set" / "video")
    source = open_source(SourceConfig(path=str(tmp_path / "set")))
    assert len(source.open(next(iter(source.list_clips()))).times_s()) == 20
    (tmp_path / "set" / "video").rename(tmp_path / "set" / "films")
    with pytest.raises(UserError, match="looked for videos/"):
        list(open_source(SourceConfig(path=str(tmp_path / "set"))).list_clips())


def test_an_episodes_id_does_not_depend_on_its_position(tmp_path: Path) -> None:
    before = [c.recording_id for c in lerobot(tmp_path).list_clips()]
    path = tmp_path / "set/meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["episode_index"] += 100
        row["dataset_from_index"] = 7
    pq.write_table(pa.Table.from_pylist(rows), path)
    after = [
        c.recording_id for c in open_source(SourceConfig(path=str(tmp_path / "set"))).list_clips()
    ]
    assert before == after
    assert len(set(before)) == 3


def test_a_damaged_info_is_a_user_error(tmp_path: Path) -> None:
    lerobot(tmp_path)
    (tmp_path / "set/meta/info.json").write_text(json.dumps({"fps": 3}))
    with pytest.raises(UserError, match=r"info\.json"):
        open_source(SourceConfig(path=str(tmp_path / "set")))


def test_the_split_is_stable_and_of_about_its_share() -> None:
    held = [split_of(f"recording {n}", 0.2) == "heldout" for n in range(5000)]
    assert 0.18 < np.mean(held) < 0.22
    # Who is held out stays held out when the share grows.
    more = [split_of(f"recording {n}", 0.4) == "heldout" for n in range(5000)]
    assert all(m for h, m in zip(held, more, strict=True) if h)
    assert not any(split_of(f"recording {n}", 0.0) == "heldout" for n in range(100))
