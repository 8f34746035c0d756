"""From recordings to a score with nothing but a bucket between the jobs, each of them killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkout import REPOSITORY
from s3_server import BUCKET
from triplet_recordings import moving_square, settings, write_video

from dynaflip.platform.s3 import S3Path
from dynaflip.platform.triplets.pipeline import preprocess
from dynaflip.platform.triplets.schema import read_manifest

OUT = f"s3://{BUCKET}/chain"
MODEL = ["--config", "tests/tiny.yaml", "--triplets", OUT]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Enough clips that some are held out."""
    folder = tmp_path / "videos"
    lines = ["file,caption"]
    for n in range(12):
        write_video(folder / f"{n}.mp4", moving_square(30, step_px=0.8 + 0.1 * n, seed=n))
        lines.append(f"{n}.mp4,push {n}")
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def start(home: Path, job: str, *words: str) -> subprocess.Popen[str]:
    """A job with a home and a Ray cluster of its own."""
    environment = {**os.environ, "DYNAFLIP_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    log = (home / "log.txt").open("a")
    return subprocess.Popen(
        [sys.executable, f"jobs/{job}.py", *words],
        cwd=REPOSITORY,
        env=environment,
        stdout=log,
        stderr=log,
        text=True,
    )


def finish(home: Path, job: str, *words: str) -> str:
    """Run a job to its end; all that jobs have printed."""
    code = start(home, job, *words).wait()
    said = (home / "log.txt").read_text()
    assert code == 0, said[-3000:]
    return said


def kill_when(home: Path, process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """SIGKILL to a job at a moment of its work."""
    while not ready():
        assert process.poll() is None, (home / "log.txt").read_text()[-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.integration
def test_a_chain_of_killed_jobs_over_a_bucket(
    videos: Path, tmp_path: Path, server: str, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    home = tmp_path / "home"
    home.mkdir()
    whole = preprocess(settings(videos, example_images=0), str(tmp_path / "local"))
    words = ["--source", str(videos), "--output", OUT, "--depth", "plane", "--draws_per_clip", "1"]
    words += ["--clips_per_shard", "1", "--example_images", "0"]

    def shards() -> int:
        return sum("/shards/" in name for name in S3Path.parse(OUT).walk())

    kill_when(home, start(home, "preprocess", *words), lambda: shards() > 2)
    assert shards()
    finish(home, "preprocess", *words)
    manifest = read_manifest(OUT)
    assert manifest["digest"] == whole.digest
    assert not shards()
    assert "look at" in finish(home, "preprocess", "inspect", OUT)

    steps = ["--train.num_workers", "2", "--train.steps", "16", "--train.checkpoint_every_steps"]
    first = start(home, "pretrain", *MODEL, *steps, "2")

    def saved() -> bool:
        return any(home.glob("runs/*/checkpoints/*4/*"))

    kill_when(home, first, saved)
    (run,) = (path.name for path in (home / "runs").iterdir())
    said = finish(home, "pretrain", "--resume", run)
    assert re.search(r"epoch \d+: [\d.]+ MB in \d+ requests to the bucket", said), said
    log = (home / "runs" / run / "metrics.jsonl").read_text()
    curves = [json.loads(line) for line in log.splitlines()]
    assert any(line.get("data/requests", 0) > 0 for line in curves)
    scored = finish(
        home, "evaluate", "--suite", "probes", "--triplets", OUT, "--gallery_size", "2",
        "--encoder", "models:/dynaflip-encoder/1",
    )  # fmt: skip
    assert "retrieval" in scored
