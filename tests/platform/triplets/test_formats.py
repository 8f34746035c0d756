"""Formats of the data sets that people have: each is detected, read, and damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from triplet_recordings import moving_square, numbered, write_lerobot, write_video

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.clips import Clip, ClipRejected
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.sources.crc32c import crc32c
from dynaflip.platform.triplets.sources.ego4d import Ego4DSource, plain_narration
from dynaflip.platform.triplets.sources.folder import FolderSource
from dynaflip.platform.triplets.sources.formats import open_source, open_sources
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource
from dynaflip.platform.triplets.sources.rlds import RLDSSource
from dynaflip.platform.triplets.sources.something import SomethingSource


def listed(path: Path, **settings) -> tuple[object, list[Clip]]:
    source = open_source(SourceConfig(path=str(path), **settings))
    return source, list(source.list_clips())


def rows_of(path: Path, clip: Clip, **settings) -> list[dict]:
    config = PreprocessConfig(
        source=SourceConfig(path=str(path), **settings), depth="plane", draws_per_clip=1
    )
    return clip_table(clip, open_sources(config).open(clip), config).to_pylist()


def test_a_real_lerobot_v21_set_gives_triplets(shared_clips: Path) -> None:
    root = shared_clips / "g1_lerobot_v21"
    source, clips = listed(root)
    assert isinstance(source, LeRobotSource)
    assert [(c.episode_index, c.camera) for c in clips] == [(0, "cam_high"), (1, "cam_high")]
    assert clips[0].captions == ("Pick up the yellow bottle on the table.",)
    assert clips[0].recording_id != clips[1].recording_id
    assert [len(source.open(c).times_s()) for c in clips] == [221, 277]
    row = rows_of(root, clips[0])[0]
    assert (row["embodiment"], row["source"]) == ("robot", "g1_lerobot_v21")


def test_lerobot_v21_follows_the_paths_of_its_info(tmp_path: Path, shared_clips: Path) -> None:
    root = tmp_path / "set"
    shutil.copytree(shared_clips / "g1_lerobot_v21", root)
    for path in root.rglob("*"):
        path.chmod(0o755)
    (root / "videos/chunk-000/observation.images.cam_high/episode_000001.mp4").unlink()
    source, clips = listed(root)
    with pytest.raises(ClipRejected, match=r"no file episode_000001\.mp4"):
        source.open(clips[1]).times_s()
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 0')
    with pytest.raises(UserError, match=r"episodes\.jsonl"):
        listed(root)


def test_cameras_without_statistics_are_one_recording(tmp_path: Path) -> None:
    episodes = [{"top": numbered(20, 48, 64), "wrist": numbered(20, 48, 64)[:, ::-1]}]
    root = write_lerobot(tmp_path / "set", episodes, ["open it"])
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([n for n in table.column_names if "stats/" in n]), path)
    _, clips = listed(root)
    assert len({c.recording_id for c in clips}) == 1
    assert len({c.clip_id for c in clips}) == 2


def test_crc32c_is_the_standards() -> None:
    # RFC 3720, appendix B.4, and the usual check value.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0
    # Lanes joined (long) against a plain register (short pieces, one after the other).
    data = np.random.default_rng(0).integers(0, 256, 70_001, dtype=np.uint8).tobytes()
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    assert crc32c(data) == register ^ 0xFFFFFFFF


def test_real_bridge_episodes_give_triplets(shared_clips: Path) -> None:
    path = shared_clips / "bridge_debug.tfrecord"
    source, clips = listed(path)
    assert isinstance(source, RLDSSource)
    # 25 episodes, three cameras; the fourth is the same black image at every step.
    assert len(clips) == 75
    assert {c.camera for c in clips} == {"image_0", "image_1", "image_2"}
    assert len({c.recording_id for c in clips}) == 25
    assert clips[0].captions == ("put cup from counter or drying rack into sink",)
    recording = source.open(clips[0])
    np.testing.assert_allclose(recording.times_s(), np.arange(10) / 5)
    images = recording.read_frames([0, 9], 64)
    assert images.shape == (2, 64, 64, 3)
    assert 3 < np.abs(images[1].astype(int) - images[0]).mean() < 100
    row = rows_of(path, clips[0])[0]
    assert row["embodiment"] == "robot"
    assert row["window_s"] == pytest.approx(0.4)


def test_damaged_records_are_clips_with_a_reason(tmp_path: Path, shared_clips: Path) -> None:
    data = bytearray((shared_clips / "bridge_debug.tfrecord").read_bytes())
    size = int.from_bytes(data[:8], "little")
    flipped = bytearray(data)
    flipped[12 + size // 2] ^= 1
    path = tmp_path / "bridge.tfrecord"
    path.write_bytes(flipped)
    source, clips = listed(path)
    assert len(clips) == 75  # found, and refused when it is read
    with pytest.raises(ClipRejected, match="checksum"):
        source.open(clips[0]).read_frames([0], 64)
    assert len(source.open(clips[3]).times_s()) == 10
    broken = bytearray(data)
    broken[12 + size + 4] ^= 1  # the second record's length
    path.write_bytes(broken)
    _, clips = listed(path)
    assert [c.problem is None for c in clips] == [True] * 3 + [False]
    assert "rest is unreadable" in clips[-1].problem[1]
    path.write_bytes(data[:-100])
    _, clips = listed(path)
    assert "truncated" in clips[-1].problem[1]


def test_an_unknown_rate_asks_for_the_setting(tmp_path: Path, shared_clips: Path) -> None:
    path = tmp_path / "mine.tfrecord"
    shutil.copyfile(shared_clips / "bridge_debug.tfrecord", path)
    with pytest.raises(UserError, match=r"source\.fps"):
        listed(path)
    source, clips = listed(path, fps=10.0)
    np.testing.assert_allclose(np.diff(source.open(clips[0]).times_s()), 0.1)


def test_features_json_lists_the_image_features(tmp_path: Path, shared_clips: Path) -> None:
    folder = tmp_path / "bridge" / "1.0.0"
    folder.mkdir(parents=True)
    record = shared_clips / "bridge_debug.tfrecord"
    shutil.copyfile(record, folder / "bridge-train.tfrecord-00000-of-00001")
    image = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image"}
    observation = {"featuresDict": {"features": {"image_1": image}}}
    step = {"featuresDict": {"features": {"observation": observation}}}
    steps = {"sequence": {"feature": step}}
    (folder / "features.json").write_text(
        json.dumps({"featuresDict": {"features": {"steps": steps}}})
    )
    (folder / "dataset_info.json").write_text(
        json.dumps({"redistributionInfo": {"license": "CC BY 4.0"}})
    )
    _, clips = listed(tmp_path / "bridge")
    assert {c.camera for c in clips} == {"image_1"}
    assert {c.licence for c in clips} == {"CC BY 4.0"}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_captions_in_every_kind_of_table(tmp_path: Path, ending: str) -> None:
    write_video(tmp_path / "a.mp4", moving_square(60))
    rows = [
        {"file": "a.mp4", "caption": "push", "start_s": 0.0, "end_s": 1.0},
        {"file": "a.mp4", "caption": "rest", "start_s": 1.0, "end_s": 2.0},
        {"file": "../../etc/passwd", "caption": "escape", "start_s": None, "end_s": None},
        {"file": "ghost.mp4", "caption": "haunt", "start_s": None, "end_s": None},
    ]
    path = tmp_path / f"captions.{ending}"
    if ending == "csv":
        cells = [["" if v is None else str(v) for v in row.values()] for row in rows]
        path.write_text("\n".join(",".join(c) for c in [list(rows[0]), *cells]))
    elif ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    source, clips = listed(tmp_path)
    assert isinstance(source, FolderSource)
    assert [(c.captions, c.start_s) for c in clips[:2]] == [(("push",), 0.0), (("rest",), 1.0)]
    assert clips[0].recording_id == clips[1].recording_id
    assert clips[0].clip_id != clips[1].clip_id
    assert [len(source.open(c).times_s()) for c in clips[:2]] == [30, 30]
    assert [c.problem[1].rsplit(", ", 1)[1] for c in clips[2:]] == [
        "but it lies outside the folder",
        "but there is no such video",
    ]


def test_videos_without_captions_can_take_them_from_their_names(tmp_path: Path) -> None:
    write_video(tmp_path / "pour_coffee" / "take_1.mp4", moving_square(30))
    source = SourceConfig(path=str(tmp_path), caption_template="somebody does: {folder}")
    clips = list(open_sources(PreprocessConfig(source=source)).list_clips())
    assert clips[0].captions == ("somebody does: pour coffee",)
    assert clips[0].caption_kind == "template"
    with pytest.raises(ValueError, match="caption_template"):
        SourceConfig(caption_template="{colour}")


def write_something(root: Path) -> None:
    """Something-Something V2's layout, with two labelled videos and one of the test part."""
    for number in (7, 8, 9):
        write_video(root / "mp4" / f"{number}.mp4", moving_square(36, step_px=1 + number / 10))
        webm = root / "20bn-something-something-v2" / f"{number}.webm"
        webm.parent.mkdir(exist_ok=True)
        (root / "mp4" / f"{number}.mp4").rename(webm)
    (root / "mp4").rmdir()
    (root / "labels").mkdir()
    label = {"template": "Pushing [something] to the right", "placeholders": ["a box"]}
    train = [
        {"id": "7", "label": "pushing a box to the right", **label},
        {"id": "55", "label": "not there", **label},
    ]
    valid = [{"id": "8", "label": "pushing a tin to the right", **label}]
    (root / "labels/train.json").write_text(json.dumps(train))
    (root / "labels/validation.json").write_text(json.dumps(valid))
    (root / "labels/test.json").write_text(json.dumps([{"id": "9"}]))


