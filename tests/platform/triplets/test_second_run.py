"""What a second run of preprocessing takes from the first: all, what is left, or what failed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from triplet_recordings import moving_square, settings, write_video

from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.schema import REJECTED_SCHEMA

pytestmark = pytest.mark.ray


def test_two_runs_make_equal_triplets_and_a_third_reuses_them(
    video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None, monkeypatch
) -> None:
    from dynaflip.platform.triplets import listing, pipeline

    run, shards = pipeline.run_stages, []
    monkeypatch.setattr(listing, "_LEAST_SHARDS", 1)
    monkeypatch.setattr(
        pipeline, "run_stages", lambda *a: (shards.append(len(a[0])), (yield from run(*a)))[1]
    )
    folder = video_folder(3)
    first = preprocess(settings(folder), str(tmp_path / "a"))
    second = preprocess(settings(folder, clips_per_shard=1), str(tmp_path / "b"))
    assert shards == [1, 3]
    assert first.digest == second.digest
    again = preprocess(settings(folder), str(tmp_path / "a"))
    assert again.reused
    assert again.digest == first.digest
    other = preprocess(settings(folder, seed=1), str(tmp_path / "a"))
    assert not other.reused
    assert other.digest != first.digest


def stopped_after(number: int, run: Callable[..., Any], asked: list[int]) -> Callable[..., Any]:
    """The pipeline's own run, with Ctrl-C after so many shards; ``asked`` takes how many it got."""

    def some(shards, *more):
        asked.append(len(shards))
        yield from run(dict(list(shards.items())[:number]), *more)
        raise KeyboardInterrupt

    return some


def test_an_interrupted_job_resumes(
    video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None, monkeypatch
) -> None:
    from dynaflip.platform.triplets import pipeline

    folder = video_folder(4)
    whole = preprocess(settings(folder), str(tmp_path / "whole"))
    run = pipeline.run_stages
    asked: list[int] = []
    monkeypatch.setattr(pipeline, "run_stages", stopped_after(2, run, asked))
    with pytest.raises(KeyboardInterrupt):
        preprocess(settings(folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(
        pipeline, "run_stages", lambda *a: (asked.append(len(a[0])), (yield from run(*a)))[1]
    )
    outcome = preprocess(settings(folder), str(tmp_path / "out"))
    assert asked == [4, 2]
    assert outcome.digest == whole.digest


def test_an_added_clip_is_the_only_one_made(
    video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None, monkeypatch
) -> None:
    from dynaflip.platform.triplets import pipeline

    folder = video_folder(4)
    preprocess(settings(folder), str(tmp_path / "out"))
    write_video(folder / "added.mp4", moving_square(step_px=1.5))
    (folder / "clip0.mp4").unlink()
    lines = (folder / "captions.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("clip0")]
    (folder / "captions.csv").write_text("\n".join([*kept, "added.mp4,push again"]))
    run, asked = pipeline.run_stages, []
    monkeypatch.setattr(
        pipeline, "run_stages", lambda *a: (asked.extend(a[0].values()), (yield from run(*a)))[1]
    )
    outcome = preprocess(settings(folder), str(tmp_path / "out"))
    assert [[clip.path for clip in shard] for shard in asked] == [["added.mp4"]]
    assert (outcome.version, outcome.counts["read"]) == (2, 4)
    assert outcome.changed == (
        "input: other recordings or captions, or other settings of a source",
    )
    assert preprocess(settings(folder), str(tmp_path / "anew")).digest == outcome.digest
    rows = pl.read_parquet(tmp_path / "out" / "triplets" / "*.parquet")
    assert len(rows) == outcome.counts["triplets"]


def test_an_interrupted_job_loses_no_clip_to_another_that_finished(
    video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None, monkeypatch
) -> None:
    from dynaflip.platform.triplets import pipeline

    folder = video_folder(6)
    captions = (folder / "captions.csv").read_text()
    run = pipeline.run_stages
    monkeypatch.setattr(pipeline, "run_stages", stopped_after(3, run, []))
    with pytest.raises(KeyboardInterrupt):
        preprocess(settings(folder), str(tmp_path / "out"))
    monkeypatch.setattr(pipeline, "run_stages", run)
    few = [line for line in captions.splitlines() if not line.startswith(("clip1", "clip4"))]
    (folder / "captions.csv").write_text("\n".join(few))
    for name in ("clip1.mp4", "clip4.mp4"):
        (folder / name).rename(tmp_path / name)
    assert preprocess(settings(folder), str(tmp_path / "out")).counts["read"] == 4
    for name in ("clip1.mp4", "clip4.mp4"):
        (tmp_path / name).rename(folder / name)
    (folder / "captions.csv").write_text(captions)
    outcome = preprocess(settings(folder), str(tmp_path / "out"))
    assert outcome.digest == preprocess(settings(folder), str(tmp_path / "anew")).digest
    rows = pl.read_parquet(tmp_path / "out" / "triplets" / "*.parquet")
    assert rows["clip_id"].n_unique() == 6
    assert len(rows) == rows["triplet_id"].n_unique() == outcome.counts["triplets"]


def test_clips_rejected_for_the_machine_are_retried(
    video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None
) -> None:
    folder, out = video_folder(3), tmp_path / "out"
    whole = preprocess(settings(folder), str(tmp_path / "whole"))
    config = settings(folder, part_mb=0.001)  # a clip a file
    first = preprocess(config, str(out))
    assert first.digest == whole.digest
    # As a run leaves it whose worker somebody kept killing on one clip.
    done = min((out / "done").glob("part-*.json"))
    (summary,) = json.loads(done.read_text())["clips"]
    reason = {"stage": "machine", "reason": "the worker process died on this clip 8 times"}
    failed = {**summary, **reason, "rows": [], "at": None}
    (out / "done" / "rejected.json").write_text(json.dumps({"clips": [failed]}))
    done.unlink()
    (out / "triplets" / f"{done.stem}.parquet").unlink()
    row = {name: failed[name] for name in REJECTED_SCHEMA.names}
    pq.write_table(pa.Table.from_pylist([row], schema=REJECTED_SCHEMA), out / "rejected.parquet")
    others = {p: p.stat().st_mtime_ns for p in (out / "triplets").iterdir()}
    again = preprocess(config, str(out))
    assert not again.reused
    assert again.digest == whole.digest
    assert (again.counts["kept"], again.counts["rejected"]) == (3, 0)
    assert len(others) == 2
    assert all(path.stat().st_mtime_ns == at for path, at in others.items())  # adopted
    assert preprocess(config, str(out)).reused
