"""What a recording is told by, and what a clip's triplets are made from: content, all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from triplet_recordings import moving_square, numbered, settings, write_lerobot, write_video

from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.clips import Clip, ClipRejected
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.sources.formats import open_source, open_sources

EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FRAMES = "data/chunk-000/file-000.parquet"


def clips_of(*folders: Path) -> list[Clip]:
    sources = tuple(SourceConfig(path=str(folder), name=folder.name) for folder in folders)
    return list(open_sources(PreprocessConfig(sources=sources)).list_clips())


def rewrite(path: Path, change: Callable[[int, dict], dict]) -> None:
    rows = [change(n, row) for n, row in enumerate(pq.read_table(path).to_pylist())]
    pq.write_table(pa.Table.from_pylist(rows), path)


def lerobot(root: Path, **options) -> Path:
    episodes = [{"top": numbered(20 + n, 48, 64)} for n in range(2)]
    return write_lerobot(root, episodes, ["open it", "close it"], **options)


def test_an_episode_with_another_caption_is_the_same_recording(tmp_path: Path) -> None:
    first = lerobot(tmp_path / "set")
    second = shutil.copytree(first, tmp_path / "copy")
    words = {"tasks": ["something else"], "task_id": "else", "factors": "{}"}
    rewrite(second / EPISODES, lambda n, row: {**row, **words})
    original, again = clips_of(first, second)[:2], clips_of(first, second)[2:]
    assert [c.recording_id for c in original] == [c.recording_id for c in again]
    assert [c.clip_id for c in original] == [c.clip_id for c in again]
    assert len({c.recording_id for c in original}) == 2
    assert [c.problem and c.problem[1].split()[0] for c in again] == ["same", "same"]


def test_a_copy_beside_a_grouped_video_counts_once_and_stays_in_its_split(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_video(tmp_path / f"{name}.mp4", moving_square(12, step_px=1 + number))
    shutil.copyfile(tmp_path / "a.mp4", tmp_path / "copy.mp4")
    (tmp_path / "captions.csv").write_text(
        "file,caption,recording,camera\na.mp4,push,one,left\nb.mp4,push,one,right\n"
        "copy.mp4,pull,,\n"
    )
    clips = clips_of(tmp_path)
    assert len({c.recording_id for c in clips}) == 1
    assert [c.problem and c.problem[1] for c in clips] == [None, None, "same content as a.mp4"]
    # Another piece of the copy is another clip of the same recording.
    (tmp_path / "captions.csv").write_text(
        "file,caption,recording,end_s\na.mp4,push,one,\nb.mp4,push,one,\ncopy.mp4,pull,,0.2\n"
    )
    clips = clips_of(tmp_path)
    assert len({c.recording_id for c in clips}) == 1
    assert [c.problem for c in clips] == [None] * 3


def test_the_first_row_that_names_the_recording_counts(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_video(tmp_path / f"{name}.mp4", moving_square(12, step_px=1 + number))
    (tmp_path / "captions.csv").write_text(
        "file,caption,recording\na.mp4,push,\na.mp4,shove,one\nb.mp4,push,one\n"
    )
    assert len({c.recording_id for c in clips_of(tmp_path)}) == 1


def depth_range(root: Path) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.top_depth"]["info"]["video.depth_max"] = 5.0
    (root / "meta/info.json").write_text(json.dumps(info))


def image_size(root: Path) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.top"]["shape"] = [96, 128, 3]
    (root / "meta/info.json").write_text(json.dumps(info))


def intrinsics(root: Path) -> None:
    values = {"observation.intrinsics.top": [60.0, 60.0, 32.0, 24.0]}
    rewrite(root / FRAMES, lambda n, row: {**row, **values})


@pytest.mark.parametrize("change", [depth_range, image_size, intrinsics])
def test_the_geometry_is_part_of_a_clips_digest(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    depth = [np.full((20 + n, 48, 64), 2, np.float32) for n in range(2)]
    root = lerobot(tmp_path / "set", depth_m=depth)
    before = [clip.digest() for clip in clips_of(root)]
    assert before == [clip.digest() for clip in clips_of(root)]
    change(root)
    assert not set(before) & {clip.digest() for clip in clips_of(root)}


def test_the_table_of_tasks_is_part_of_the_digest_of_clips_with_several(tmp_path: Path) -> None:
    root = lerobot(tmp_path / "set")
    rewrite(root / EPISODES, lambda n, row: {**row, "tasks": ["open it", "close it"][: 1 + n % 2]})
    one, several = clips_of(root)
    names = {"__index_level_0__": "turned round"}
    rewrite(root / "meta/tasks.parquet", lambda n, row: {**row, **names})
    after = [clip.digest() for clip in clips_of(root)]
    assert after[0] == one.digest()
    assert after[1] != several.digest()


@pytest.mark.parametrize("name", ["./a.npy", "deep//a.npy", ".hidden/a.npy"])
def test_depth_is_part_of_a_clips_digest(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "a.mp4", moving_square(10))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "captions.csv").write_text(f"file,caption,depth\na.mp4,push,{name}\n")
    found = []
    for metres in (1.0, 2.0):
        np.save(tmp_path / name, np.full((10, 120, 160), metres, np.float32))
        (clip,) = clips_of(tmp_path)
        recording = open_source(SourceConfig(path=str(tmp_path))).open(clip)
        np.testing.assert_allclose(recording.read_depth_m([0]), metres)
        found.append(clip)
    assert found[0].clip_id == found[1].clip_id  # the same frames are drawn
    assert found[0].digest() != found[1].digest()


def test_depth_beside_a_single_file_is_part_of_its_clips_digest(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_square(10))
    captions = tmp_path / "words.csv"
    captions.write_text("file,caption,depth\na.mp4,push,a.npy\n")
    source = SourceConfig(path=str(path), captions=str(captions))
    found = set()
    for metres in (1.0, 2.0):
        np.save(tmp_path / "a.npy", np.full((10, 120, 160), metres, np.float32))
        found.add(next(iter(open_source(source).list_clips())).digest())
    assert len(found) == 2


def table_with_depth(folder: Path, height: int, width: int) -> pa.Table:
    write_video(folder / "a.mp4", moving_square(30))
    np.save(folder / "a.npy", np.full((30, height, width), 2.0, np.float32))
    (folder / "captions.csv").write_text("file,caption,depth\na.mp4,push,a.npy\n")
    (clip,) = clips_of(folder)
    config = settings(folder, depth="auto")
    return clip_table(clip, open_source(config.source).open(clip), config)


@pytest.mark.parametrize(("height", "width"), [(120, 160), (45, 60), (91, 121), (240, 320)])
def test_depth_of_the_images_shape_is_used(tmp_path: Path, height: int, width: int) -> None:
    table = table_with_depth(tmp_path, height, width)
    assert set(table["depth_scale"].to_pylist()) == {"metric"}
    # Metric, but seen by a camera of which nobody words how wide it looks: that is words.
    assert set(table["focal_kind"].to_pylist()) == {"assumed"}


@pytest.mark.parametrize(("height", "width"), [(160, 120), (90, 160), (120, 150)])
def test_depth_of_another_shape_is_rejected(tmp_path: Path, height: int, width: int) -> None:
    with pytest.raises(ClipRejected, match=f"depth of {width} x {height} pixels") as caught:
        table_with_depth(tmp_path, height, width)
    assert caught.value.stage == "depth"


def test_recorded_intrinsics_are_marked_as_recorded(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "set", [{"top": moving_square(30)}], ["push"])
    intrinsics(root)
    (clip,) = clips_of(root)
    table = clip_table(clip, open_source(SourceConfig(path=str(root))).open(clip), settings(root))
    assert set(table["focal_kind"].to_pylist()) == {"recorded"}