def test_something_somethings_layout(tmp_path: Path) -> None:
    write_something(tmp_path)
    source, clips = listed(tmp_path)
    assert isinstance(source, SomethingSource)
    assert [c.captions for c in clips] == [
        ("pushing a box to the right",),
        ("pushing a tin to the right",),
        (),
    ]
    assert clips[0].task == clips[1].task == "pushing something to the right"
    # One kind of action, but not one meaning: each is the other's true negative.
    assert [c.caption_group for c in clips[:2]] == [c.captions[0] for c in clips[:2]]
    assert clips[2].problem[0] == "caption"
    row = rows_of(tmp_path, clips[0])[0]
    assert row["embodiment"] == "human"
    assert "Something-Something" in row["licence"]


def test_a_label_that_is_no_text_is_no_caption(tmp_path: Path) -> None:
    write_something(tmp_path)
    labels = [{"id": "7", "label": ["pushing", "a box"]}, {"id": "8", "label": "x", "template": 3}]
    (tmp_path / "labels/train.json").write_text(json.dumps(labels))
    (tmp_path / "labels/validation.json").unlink()
    _, clips = listed(tmp_path)
    assert [c.problem for c in clips[:2]] == [
        ("list", "its label is ['pushing', 'a box'], not text"),
        ("list", "its template is 3, not text"),
    ]


