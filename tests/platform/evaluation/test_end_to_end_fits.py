"""Where policies that train their encoder are fitted, and what of it their digests know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkout import REPOSITORY
from tiny_rollouts import encoder_folder, tiny

from dynaflip.errors import UserError
from dynaflip.eval.policies.config import EndToEndConfig
from dynaflip.platform.evaluation import plan
from dynaflip.platform.evaluation.compare import _setting
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.demonstrations import DemonstrationSet
from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest, encoder_at
from dynaflip.platform.evaluation.end_to_end_fits import fit_device, gpus_of_a_fit
from dynaflip.platform.evaluation.fits_config import FitsConfig

LORA = {"adaptation": "lora", "end_to_end": EndToEndConfig(steps=3, batch_size=8, lora_rank=2)}
SHOWN = {"reach-v3": DemonstrationSet("reach-v3", "/x", "whole", 3)}


def spec_of(folder: Path, **changes: Any) -> plan.PolicySpec:
    from dynaflip.eval.policies.config import BehaviourCloningConfig

    head = {"behaviour_cloning": BehaviourCloningConfig(hidden_dim=8, layers=1)}
    tested = [EncoderUnderTest("trained", (encoder_at(str(folder)),))]
    config = tiny(folder, **{**head, **LORA, **changes})
    return plan.plan_jobs(config, tested, SHOWN)[0].policy


def test_a_digest_knows_the_precision_and_not_the_machine(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "encoder")
    first = spec_of(folder)
    assert "precision" not in first.end_to_end  # as before there was a choice
    elsewhere = spec_of(folder, fits=FitsConfig("gpu", 0.5))
    assert elsewhere == first
    half = spec_of(folder, end_to_end=replace(LORA["end_to_end"], precision="bfloat16"))
    assert half.digest() != first.digest()


def test_runs_from_before_there_was_a_precision_are_compared_with_later_ones() -> None:
    then: Any = SimpleNamespace(settings={"end_to_end": {"steps": 5}})
    now: Any = SimpleNamespace(settings={"end_to_end": {"steps": 5, "precision": "float32"}})
    half: Any = SimpleNamespace(settings={"end_to_end": {"steps": 5, "precision": "bfloat16"}})
    assert _setting(then, "end_to_end") == _setting(now, "end_to_end")
    assert _setting(then, "end_to_end") != _setting(half, "end_to_end")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fits": FitsConfig("cpu")}, "fits is read with adaptation lora or full"),
        (lambda: FitsConfig("tpu"), "device must be one of auto, cpu, gpu"),
        (lambda: FitsConfig("cpu", 0.5), "gpus is read where device is auto or gpu"),
        (lambda: FitsConfig(gpus=0.0), r"gpus must be in \(0, 1\]"),
        (lambda: FitsConfig(gpus=2.0), r"gpus must be in \(0, 1\]"),
        (lambda: EndToEndConfig(precision="half"), "precision must be one of float32, bfloat16"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings() if callable(settings) else RolloutConfig(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_reserved_gpu_that_torch_does_not_see_is_named_or_done_without() -> None:
    assert fit_device("auto", reserved=True) == "cpu"
    assert fit_device("auto", reserved=False) == "cpu"
    with pytest.raises(
        UserError, match=r"^fits.device gpu: Ray has reserved .* sees none"
    ) as error:
        fit_device("gpu", reserved=True)
    assert "\n" not in str(error.value)


@pytest.mark.ray
def test_a_machine_without_a_gpu_fits_on_cpus_unless_a_gpu_is_asked_for(ray_cluster: None) -> None:
    assert gpus_of_a_fit(FitsConfig()) == 0
    assert gpus_of_a_fit(FitsConfig("cpu")) == 0
    with pytest.raises(UserError, match=r"^fits.device gpu: Ray finds no GPU on this machine"):
        gpus_of_a_fit(FitsConfig("gpu"))


@pytest.mark.ray
@pytest.mark.sim
@pytest.mark.integration
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU here is to be one in name alone")
def test_fits_go_where_the_gpu_is_and_rollouts_where_cpus_are(tmp_path: Path) -> None:
    script = Path(__file__).with_name("gpu_fits_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
            "DYNAFLIP_HOME": str(tmp_path / "home"),
        },
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("FOUND "))

    assert found["fitted_on"] == [found["gpu_node"]]
    # Somebody else had the GPU, and the CPU beside it.
    assert found["rolled_out_on"] == [found["head"]]
    assert all(found["steps"])
    assert found["equal"], "the weights are not those of a fit in this process, on its CPU"
    (note,) = [line for line in found["said"] if line.startswith("note: Ray has reserved a GPU on")]
    assert "where torch sees none: policies are fitted on its CPU" in note
    assert found["refused"].startswith("fits.device gpu: Ray has reserved a GPU on")
    assert "\n" not in found["refused"]
