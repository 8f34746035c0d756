"""Merging gives what preprocessing all recordings together would have given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import BUCKET, Failures
from triplet_recordings import moving_square, settings, write_video

from dynaflip.errors import UserError
from dynaflip.jobs.preprocess import main
from dynaflip.platform.s3 import S3Path
from dynaflip.platform.training.data.gallery import read_clips
from dynaflip.platform.training.data.index import read_index
from dynaflip.platform.triplets import merge as merging
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.merge import merge_folders
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.schema import read_manifest

pytestmark = pytest.mark.usefixtures("in_process", "in_order")

Make = Callable[..., str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make the set of some numbered videos, and of one that is no video."""

    def make_set(name: str, numbers: range, output: str = "", **values: Any) -> str:
        videos = tmp_path / f"videos {name}"
        lines = ["file,caption"]
        for n in numbers:
            frames = moving_square(15, 96, 128, step_px=0.8 + 0.1 * n, seed=n)
            write_video(videos / f"clip{n}.mp4", frames)
            lines.append(f"clip{n}.mp4,push {n % 2}")
        (videos / "broken.mp4").write_bytes(b"no video")
        (videos / "captions.csv").write_text("\n".join([*lines, "broken.mp4,none"]) + "\n")
        source = SourceConfig(path=str(videos), name="squares")
        config = settings(videos, **{"example_images": 0, "heldout_share": 0.5, **values})
        folder = output or str(tmp_path / name)
        preprocess(replace(config, source=source), folder)
        return folder

    return make_set


def rows(folder: str) -> pa.Table:
    index = read_index(folder)
    splits = (index.train, index.heldout)
    tables = [one for clips in splits for one in read_clips(clips, np.arange(len(clips)))]
    return pa.concat_tables(tables).sort_by("triplet_id")


def without_places(counts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in counts.items() if name != "windows_left_out_at"}


def test_the_union_is_the_set_of_all_in_any_order(make: Make, tmp_path: Path) -> None:
    small = {"part_mb": 1e-3}
    a, b = make("a", range(3), **small), make("b", range(1, 5))
    whole = read_manifest(make("whole", range(5)))
    one, lines = merge_folders([a, b], str(tmp_path / "one"))
    other, _ = merge_folders([b, a, a], str(tmp_path / "other"))
    assert one.digest == other.digest == whole["digest"]
    assert without_places(one.counts) == without_places(other.counts)
    assert without_places(one.counts) == without_places(whole["counts"])
    assert any("2 clips were in two folders" in line for line in lines)
    assert rows(str(one.folder)) == rows(str(tmp_path / "whole"))
    manifest = read_manifest(str(one.folder))
    assert manifest["index"] == whole["index"]
    assert [about["folder"] for about in manifest["merged"]] == [a, b]
    assert manifest["settings"]["heldout_share"] == 0.5
    assert len(manifest["settings"]["sources"]) == 2
    rejected = pq.read_table(tmp_path / "one" / "rejected.parquet")
    assert rejected["path"].to_pylist() == ["broken.mp4"]
    again, _ = merge_folders([a, b], str(tmp_path / "one"))
    assert again.reused
    assert again.version == 1


def test_files_are_taken_whole_and_those_with_repeated_clips_written_anew(
    make: Make, tmp_path: Path
) -> None:
    all_train = {"heldout_share": 0.0}  # a file a set
    a, b = make("a", range(2), **all_train), make("b", range(2, 4), **all_train)
    merge_folders([a, b], str(tmp_path / "apart"))
    inodes = {p.stat().st_ino for f in (a, b) for p in Path(f, "triplets").iterdir()}
    assert {p.stat().st_ino for p in (tmp_path / "apart" / "triplets").iterdir()} == inodes
    c = make("c", range(1, 4), **all_train)
    merge_folders([a, c], str(tmp_path / "overlapping"))
    found = {p.name: p.stat().st_ino for p in (tmp_path / "overlapping" / "triplets").iterdir()}
    sources = {p.name: p.stat().st_ino for f in (a, c) for p in Path(f, "triplets").iterdir()}
    (kept,) = found.keys() & sources.keys()
    assert found[kept] == sources[kept]
    assert len(found) == 2
    # The inputs may go.
    for folder in (a, c):
        os.rename(folder, f"{folder}.gone")
    assert (
        len(rows(str(tmp_path / "overlapping")))
        == read_manifest(str(tmp_path / "overlapping"))["counts"]["triplets"]
    )


