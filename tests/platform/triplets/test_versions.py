"""Which settings make other triplets, and what a source that is added costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.reuse import adopt_shards, work_key, work_of
from dynaflip.platform.triplets.shard import WorkFolder
from dynaflip.platform.triplets.sources.formats import open_sources


def made_from(models: dict[str, str], *sources: SourceConfig, **values) -> dict:
    config = PreprocessConfig(sources=sources, depth="plane", **values)
    return work_of(to_dict(config), open_sources(config).list_clips(), models)


def test_settings_that_change_no_triplet_are_beside_the_key(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = video_folder(2)
    plain = SourceConfig(path=str(folder), name="mine")
    key = work_key(made_from({}, plain))
    shutil.copytree(folder, tmp_path / "moved")
    elsewhere = SourceConfig(
        path=str(tmp_path / "moved"),
        name="mine",
        captions=str(folder / "captions.csv"),
        max_clips=2,
        weight=3.0,
    )
    assert work_key(made_from({}, elsewhere)) == key
    assert work_key(made_from({}, plain, clips_per_shard=1)) == key
    for other in ({"licence": "CC0"}, {"max_clips": 1}, {"flow_window_s": 0.3}, {"depth": "auto"}):
        changed = SourceConfig(path=str(folder), name="mine", **other)
        assert work_key(made_from({}, changed)) != key, other
    assert work_key(made_from({}, plain, jpeg_quality=80)) != key


@pytest.mark.parametrize(
    ("before", "now", "adopted"),
    [
        ({}, {"captions/model": "1"}, True),  # of the source that is added
        ({"m": "1"}, {"m": "1"}, True),
        ({"m": "1"}, {}, True),
        ({"m": "1"}, {"m": "2"}, False),
    ],
)
def test_a_source_that_is_added_leaves_the_others_shards(
    video_folder: Callable[..., Path],
    tmp_path: Path,
    before: dict[str, str],
    now: dict[str, str],
    adopted: bool,
) -> None:
    first = SourceConfig(path=str(video_folder(2)))
    shutil.copytree(first.path, tmp_path / "second")
    (tmp_path / "second" / "clip0.mp4").unlink()
    second = SourceConfig(path=str(tmp_path / "second"))
    finished = WorkFolder(tmp_path / "finished")
    for part in (finished.triplets, finished.done):
        part.mkdir(parents=True)
    config = PreprocessConfig(sources=(first,), depth="plane")
    clips = open_sources(config).list_clips()
    summaries = [{"clip_digest": clip.digest(), "stage": ""} for clip in clips]
    (finished.done / "part-00000.json").write_text(json.dumps(summaries))
    manifest = {"made_from": made_from(before, first)}
    (finished.path / "manifest.json").write_text(json.dumps(manifest))
    work = WorkFolder(tmp_path / "work")
    for part in (work.triplets, work.done):
        part.mkdir(parents=True)
    both = PreprocessConfig(sources=(first, second), depth="plane")
    every = open_sources(both).list_clips()
    found = adopt_shards(finished.path, made_from(now, first, second), every, work)
    assert found == ({0: clips} if adopted else {})
