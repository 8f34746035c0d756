"""Which settings make other triplets, and what a source that is added costs."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from triplet_recordings import settings

from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.ledger import Ledger
from dynaflip.platform.triplets.listing import Listing
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.reuse import (
    can_adopt,
    current_form,
    read_finished,
    work_key,
    work_of,
)
from dynaflip.platform.triplets.sources.formats import open_sources
from dynaflip.platform.triplets.versions import STAGE_VERSIONS
from dynaflip.platform.triplets.work_folder import WorkFolder


def made_from(models: dict[str, str], *sources: SourceConfig, **values) -> dict:
    config = PreprocessConfig(sources=sources, depth="plane", **values)
    with closing(Ledger(Path("shards"))) as ledger:
        listing = Listing(open_sources(config), ledger, config.clips_per_shard)
        deque(listing.shards(), maxlen=0)
    return work_of(to_dict(config), models, listing.digest())


def test_settings_that_change_no_triplet_are_not_in_the_key(
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
    assert work_key(made_from({}, plain, clips_per_shard=1, part_mb=1)) == key
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
def test_an_added_source_leaves_the_files_of_the_others(
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
    finished.done.mkdir(parents=True)
    config = PreprocessConfig(sources=(first,), depth="plane")
    at = {"file": "part-a.parquet", "row_group": 0, "bytes": 1}
    about = {"split": "train", "stage": "", "reason": "", "rows": [], "at": at}
    summaries = [
        {
            "clip_digest": clip.digest(),
            "clip_id": clip.clip_id,
            "recording_id": clip.recording_id,
            **about,
        }
        for clip in open_sources(config).list_clips()
    ]
    (finished.done / "part-a.json").write_text(json.dumps({"clips": summaries}))
    manifest = {"made_from": made_from(before, first)}
    (finished.path / "manifest.json").write_text(json.dumps(manifest))
    work = made_from(now, first, second)
    assert can_adopt(read_finished(finished.path), work) == adopted
    every = open_sources(PreprocessConfig(sources=(first, second), depth="plane")).list_clips()
    with closing(Ledger(tmp_path / "shards", finished)) as ledger:
        claims = [ledger.claim(clip.digest()) for clip in every]
        ledger.forget_others()
        assert claims == [""] * len(summaries) + [None] * (len(claims) - len(summaries))
        assert list(ledger.summaries()) == summaries
        assert ledger.whole_parts() == ["part-a"]
        assert not list(ledger.to_place())


# Of the last code whose manifests held a hash of the code's files instead of stage versions.
CODE = "f3990ab7e8307b9bb7777e807bf5c9feb77f770a122c5d140fc2dcbe288783a7"
OLD_NAMES = {
    "lifting.": "lift.",
    "static_points.min_static_gain": "still.min_still_gain",
    "static_points.": "still.",
    "rgbd_alignment.": "register.",
    "rigid_smoothing.": "pieces.",
}


@pytest.fixture
def first_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage has the version that manifests without versions stand for."""
    for stage in STAGE_VERSIONS:
        monkeypatch.setitem(STAGE_VERSIONS, stage, 1)


def in_the_old_form(made_from: dict) -> dict:
    renamed = {}
    for key, value in made_from["settings"].items():
        old = next(
            (o + key.removeprefix(n) for n, o in OLD_NAMES.items() if key.startswith(n)), key
        )
        renamed[old] = value
    kept = {name: made_from[name] for name in ("input", "models")}
    return {"settings": renamed, **kept, "code": CODE}


def test_old_names_of_settings_mean_todays(
    video_folder: Callable[..., Path], first_versions: None
) -> None:
    today = made_from({}, SourceConfig(path=str(video_folder(1))), flow_window_s=0.2)
    old = in_the_old_form(today)
    assert "still.min_still_gain" in old["settings"]
    assert "register.enabled" in old["settings"]
    assert current_form(old) == today
    assert work_key(current_form(old)) == work_key(today)
    # A setting that was not there yet had today's default.
    del old["settings"]["pieces.fit_cells"]
    assert current_form(old) == today


def test_a_folder_of_before_stage_versions_is_reused(
    video_folder: Callable[..., Path], tmp_path: Path, in_process: None, first_versions: None
) -> None:
    config = settings(video_folder(1), example_images=0)
    folder = preprocess(config, str(tmp_path / "out")).folder
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    old = {**manifest, "made_from": in_the_old_form(manifest["made_from"]), "work_key": "another"}
    path.write_text(json.dumps(old))
    written_ns = {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")}
    again = preprocess(config, str(folder))
    assert again.reused
    assert again.version == 1
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.parquet")} == written_ns
    old["made_from"]["code"] = "0" * 64
    path.write_text(json.dumps(old))
    anew = preprocess(config, str(folder))
    assert not anew.reused
    assert anew.changed == ("stages: made by code without stage versions",)


def test_a_stage_of_another_version_makes_triplets_anew(
    video_folder: Callable[..., Path],
    tmp_path: Path,
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(video_folder(1), example_images=0)
    folder = preprocess(config, str(tmp_path / "out")).folder
    monkeypatch.setitem(STAGE_VERSIONS, "tracking", STAGE_VERSIONS["tracking"] + 1)
    anew = preprocess(config, str(folder))
    assert not anew.reused
    assert anew.changed == ("stages.tracking: version 1 → 2 (see CHANGELOG.md)",)
    monkeypatch.setitem(STAGE_VERSIONS, "a new stage", 1)
    assert preprocess(config, str(folder)).reused
