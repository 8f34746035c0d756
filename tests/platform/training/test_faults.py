"""What a cluster does to a run that is not its fault: the steps and curves do not show it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import REPOSITORY
from killed_workers import Killer, curves_and_points
from test_training_chaos import config_of

from dynaflip.platform.training.curve_file import CurveFile

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
STEPS = 60


def until(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "the run ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def job(triplets: Path, *words: str, steps: int = STEPS) -> list[str]:
    settings = ["--config", "tests/tiny.yaml", "--triplets", str(triplets)]
    return [sys.executable, "jobs/pretrain.py", *settings, "--train.steps", str(steps), *words]


def last_step(home: Path) -> int:
    return max(
        (CurveFile(path.parent).last_step() for path in home.glob("runs/*/run.json")), default=-1
    )


@pytest.mark.timeout(900)
def test_a_node_that_is_drained_costs_no_step_and_no_failure(
    triplet_folder: Path, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("preempted_run.py")
    paths = [REPOSITORY, script.parent, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "DYNAFLIP_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    words = [sys.executable, str(script), str(triplet_folder)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=800)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(lines[0].removeprefix("FOUND "))
    assert result["noted"], "it was heard of"
    assert result["checkpoints"][:-1] == result["noted"], "and a checkpoint saved at once"
    assert result["workers"] == [2, 1], "it went on without the node"
    assert result["steps"] == list(range(1, len(result["steps"]) + 1)), "each step once"
    assert len(result["steps"]) > result["taken_at"], "steps were done without the node"


@pytest.mark.timeout(900)
def test_a_worker_that_is_told_to_end_costs_no_step_and_no_failure(
    ray_cluster: None, triplet_folder: Path
) -> None:
    from dynaflip.platform.training.run import pretrain

    config = config_of(triplet_folder)
    train = dataclasses.replace(
        config.train, steps=STEPS, checkpoint_every_steps=1000, max_failures=0
    )
    config = dataclasses.replace(config, train=train)
    killer = Killer([10, 30], signal.SIGTERM)
    killer.start()
    broken = pretrain(config)
    assert killer.killed == [10, 30]
    curves, points = curves_and_points(broken.run_id)
    assert points["train/loss"] == list(range(1, STEPS + 1)), "each step once"
    expected, _ = curves_and_points(pretrain(config).run_id)
    for name, values in expected.items():
        if not name.startswith("speed/"):
            assert curves[name] == values, name


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_a_driver_that_is_told_to_end_leaves_with_143_and_goes_on(
    triplet_folder: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "DYNAFLIP_HOME": str(tmp_path)}
    words = job(triplet_folder, "--train.checkpoint_every_steps", "1000")
    first = subprocess.Popen(
        words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    )
    until(lambda: last_step(tmp_path) >= 5, first)
    first.terminate()
    began = time.monotonic()
    output, _ = first.communicate(timeout=120)
    print(f"left {time.monotonic() - began:.1f} s after SIGTERM")
    assert first.returncode == 143, output
    line = re.search(r"told to end; a checkpoint is saved. Go on with:\n +python (.*)", output)
    assert line is not None, output
    (saved,) = tmp_path.glob("runs/*/checkpoints/step-*")
    again = subprocess.run(
        [sys.executable, *line[1].split()], cwd=REPOSITORY, env=environment,
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"step {STEPS}/{STEPS}" in again.stdout
    assert f"step {int(saved.name[5:]) - 1:>2}/{STEPS}" not in again.stdout, "none twice"
    (folder,) = (tmp_path / "runs").iterdir()
    steps = [step for step, _ in CurveFile(folder).curves()["train/loss"]]
    assert steps == list(range(1, STEPS + 1))


@pytest.fixture
def troubled_s3(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """moto's S3 over HTTP, slow or refusing as a file says; its address and that file.

    While it is slow a file takes 20 s, and one that waits is taken as soon as it is so no longer.
    """
    moto = pytest.importorskip("moto.server", reason="an S3 server: pip install moto[server]")
    from werkzeug.serving import make_server

    mode = tmp_path / "s3-is"
    mode.write_text("well")
    app = moto.DomainDispatcherApplication(moto.create_backend_app)

    def troubled(environ: Any, start: Any) -> Any:
        if mode.read_text() == "refusing":
            start("503 Slow Down", [("Content-Type", "text/plain")])
            return [b""]
        until = time.monotonic() + (20 if environ["REQUEST_METHOD"] == "PUT" else 0)
        while mode.read_text() == "slow" and time.monotonic() < until:
            time.sleep(0.1)
        return app(environ, start)

    server = make_server("127.0.0.1", 0, troubled, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", mode
    server.shutdown()


@pytest.mark.timeout(900)
def test_a_slow_and_a_refusing_object_store_hold_up_no_step(
    triplet_folder: Path, tmp_path: Path, troubled_s3: tuple[str, Path]
) -> None:
    import boto3

    address, mode = troubled_s3
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    aws = {**keys, "AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    session = boto3.Session("key", "secret", region_name="us-east-1")
    session.client("s3", endpoint_url=address).create_bucket(Bucket="checkpoints")
    environment = {**os.environ, **aws, "DYNAFLIP_HOME": str(tmp_path / "home")}
    words = job(triplet_folder, "--train.checkpoint_every_steps", "10", steps=300)
    words += ["--train.checkpoint_storage", "s3://checkpoints/lab"]
    process = subprocess.Popen(
        words, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    )

    def log() -> str:
        return "".join(path.read_text() for path in tmp_path.glob("home/runs/*/progress.log"))

    until(lambda: "step   5/300" in log(), process)
    mode.write_text("slow")
    until(lambda: "checkpoint before is still being written" in log(), process)
    mode.write_text("refusing")
    until(lambda: log().count("; continuing") >= 3, process)  # writes that were refused
    mode.write_text("well")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    (folder,) = (tmp_path / "home" / "runs").iterdir()
    steps = [step for step, _ in CurveFile(folder).curves()["train/loss"]]
    assert steps == list(range(1, 301)), "each step once"
    assert (folder / "encoder" / "config.json").is_file(), "of the last checkpoint, from S3"
