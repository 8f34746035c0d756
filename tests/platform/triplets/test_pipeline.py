"""From a folder to triplets on Ray Data: counts, determinism, resuming, bad clips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from triplet_recordings import moving_square, settings, write_lerobot, write_video

from dynaflip.errors import UserError
from dynaflip.eval.perturbations import sample
from dynaflip.files import file_lock
from dynaflip.platform.paths import home
from dynaflip.platform.triplets.build import clip_table
from dynaflip.platform.triplets.clips import ClipRejected, content_hash
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.platform.triplets.digest import digest_of, row_digests
from dynaflip.platform.triplets.folder_index import parquet_files
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.report.examples import read_examples
from dynaflip.platform.triplets.report.overlays import draw_tracks
from dynaflip.platform.triplets.schema import (
    SCHEMA_VERSION,
    TRIPLET_SCHEMA,
    read_manifest,
)
from dynaflip.platform.triplets.sources.formats import open_source
from dynaflip.platform.triplets.work_folder import WorkFolder

REPOSITORY = Path(__file__).resolve().parents[3]


def add_bad_clips(folder: Path) -> dict[str, str]:
    """One clip of each kind of damage; file to the stage that must refuse it."""
    (folder / "zero.mp4").write_bytes(b"")
    good = write_video(folder / "truncated.mp4", moving_square(60)).read_bytes()
    (folder / "truncated.mp4").write_bytes(good[: len(good) // 2])
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    write_video(folder / "one_frame.mp4", moving_square(1))
    write_video(folder / "uncaptioned.mp4", moving_square(30, step_px=1.4))
    lines = [f"{n}.mp4,push the square" for n in ("zero", "truncated", "audio", "one_frame")]
    with (folder / "captions.csv").open("a") as file:
        file.write("\n".join(lines) + "\n")
    return {
        "zero.mp4": "decode",
        "truncated.mp4": "decode",
        "audio.mp4": "decode",
        "one_frame.mp4": "sample",
        "uncaptioned.mp4": "caption",
    }


@pytest.mark.ray
def test_good_clips_become_triplets_and_bad_ones_are_counted(
    video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None
) -> None:
    folder = video_folder(6)
    stages = add_bad_clips(folder)
    outcome = preprocess(settings(folder), str(tmp_path / "out"))
    assert (outcome.counts["read"], outcome.counts["kept"], outcome.counts["rejected"]) == (
        11,
        6,
        5,
    )
    rejected = pl.read_parquet(tmp_path / "out" / "rejected.parquet")
    assert dict(zip(rejected["path"], rejected["stage"], strict=True)) == stages
    assert all(rejected["reason"])
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest["counts"] == json.loads(json.dumps(outcome.counts))
    rows = pl.read_parquet(tmp_path / "out" / "triplets" / "*.parquet")
    assert len(rows) == outcome.counts["triplets"] > 6
    assert rows["triplet_id"].is_unique().all()
    assert set(rows["depth_kind"]) == {"plane"}
    assert set(rows["depth_scale"]) == {"relative"}
    assert (tmp_path / "out" / "pictures" / "examples.png").stat().st_size > 10_000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "videos"]  # nothing is left over


def test_one_output_is_made_by_one_process_at_a_time(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    lock = home() / "locks" / f"{content_hash(str(output))}.lock"
    with file_lock(lock), pytest.raises(UserError, match="another process is making"):
        preprocess(settings(video_folder(1)), str(output))


@pytest.mark.ray
def test_too_many_rejected_clips_fail_the_job_but_are_listed(
    video_folder: Callable[..., Path], tmp_path: Path, ray_cluster: None, monkeypatch
) -> None:
    from dynaflip.platform.triplets import pipeline

    folder = video_folder(2)
    add_bad_clips(folder)
    outcome = preprocess(settings(folder), str(tmp_path / "out"))
    assert "5 of 7 clips were rejected" in outcome.failure
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert len(pq.read_table(tmp_path / "out" / "rejected.parquet")) == 5
    # More is allowed by a setting, into the same folder; what was kept is not made again.
    run, asked = pipeline.run_stages, []
    monkeypatch.setattr(
        pipeline, "run_stages", lambda *a: (asked.extend(a[0].values()), (yield from run(*a)))[1]
    )
    outcome = preprocess(settings(folder, max_rejected_share=0.8), str(tmp_path / "out"))
    assert not outcome.failure
    assert outcome.counts["kept"] == 2
    assert len(asked) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "videos"]


@pytest.mark.ray
def test_depth_problems_reject_the_clip(tmp_path: Path, ray_cluster: None) -> None:
    folder = tmp_path / "videos"
    depths = {
        "good": np.full((30, 120, 160), 2.0, np.float32),
        "nan": np.full((30, 120, 160), np.nan, np.float32),
        "short": np.full((29, 120, 160), 2.0, np.float32),
        "none": None,
    }
    lines = ["file,caption,depth"]
    for n, (name, depth) in enumerate(depths.items()):
        write_video(folder / f"{name}.mp4", moving_square(30, step_px=1 + 0.1 * n))
        lines.append(f"{name}.mp4,push,{name + '.npy' if depth is not None else ''}")
        if depth is not None:
            np.save(folder / f"{name}.npy", depth)
    (folder / "captions.csv").write_text("\n".join(lines))
    config = settings(folder, depth="auto", max_rejected_share=0.9)
    outcome = preprocess(config, str(tmp_path / "out"))
    assert outcome.counts["kept"] == 1
    rejected = {
        r["path"]: r for r in pq.read_table(outcome.folder / "rejected.parquet").to_pylist()
    }
    assert {r["stage"] for r in rejected.values()} == {"depth"}
    assert "hold no depth" in rejected["nan.mp4"]["reason"]
    assert "30 frames of video" in rejected["short.mp4"]["reason"]
    assert "choose depth=plane or depth=model:" in rejected["none.mp4"]["reason"]
    row = pq.read_table(outcome.folder / "triplets").to_pylist()[0]
    assert (row["depth_kind"], row["depth_scale"]) == ("recorded", "metric")


def table_of(folder: Path, config: PreprocessConfig) -> pa.Table:
    source = open_source(config.source)
    clip = next(iter(source.list_clips()))
    return clip_table(clip, source.open(clip), config)


def test_rows_survive_plain_pyarrow_and_polars(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = video_folder(1)
    table = table_of(folder, settings(folder))
    assert table.schema.equals(TRIPLET_SCHEMA)
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    back = pq.read_table(path)
    assert back.schema.equals(TRIPLET_SCHEMA, check_metadata=False)
    assert row_digests(back) == row_digests(table)
    flow = back["flow_displacement_m"].combine_chunks().to_numpy_ndarray()
    assert flow.shape[1:] == (7, 20, 20, 3)
    rows = pl.read_parquet(path)
    seen = rows["flow_displacement_m"].to_numpy().reshape(-1, 7, 20, 20, 3)
    np.testing.assert_array_equal(seen, flow)
    assert np.isfinite(flow).all()
    assert set(np.unique(back["flow_visible"].combine_chunks().to_numpy_ndarray())) <= {0, 1}
    row = back.slice(0, 1).to_pylist()[0]
    assert len(row["frames_r3m"]) == len(row["frames_r3m_s"]) == 5
    assert row["t_s"] in row["frames_r3m_s"]


def test_the_second_image_is_of_the_window_or_r3ms(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(1)
    window = table_of(folder, settings(folder)).to_pylist()
    r3m = table_of(folder, settings(folder, image_pair="r3m")).to_pylist()
    for row in r3m:
        following = row["frames_r3m_s"].index(row["t_s"]) + 1
        assert row["frame_next"] == row["frames_r3m"][following]
    assert [r["frame_t"] for r in window] == [r["frame_t"] for r in r3m]


def test_the_digest_depends_on_everything_but_order(video_folder: Callable[..., Path]) -> None:
    folder = video_folder(1)
    digests = row_digests(table_of(folder, settings(folder)))
    assert digest_of(digests) == digest_of(reversed(digests))
    assert digest_of(digests) != digest_of(digests[1:])
    assert digests != row_digests(table_of(folder, settings(folder, jpeg_quality=91)))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_perturbations_of_another_split_are_rejected(
    video_folder: Callable[..., Path], split: str
) -> None:
    config = settings(video_folder(1))
    source = open_source(config.source)
    clip = next(iter(source.list_clips()))
    recording = source.open(clip)
    seen = replace(clip, factors=json.dumps(sample("pretrain", 3)))
    assert clip_table(seen, recording, config).num_rows > 0
    unseen = replace(clip, factors=json.dumps(sample(split, 3)))
    with pytest.raises(ClipRejected, match=f"of split {split}, not of pretrain"):
        clip_table(unseen, recording, config)


def test_several_cameras_without_depth(tmp_path: Path) -> None:
    episodes = [
        {"top": moving_square(40), "wrist": moving_square(40, step_px=1.5)} for _ in range(2)
    ]
    root = write_lerobot(tmp_path / "set", episodes, ["push", "pull"])
    source = open_source(SourceConfig(path=str(root)))
    config = settings(root)
    tables = [clip_table(c, source.open(c), config).to_pylist() for c in source.list_clips()]
    assert [t[0]["camera"] for t in tables] == ["top", "wrist"] * 2
    assert tables[0][0]["split"] == tables[1][0]["split"]
    assert tables[0][0]["caption_group"] == "push"


def test_crashes_of_a_worker_cost_one_clip(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from dynaflip.platform.triplets.shard import process_shard

    folder = video_folder(2)
    work = WorkFolder(tmp_path / "work")
    for part in (work.shards, work.attempts):
        part.mkdir(parents=True)
    source = open_source(SourceConfig(path=str(folder)))
    clips = list(source.list_clips())
    (work.attempts / clips[0].clip_id).write_text(
        2 * "started\nFatal Python error\n"
    )  # what two dead workers left behind
    summaries = process_shard("part-0", clips, source, settings(folder), work)
    assert summaries[0]["stage"] == "crash"
    assert summaries[1]["rows"]


def test_outputs_with_other_content_are_left_alone(
    video_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(UserError, match=r"chapter1\.txt"):
        preprocess(settings(video_folder(1)), str(tmp_path / "thesis"))


def test_another_schema_version_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(UserError, match=f"schema version {SCHEMA_VERSION + 1}"):
        read_manifest(str(tmp_path))


def run_job(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DYNAFLIP_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    job = REPOSITORY / "jobs" / "preprocess.py"
    return subprocess.run(
        [sys.executable, str(job), *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--source", "nowhere"], "there is no folder"),
        (["--dept", "plane"], "depth"),
        (["--depth", "flat"], "depth: there is no depth model 'flat'"),
        (["--heldout_share", "2"], "heldout_share must be in"),
    ],
)
def test_user_errors_are_one_line_and_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    done = run_job(*words, home=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.ray
def test_real_clips_give_tracks_on_what_moves(
    shared_clips: Path, tmp_path: Path, ray_cluster: None
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("coffee.mp4", "blocks.mp4"):
        shutil.copyfile(shared_clips / name, folder / name)
    (folder / "captions.csv").write_text(
        "file,caption\ncoffee.mp4,pour coffee from the kettle into the blue cup\n"
        "blocks.mp4,arrange the letter blocks\n"
    )
    config = replace(settings(folder), draws_per_clip=2)
    outcome = preprocess(config, str(tmp_path / "out"))
    assert outcome.counts["read"] == outcome.counts["kept"] == 2
    examples = read_examples(parquet_files(outcome.folder), 2)
    assert len(examples) == 2
    for row in examples:
        assert draw_tracks(row).shape[2] == 3
        far = np.linalg.norm(row["flow_displacement_m"][-1], axis=-1) > 0.02
        far &= row["flow_visible"][-1].astype(bool)
        # Hands and what they hold move; table, wall and lower border do not.
        assert 0.02 < far.mean() < 0.6
        assert far[-2:].mean() < 0.25
