"""Folders that preprocessing replaces: its own alone, and never the link to one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from triplet_recordings import settings

from dynaflip.errors import UserError
from dynaflip.platform.triplets import listing, pipeline
from dynaflip.platform.triplets.config import PreprocessConfig
from dynaflip.platform.triplets.pipeline import preprocess


@pytest.mark.parametrize("manifest", ['{"name": "my web app", "icons": []}', "[]", "{"])
def test_a_manifest_of_another_program_is_left_alone(
    video_folder: Callable[..., Path], tmp_path: Path, manifest: str
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"something else than triplets \(manifest\.json\)"):
        preprocess(settings(video_folder(1)), str(folder))
    assert (folder / "manifest.json").read_text() == manifest


def test_a_link_to_the_output_stays_a_link(
    video_folder: Callable[..., Path], tmp_path: Path, in_process: None
) -> None:
    config = settings(video_folder(1), example_images=0)
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    real.mkdir(parents=True)
    link.symlink_to(real)
    for quality, version in ((92, 1), (80, 2)):
        made = preprocess(PreprocessConfig(**{**vars(config), "jpeg_quality": quality}), str(link))
        assert made.version == version
        assert link.is_symlink()
        assert (real / "manifest.json").is_file()
    assert sorted(p.name for p in real.parent.iterdir()) == ["real"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link", "videos"]


def test_other_shards_are_the_same_triplets_and_mix_with_none_that_are_left(
    video_folder: Callable[..., Path],
    tmp_path: Path,
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "_LEAST_SHARDS", 1)
    folder, run = video_folder(3), pipeline.run_stages
    shards_of = []

    def watched(shards, *more):
        shards_of.append([len(clips) for clips in shards.values()])
        yield from run(shards, *more)

    def stop_after_one(shards, *more):
        yield from run(dict(list(shards.items())[:1]), *more)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_stages", watched)
    whole = preprocess(settings(folder), str(tmp_path / "whole"))
    monkeypatch.setattr(pipeline, "run_stages", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        preprocess(settings(folder, clips_per_shard=1), str(tmp_path / "out"))
    monkeypatch.setattr(pipeline, "run_stages", watched)
    other = preprocess(settings(folder, clips_per_shard=2), str(tmp_path / "out"))
    assert shards_of == [[3], [2, 1]]
    assert other.digest == whole.digest
    assert preprocess(settings(folder, clips_per_shard=1), str(tmp_path / "out")).reused
    assert json.loads((other.folder / "manifest.json").read_text())["version"] == 1
    assert not list(tmp_path.glob(".*"))
