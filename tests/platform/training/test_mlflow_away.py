"""MLflow hangs in the middle of a real run and stays away: the run ends well, and sends later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkout import REPOSITORY
from troubled_mlflow import HANG, WELL, TroubledMlflow

from dynaflip.platform.tracking.store import client

pytestmark = [pytest.mark.ray, pytest.mark.integration, pytest.mark.chaos]
STEPS = 20


def test_a_run_whose_mlflow_hangs_ends_well_and_sends_everything_later(
    ray_cluster: None, triplet_folder: Path, tmp_path: Path
) -> None:
    import ray

    job = [sys.executable, "jobs/pretrain.py"]
    words = [*job, "--config", "tests/tiny.yaml", "--triplets", str(triplet_folder)]
    words += ["--train.steps", str(STEPS), "--train.checkpoint_every_steps", "1000"]
    home = tmp_path / "home"
    with TroubledMlflow(tmp_path) as server:
        environment = {
            **os.environ, "DYNAFLIP_HOME": str(home), "MLFLOW_TRACKING_URI": server.uri,
            "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # of 10: each request that hangs costs twice this
        }  # fmt: skip
        process = subprocess.Popen(
            words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 300
        while not any(path.stat().st_size for path in home.glob("runs/*/metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.be(HANG)
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        (folder,) = (home / "runs").iterdir()
        send = [*job, "--send", folder.name]
        assert f"python jobs/pretrain.py --send {folder.name}" in output
        assert f"step {STEPS}/{STEPS}" in output, "progress went on"
        assert output.count("warning: MLflow is away") == 2, "when it went, and at the end"
        assert (folder / "encoder" / "config.json").is_file()

        server.be(WELL)
        sent = subprocess.run(
            send, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
        )
        assert sent.returncode == 0, sent.stderr
        assert "registered models:/dynaflip-encoder/1" in sent.stdout
        run_id = json.loads((folder / "run.json").read_text())["run_id"]
        store = client(server.store)
        history = store.get_metric_history(run_id, "train/loss")
        assert [point.step for point in history] == list(range(1, STEPS + 1)), "in order, once"
        assert store.get_run(run_id).info.status == "FINISHED"
