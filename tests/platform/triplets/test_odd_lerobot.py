"""LeRobot data sets that disagree with themselves: read as meant, or rejected with both figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from odd_lerobot import (
    FPS,
    FRAMES,
    KEY,
    KINDS,
    REFUSED,
    as_struct,
    brightness,
    camera_of_images,
    depth_beside,
    intrinsics,
    number,
    pose,
    renamed_feature,
    sound,
    write_frames,
)

from dynaflip.errors import UserError
from dynaflip.platform.triplets.clip_reader import ClipReader
from dynaflip.platform.triplets.clips import Clip, ClipRejected, Recording, UnknownDepthUnit
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.sources.formats import Mix, open_sources
from dynaflip.platform.triplets.windows import Transition


def mix_of(root: Path, **values) -> Mix:
    return open_sources(PreprocessConfig(source=SourceConfig(path=str(root), **values)))


def read(mix: Mix, clip: Clip) -> Recording:
    """Read everything that triplets are made from, from the first frame to the last."""
    recording = mix.open(clip)
    times_s = recording.times_s()
    frames = recording.read_frames([0, len(times_s) - 1], 32)
    assert (number(frames[0]), number(frames[-1])) == (0, FRAMES - 1)
    np.testing.assert_allclose(times_s, np.arange(FRAMES) / FPS, atol=2e-3)
    recording.cameras([0, 1])
    assert recording.caption_at(0, 0) in clip.captions
    depth_m = recording.read_depth_m([0])
    if depth_m is not None:
        np.testing.assert_allclose(depth_m, 2.0, atol=0.002)
    return recording


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_read_or_rejected_with_its_reason(kind: str, tmp_path: Path) -> None:
    change, said = KINDS[kind]
    odd = sound()
    change(odd)
    mix = mix_of(odd.write(tmp_path / "set"))
    clips = list(mix.list_clips())
    last = max(clip.episode_index or 0 for clip in clips)
    for clip in clips:
        if not said:
            read(mix, clip)
        elif clip.episode_index == last:
            with pytest.raises(ClipRejected, match=said) as caught:
                read(mix, clip)
            assert "unexpected" not in caught.value.stage


@pytest.mark.parametrize("kind", REFUSED)
def test_a_set_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    change, said = REFUSED[kind]
    odd = sound()
    change(odd)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        list(mix_of(odd.write(tmp_path / "set")).list_clips())
    assert "\n" not in str(caught.value)


def test_a_camera_of_images_is_read_beside_one_of_video(tmp_path: Path) -> None:
    odd = sound()
    camera_of_images(as_struct, "observation.images.wrist")(odd)
    mix = mix_of(odd.write(tmp_path / "set"))
    clips = list(mix.list_clips())
    assert [clip.camera for clip in clips] == ["top", "wrist"] * 3
    assert len({clip.recording_id for clip in clips}) == 3  # both cameras of an episode share it
    assert len({clip.clip_id for clip in clips}) == 6
    for clip in clips:
        read(mix, clip)
    only = list(mix_of(tmp_path / "set", cameras=("wrist",)).list_clips())
    assert [clip.camera for clip in only] == ["wrist"] * 3


def test_the_ids_of_video_cameras_do_not_change_beside_images(tmp_path: Path) -> None:
    ids = []
    for name, images in (("plain", False), ("both", True)):
        odd = sound()
        for episode in odd.episodes:
            del episode["stats/action/mean"]  # then the ids are those of the first video
        if images:
            camera_of_images(as_struct, "observation.images.aside")(odd)
        clips = list(mix_of(odd.write(tmp_path / name)).list_clips())
        ids.append([clip.clip_id for clip in clips if clip.camera == "top"])
    assert ids[0] == ids[1]


def test_a_video_named_depth_is_no_camera_unless_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = sound()
    odd.videos["observation.images.top_depth"] = odd.videos[KEY]
    features = odd.info["features"]
    odd.info["features"] = {**features, "observation.images.top_depth": features[KEY]}
    other = sound()
    renamed_feature("observation.images.depth")(other)
    root, only = odd.write(tmp_path / "set"), other.write(tmp_path / "only")
    assert {clip.camera for clip in list(mix_of(root).list_clips())} == {"top"}
    named = list(mix_of(root, cameras=("top_depth",)).list_clips())
    assert {clip.camera for clip in named} == {"top_depth"}
    with pytest.raises(UserError, match="lists no camera"):
        list(mix_of(only).list_clips())
    extra = sound()
    for key in ("observation.images.depth_left", "observation.images.front"):
        extra.info["features"] = {**extra.info["features"], key: features[KEY]}
        extra.videos[key] = extra.videos[KEY]
    list(mix_of(extra.write(tmp_path / "extra")).list_clips())
    assert "depth_left is left out, since its name says depth" in capsys.readouterr().out


def test_depth_of_an_unknown_unit_is_told_from_damaged_depth(tmp_path: Path) -> None:
    odd = sound()
    depth_beside("gray16le", "ffv1")(odd)
    mix = mix_of(odd.write(tmp_path / "set"))
    with pytest.raises(UnknownDepthUnit):
        mix.open(next(iter(mix.list_clips()))).read_depth_m([0])


def test_missing_episodes_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = sound()
    odd.info["total_episodes"] = 5
    list(mix_of(odd.write(tmp_path / "set")).list_clips())
    assert "states 5 episodes, its table of episodes lists 3" in capsys.readouterr().out


def test_a_video_at_a_slightly_other_rate_gets_the_times_of_its_rows(tmp_path: Path) -> None:
    odd = sound()
    odd.video_fps = 31
    mix = mix_of(odd.write(tmp_path / "set"))
    for clip in mix.list_clips():
        recording = mix.open(clip)
        np.testing.assert_allclose(recording.times_s(), np.arange(FRAMES) / FPS, atol=0.01)
        assert number(recording.read_frames([0], 32)[0]) == 0


def test_a_folder_of_sets_and_a_part_of_one_say_what_to_give(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sound().write(tmp_path / "sets" / name)
    with pytest.raises(UserError, match=r"holds 2 LeRobot data sets.*path: .*/a}, {path: .*/b}"):
        mix_of(tmp_path / "sets")
    with pytest.raises(UserError, match=r"is part of a LeRobot data set: give .*sets/a$"):
        mix_of(tmp_path / "sets" / "a" / "videos")
    only = sound().write(tmp_path / "cache" / "snapshots" / "0a1b")
    with pytest.raises(UserError, match=f"holds a LeRobot data set in snapshots/0a1b: give {only}"):
        mix_of(tmp_path / "cache")
    (tmp_path / "sets" / "captions.csv").write_text("file,caption\n")  # then it is meant
    mix_of(tmp_path / "sets")


def test_a_path_that_is_not_utf_8_is_a_name_of_any_text(tmp_path: Path) -> None:
    root = sound().write(tmp_path / "set").rename(tmp_path / "se\udce9t")
    mix = mix_of(root)
    clip = next(iter(mix.list_clips()))
    read(mix, clip)
    assert clip.source == "se\\udce9t"
    assert json.loads(clip.to_json())["source"] == clip.source


def test_shapes_with_the_channels_first_are_understood(tmp_path: Path) -> None:
    for names in (None, ["channels", "height", "width"], {"motors": []}, ["a", "b"]):
        odd = sound()
        odd.info["features"][KEY] |= {"shape": [3, 32, 48], "names": names}
        mix = mix_of(odd.write(tmp_path / str(names)[:12]))
        source = next(iter(mix.sources.values()))
        assert source.meta.image_px(KEY) == (48, 32)


def test_frames_are_those_of_the_episode_where_the_video_is_long(tmp_path: Path) -> None:
    """The fast path: nothing disagrees, so the whole file is not read."""
    odd = sound()
    mix = mix_of(odd.write(tmp_path / "set"))
    clip = list(mix.list_clips())[2]
    timeline = mix.open(clip).timeline
    assert timeline.frames_in_file == 3 * FRAMES
    assert len(timeline.pts) == FRAMES
    write_frames(tmp_path / "set" / clip.path, brightness(FRAMES), FPS)
    with pytest.raises(ClipRejected, match="12 frames, the 3 episodes in it together 36"):
        mix.open(clip).times_s()


def test_intrinsics_of_an_image_of_another_shape_are_refused(tmp_path: Path) -> None:
    odd = sound()
    intrinsics(40, 40, 24, 24)(odd)
    odd.info["features"][KEY]["shape"] = [48, 48, 3]
    mix = mix_of(odd.write(tmp_path / "set"))
    recording = mix.open(next(iter(mix.list_clips())))
    window = Transition(0, 6, (0, 1, 2, 3, 6), 0, 0)
    config = PreprocessConfig(depth="plane")
    reader = ClipReader(recording, config, [window], recording.times_s(), None)
    with pytest.raises(ClipRejected, match="of 48 x 48 pixels, which is of another shape"):
        reader.cameras([0, 1], 48, 32)


def test_poses_count_without_intrinsics_under_an_assumed_focal_length(tmp_path: Path) -> None:
    odd = sound()
    matrix = np.eye(4)
    matrix[0, 3] = 0.5
    pose(matrix)(odd)
    for row in odd.rows:
        del row["observation.intrinsics.top"]
    mix = mix_of(odd.write(tmp_path / "set"))
    cameras = mix.open(next(iter(mix.list_clips()))).cameras([0, 3])
    assert cameras is not None
    assert cameras.poses is not None
    assert cameras.assumed
    np.testing.assert_array_equal(cameras.poses, np.stack([matrix, matrix]))
    np.testing.assert_array_equal(cameras.intrinsics_px, [[48, 48, 24, 16]] * 2)


def test_a_store_that_does_not_answer_is_not_taken_for_missing_depth(tmp_path: Path) -> None:
    mix = mix_of(sound().write(tmp_path / "set"))
    recording = mix.open(next(iter(mix.list_clips())))

    def unanswered(indices: list[int]) -> None:
        raise ClipRejected("network", "no answer")

    recording.read_depth_m = unanswered  # type: ignore[method-assign]
    window = Transition(0, 6, (0, 1, 2, 3, 6), 0, 0)
    config = PreprocessConfig(depth="model:any")
    with pytest.raises(ClipRejected, match="no answer"):
        ClipReader(recording, config, [window], recording.times_s(), HalfDepth())


def test_a_model_does_without_depth_of_an_unknown_unit(tmp_path: Path) -> None:
    odd = sound()
    depth_beside("gray16le", "ffv1")(odd)
    mix = mix_of(odd.write(tmp_path / "set"))
    recording = mix.open(next(iter(mix.list_clips())))
    window = Transition(0, 6, (0, 1, 2, 3, 6), 0, 0)
    config = PreprocessConfig(depth="model:any")
    reader = ClipReader(recording, config, [window], recording.times_s(), HalfDepth())
    frames = reader.tracked_frames([0, 1, 2])
    depth_m, scale = reader.depth_m([0, 1, 2], frames)
    assert depth_m is not None
    assert (float(depth_m.mean()), scale) == (0.5, "relative")


class HalfDepth:
    """A depth model whose scale is not known."""

    scale = "relative"

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return np.full(frames.shape[:3], 0.5, np.float32)