def test_other_triplets_of_a_clip_are_refused_until_one_is_preferred(
    make: Make, tmp_path: Path
) -> None:
    a, b = make("a", range(3)), make("b", range(2, 4), image_px=48)
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"1 clips, such as clip2\.mp4"):
        merge_folders([a, b], out)
    assert not Path(out).exists()
    for preferred, px in ((a, 96), (b, 48)):
        outcome, lines = merge_folders([a, b], out, preferred)
        table = pq.ParquetDataset(Path(out, "triplets")).read(["caption", "height_px"])
        assert outcome.counts["kept"] == 4
        assert any("image_px: 160 → 48" in line for line in lines)
        ids = {c["clip_id"] for c in summaries(a)} & {c["clip_id"] for c in summaries(b)}
        (shared,) = (c for c in summaries(out) if c["clip_id"] in ids)
        assert shared["short_side_px"] == px
        assert len(table) == outcome.counts["triplets"]


def summaries(folder: str) -> list[dict[str, Any]]:
    texts = [path.read_text() for path in Path(folder, "done").glob("part-*.json")]
    return [clip for text in texts for clip in json.loads(text)["clips"]]


def test_what_contradicts_itself_is_refused_with_both_figures(make: Make, tmp_path: Path) -> None:
    a, b = make("a", range(2)), make("b", range(2, 4), heldout_share=0.25)
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match=r"heldout_share is 0.5 in .*/a and 0.25 in .*/b"):
        merge_folders([a, b], out)
    with pytest.raises(UserError, match="two or more"):
        merge_folders([a, a + "/"], out)
    with pytest.raises(UserError, match="is one of the folders"):
        merge_folders([a, b], a)
    with pytest.raises(UserError, match=r"--prefer: .*is none of"):
        merge_folders([a, b], out, "/c")
    with pytest.raises(UserError, match="not a triplet folder"):
        merge_folders([a, str(tmp_path)], out)
    c = make("c", range(2, 4))
    with pytest.raises(UserError, match="holds triplets that were not merged"):
        merge_folders([a, c], b)
    manifest = json.loads(Path(c, "manifest.json").read_text())
    manifest["sources"]["squares"]["weight"] = 3.0
    Path(c, "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"squares has weight 1 in .*/a and 3 in .*/c"):
        merge_folders([a, c], out)
    for name in Path(c, "done").iterdir():
        name.unlink()
    with pytest.raises(UserError, match="without its folder done"):
        merge_folders([a, c], out)


def test_preprocessing_never_replaces_a_merged_set(make: Make, tmp_path: Path) -> None:
    a, b = make("a", range(2)), make("b", range(2, 4))
    out = str(tmp_path / "out")
    merge_folders([a, b], out)
    with pytest.raises(UserError, match=r"was merged from .*/a and .*/b: preprocess into one"):
        make("a", range(3), out)
    make("a", range(3))
    grown, _ = merge_folders([a, b], out)
    assert grown.version == 2
    assert grown.counts["kept"] == 4  # clip 2 is in both


def test_an_interrupted_merge_leaves_no_half_set_and_goes_on(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make("a", range(2), part_mb=1e-3), make("b", range(1, 4), part_mb=1e-3)
    out = tmp_path / "out"
    real, calls = merging._transfer, [0]

    def killed(file: Path, to: Path) -> None:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        real(file, to)

    monkeypatch.setattr(merging, "_transfer", killed)
    with pytest.raises(KeyboardInterrupt):
        merge_folders([a, b], str(out))
    assert not out.exists()
    monkeypatch.setattr(merging, "_transfer", real)
    done, _ = merge_folders([a, b], str(out))
    assert done.digest == merge_folders([b, a], str(tmp_path / "at once"))[0].digest
    assert [path.name for path in tmp_path.glob(".out*")] == []


def test_folders_and_buckets_merge_into_each_other(
    make: Make, tmp_path: Path, proxy: Failures
) -> None:
    a = make("a", range(2))
    b = make("b", range(1, 4), f"s3://{BUCKET}/b")
    local, _ = merge_folders([a, b], str(tmp_path / "local"))
    there, _ = merge_folders([a, b], f"s3://{BUCKET}/there")
    assert there.digest == local.digest
    assert rows(f"s3://{BUCKET}/there") == rows(str(local.folder))
    within, _ = merge_folders([f"s3://{BUCKET}/there", b], f"s3://{BUCKET}/within")
    assert within.digest == local.digest
    names = {name.split("/")[0] for name in S3Path.parse(f"s3://{BUCKET}/within").walk()}
    assert names == {"manifest.json", "sets", "triplets"}
    assert rows(f"s3://{BUCKET}/b").num_rows == read_manifest(b)["counts"]["triplets"]


def test_merge_is_a_command(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a", range(2)), make("b", range(2, 4))
    assert main(["merge", a, b, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "2 clips of" in said
    assert f"{tmp_path / 'out'} (" in said