def test_ego4d_narrations_become_segments(tmp_path: Path) -> None:
    write_video(tmp_path / "clips" / "abc-1.mp4", moving_square(150, step_px=0.4))
    moments = [
        {"narration_text": "#C C picks up a cup #unsure", "timestamp_sec": 1.2},
        {"narration_text": "#O A man X waves.", "timestamp_sec": 3.0},
        {"narration_text": "#C C looks around"},
    ]
    content = {"videos": {"abc-1": {"narration_pass_1": {"narrations": moments}}, "zzz": {}}}
    (tmp_path / "narration.json").write_text(json.dumps(content))
    source, clips = listed(tmp_path, narration_s=1.0)
    assert isinstance(source, Ego4DSource)
    assert [(c.captions, round(c.start_s, 3)) for c in clips if not c.problem] == [
        (("a person picks up a cup",), 0.7),
        (("a person waves",), 2.5),
    ]
    assert [c.problem for c in clips if c.problem] == [("list", "a narration without text or time")]
    assert len({c.recording_id for c in clips}) == 1
    assert len(source.open(clips[0]).times_s()) == 30
    assert rows_of(tmp_path, clips[0], narration_s=1.0)[0]["embodiment"] == "human"


def test_narrations_lose_their_marks() -> None:
    assert plain_narration("#C C opens the fridge") == "a person opens the fridge"
    assert plain_narration("#O A lady Y cuts bread") == "a person cuts bread"
    assert plain_narration("stirs the pot") == "stirs the pot"
    assert plain_narration("#C C ") == ""


