"""A sweep over triplets and checkpoints in a bucket, by the job itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelled_frames import write_labelled_frames
from recovery import start
from s3_server import BUCKET, client, s3_server, upload

from dynaflip.platform.sweep.consistency import inconsistencies
from dynaflip.platform.sweep.opened_sweep import open_to_read
from dynaflip.platform.sweep.study import SEARCH, own_trials


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_reads_and_writes_nothing_but_a_bucket(
    home: Path, tmp_path: Path, triplet_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        triplets = upload(url, triplet_folder, "set")
        words = ["--config", "tests/tiny.yaml", "--triplets", triplets, "--name", "far"]
        words += ["--sweep.score.frames", str(write_labelled_frames(tmp_path / "frames.npz"))]
        words += ["--train.checkpoint_storage", f"s3://{BUCKET}/checkpoints"]
        words += ["--trials", "2", "--confirm", "0", "--search", "objective.flow=uniform(0,2)"]
        process = start(home, words, tmp_path / "sweep.log")
        assert process.popen.wait(timeout=400) == 0, process.said()
        trials = own_trials(open_to_read("far", "test").study(SEARCH))
        assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
        assert inconsistencies("far") == []
        assert "Traceback" not in process.said()
        left = client(url).list_objects_v2(Bucket=BUCKET, Prefix="checkpoints")
        assert not left["KeyCount"]  # finished trials need none
