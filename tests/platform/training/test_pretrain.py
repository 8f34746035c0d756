"""The whole of it on a real Ray cluster: train, stop, resume, register, load, fail clearly."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkout import REPOSITORY
from killed_workers import Killer, curves_and_points

import dynaflip
from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
from dynaflip.errors import UserError
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.paths import runs
from dynaflip.platform.tracking.store import client
from dynaflip.platform.training.config import DataConfig, PretrainConfig, TrainConfig

pytestmark = pytest.mark.ray
CONFIGS = Path(__file__).resolve().parents[3] / "jobs" / "configs"


def config_of(folder: Path, **train: object) -> PretrainConfig:
    settings = {"steps": 4, "report_every_steps": 1, "checkpoint_every_steps": 2}
    return PretrainConfig(
        triplets=str(folder),
        model=ModelConfig(
            image=ImageConfig(image_px=32, pretrained=False),
            flow=FlowConfig(width=32, layers=1, heads=2, channels=8),
            embedding_dim=16,
            hidden_dim=32,
        ),
        data=DataConfig(batch_size=8),
        train=TrainConfig(**{**settings, "eval_every_steps": 4, "threads": 1, **train}),  # type: ignore[arg-type]
    )


def test_a_short_run_ends_in_a_registered_encoder(
    ray_cluster: None, triplet_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynaflip.platform.training.run import pretrain

    config = config_of(triplet_folder, steps=2, eval_every_steps=0, profile_steps="1-2")
    outcome = pretrain(config, alias="short")
    # What it trained on, what limited it, and the profile: said, and in MLflow.
    output = capsys.readouterr().out
    assert "device CPU (1 threads), as no GPU was found, 1 worker(s), float32" in output
    assert "limited by " in output
    run = client().get_run(outcome.run_id)
    assert run.data.metrics[f"speed/share/{run.data.tags['limited_by']}"] > 0
    files = client().list_artifacts(outcome.run_id, "profile/steps-1-2")
    names = {Path(file.path).name for file in files}
    assert names == {"operations.txt", "trace.json.gz"}
    assert outcome.uri().startswith("models:/dynaflip-encoder/")
    encoder = dynaflip.load_encoder("models:/dynaflip-encoder@short")
    assert (encoder.info["run_name"], encoder.info["steps"]) == (outcome.run_name, 2)


@pytest.mark.integration
def test_a_run_survives_its_worker_and_its_driver_and_is_logged_registered_and_loads(
    ray_cluster: None, triplet_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynaflip.platform.tracking import registry
    from dynaflip.platform.training import run as training

    def killed(*args: object, **kwargs: object) -> int:
        raise KeyboardInterrupt

    steps = 8
    killer = Killer([4])
    killer.start()
    config = config_of(triplet_folder, steps=steps, num_workers=2, eval_every_steps=steps)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "register", killed)
        with pytest.raises(KeyboardInterrupt):
            training.pretrain(config)
    assert killer.killed == [4]
    folder = max(runs().glob("*/run.json"), key=lambda path: path.stat().st_mtime).parent
    saved = json.loads((folder / "run.json").read_text())
    store = client()
    assert store.get_run(saved["run_id"]).info.status == "KILLED"

    outcome = training.resume(folder.name, alias="candidate")
    assert outcome.run_id == saved["run_id"]
    run = store.get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["data_digest"] == "synthetic"
    assert run.inputs.dataset_inputs[0].dataset.digest == "synthetic"
    assert run.data.tags["flow_source"] == "lk"
    curves, points = curves_and_points(outcome.run_id)
    assert points["train/contrastive"] == list(range(1, steps + 1)), "each step once"
    assert [step for step, _ in curves["heldout/retrieval/task/top1"]] == [0, steps]
    images = [item.path for item in store.list_artifacts(outcome.run_id, "images")]
    assert images == ["images/curves.png", "images/flow.png"]
    encoder = dynaflip.load_encoder("models:/dynaflip-encoder@candidate")
    assert encoder.info["run_name"] == outcome.run_name
    with torch.no_grad():
        assert encoder(np.zeros((1, 50, 60, 3), np.uint8)).shape == (1, 1280)
    assert f"step {steps}/{steps}" in (runs() / outcome.run_name / "progress.log").read_text()
    with pytest.raises(UserError, match="the run is finished; it is version"):
        training.resume(outcome.run_name)


@pytest.mark.chaos  # that the loop stops and names the batch is tested without Ray
@pytest.mark.integration
def test_a_loss_that_is_not_finite_ends_the_run_as_failed(
    ray_cluster: None, triplet_folder: Path
) -> None:
    from dynaflip.platform.training.run import pretrain
    from dynaflip.platform.training.step import NonFiniteLoss

    config = config_of(triplet_folder)
    # A rate that throws the weights to infinity in the first step.
    wild = dataclasses.replace(config.optimizer, lr=1e38, clip_norm=0, warmup_share=0)
    with pytest.raises(NonFiniteLoss, match=r"^step \d+: loss.*; triplets of the batch: \w+-\d"):
        pretrain(dataclasses.replace(config, optimizer=wild))
    store = client()
    experiment = store.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    newest = store.search_runs([experiment.experiment_id], max_results=1)[0]
    assert newest.info.status == "FAILED"
    assert "triplets of the batch:" in newest.data.tags["error"]


def test_a_cluster_that_is_too_small_is_one_clear_line(ray_cluster: None) -> None:
    from dynaflip.platform.training.backends.ray_train import scaling_of

    def config(**train: object) -> PretrainConfig:
        return PretrainConfig(train=TrainConfig(**train))  # type: ignore[arg-type]

    two = {"CPU": 2.0}
    assert scaling_of(config(num_workers=2), two).resources_per_worker == {"CPU": 1.0}
    assert scaling_of(config(), {"CPU": 16.0, "GPU": 1.0}).use_gpu
    elastic = scaling_of(config(num_workers=4, min_workers=1, cpus_per_worker=1.0), two)
    assert elastic.num_workers == (1, 4)
    for train, gpus, said in (
        ({"num_workers": 4}, 2.0, "auto: 4 .* need 4 GPU.* has 2; use --train.num_workers 2, or "),
        ({"num_workers": 4, "min_workers": 2}, 1.0, "use --train.min_workers 1, or --train.device"),
        ({"gpus_per_worker": 2.0}, 1.0, "use --train.gpus_per_worker 1, or --train.device cpu"),
        ({"device": "gpu"}, 0.0, r"gpu: 1 .* need 1 GPU\(s\), .* has 0; use --train.device cpu"),
    ):
        with pytest.raises(UserError, match=said):
            scaling_of(config(**train), {"CPU": 16.0, "GPU": gpus})
    assert not scaling_of(config(num_workers=4), {"CPU": 16.0}).use_gpu
    assert not scaling_of(config(device="cpu", num_workers=4), {"CPU": 16.0, "GPU": 2.0}).use_gpu
    with pytest.raises(UserError, match="needs some CPU a worker, the cluster has 0"):
        scaling_of(config(), {"CPU": 0.0})
    with pytest.raises(UserError, match=r"needs 1\.0 CPU a worker"):
        scaling_of(config(num_workers=4, cpus_per_worker=1.0), two)


def test_machines_are_waited_for_as_long_as_is_said(
    ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynaflip.platform import cluster
    from dynaflip.platform.training.backends.ray_train import bundles_of, check_shared

    config = PretrainConfig(train=TrainConfig(num_workers=64, min_workers=8, device="gpu"))
    bundles = bundles_of(config)
    assert bundles == [{"CPU": 1.0, "GPU": 1.0}] * 8
    cluster.wait_for(bundles, 0.0)
    assert capsys.readouterr().out == ""
    cluster.wait_for(bundles, 0.1)  # nobody starts any here
    assert "waiting for machines: " in (output := capsys.readouterr().out)
    assert "0 of 8 GPUs" in output
    with pytest.raises(UserError, match=r"/nowhere is not there on .*share DYNAFLIP_HOME"):
        check_shared("/nowhere")
    check_shared("s3://bucket/prefix")


@pytest.mark.integration
def test_checkpoints_in_a_bucket_end_in_an_encoder(triplet_folder: Path, tmp_path: Path) -> None:
    moto = pytest.importorskip("moto.server", reason="an S3 server: pip install moto[server]")
    import boto3

    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    aws = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    store = boto3.Session("key", "secret", region_name="us-east-1").client(
        "s3", endpoint_url=aws["AWS_ENDPOINT_URL"]
    )
    store.create_bucket(Bucket="checkpoints")
    words = ["--config", "tests/tiny.yaml", "--triplets", str(triplet_folder), "--train.steps", "2"]
    words += ["--train.checkpoint_storage", "s3://checkpoints/lab", "--train.eval_every_steps", "0"]
    done = subprocess.run(
        [sys.executable, "jobs/pretrain.py", *words],
        cwd=REPOSITORY,
        env={**os.environ, **aws, "DYNAFLIP_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    keys = [item["Key"] for item in store.list_objects_v2(Bucket="checkpoints")["Contents"]]
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"lab/{folder.name}/step-00000002/digests.json" in keys
    assert dynaflip.load_encoder(str(folder / "encoder")).info["steps"] == 2
    server.stop()


def test_the_demo_s_settings_are_known_and_commented() -> None:
    config = load_config(PretrainConfig, str(CONFIGS / "demo.yaml"), {})
    assert config.model.image.image_px == 112
    assert config.data.batch_size == 32