def test_a_mix_has_names_weights_and_rejected_duplicates(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    videos = video_folder(2)
    write_something(tmp_path / "ssv2")
    shutil.copytree(videos, tmp_path / "copy")
    own = tmp_path / "own"
    write_video(own / "a.mp4", moving_square(36, step_px=1.6))
    (own / "captions.csv").write_text("file,caption\na.mp4,push it")
    yaml = tmp_path / "mix.yaml"
    yaml.write_text(
        f"sources:\n- {{path: {videos}, weight: 2, embodiment: robot, licence: CC0}}\n"
        f"- {{path: {tmp_path / 'ssv2'}, name: hands, max_clips: 1}}\n"
        f"- {{path: {tmp_path / 'copy'}}}\n"
        f"- {{path: {own}, depth: auto, flow_window_s: 0.2}}\n"
    )
    config = load_config(PreprocessConfig, str(yaml), {"depth": "plane"})
    mix = open_sources(config)
    clips = list(mix.list_clips())
    assert [c.source for c in clips] == ["videos", "videos", "hands", "copy", "copy", "own"]
    assert [c.embodiment for c in clips[:3]] == ["robot", "robot", "human"]
    assert clips[0].licence == "CC0"
    assert [c.problem for c in clips[3:5]] == [
        ("list", "same content as clip0.mp4"),
        ("list", "same content as clip1.mp4"),
    ]
    assert mix.about()["videos"] == {"format": "folder", "weight": 2.0}
    assert mix.about()["hands"]["weight"] == 1.0
    assert len(mix.open(clips[2]).times_s()) == 36
    # What a source is to be treated by comes before what is words for all.
    assert max(clip_table(clips[0], mix.open(clips[0]), config)["window_s"].to_pylist()) > 0.3
    with pytest.raises(ClipRejected, match="no depth recorded"):
        clip_table(clips[5], mix.open(clips[5]), config)
    table = clip_table(replace(clips[5], depth="plane"), mix.open(clips[5]), config)
    assert max(table["window_s"].to_pylist()) < 0.21


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("sources: [{path: a}]\nsource: {path: b}", "exclude each other"),
        ("sources: [{path: a, wieght: 2}]", "sources.0.wieght"),
        ("sources: [{path: a, weight: -1}]", "weight"),
        ("sources: [{name: a}]", "needs a path"),
    ],
)
def test_mistakes_in_a_mix_are_named(tmp_path: Path, yaml: str, words: str) -> None:
    (tmp_path / "mix.yaml").write_text(yaml)
    with pytest.raises(UserError, match=words):
        load_config(PreprocessConfig, str(tmp_path / "mix.yaml"), {})


def test_two_sources_of_one_name_are_an_error(video_folder: Callable[..., Path]) -> None:
    one = SourceConfig(path=str(video_folder(1)))
    with pytest.raises(UserError, match="two are named videos"):
        open_sources(PreprocessConfig(sources=(one, one)))
