"""What a run computes on, and in which precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_loop import CONFIG, Trial

from dynaflip.errors import UserError
from dynaflip.platform.training import device
from dynaflip.platform.training.backends.in_process import _process_group
from dynaflip.platform.training.config import TrainConfig
from dynaflip.platform.training.data.collate import Batch
from dynaflip.platform.training.data.sampling import Position


@pytest.mark.parametrize(
    ("precision", "kind", "has_it", "expected"),
    [
        ("auto", "cpu", True, None),
        ("auto", "cuda:1", True, torch.bfloat16),
        ("auto", "cuda", False, None),
        ("float32", "cuda", True, None),
        ("bfloat16", "cpu", False, torch.bfloat16),
    ],
)
def test_bfloat16_is_the_default_where_the_device_has_it(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    kind: str,
    has_it: bool,
    expected: torch.dtype | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert device.autocast_dtype(precision, kind) == expected
    assert TrainConfig().precision == "auto"


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_what_the_setting_says_while_a_run_lasts(
    allowed: bool, triplet_folder: Path, tmp_path: Path
) -> None:
    train = dataclasses.replace(CONFIG.train, steps=2, eval_every_steps=0, tf32=allowed)
    trial = Trial(triplet_folder, dataclasses.replace(CONFIG, train=train), tmp_path)
    flags = []

    def batches(position: Position) -> Iterator[Batch]:
        flags.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        yield from trial.batches(position)

    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    trial.pretraining().run(batches)
    assert flags == [(allowed, allowed)]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_the_first_line_says_what_a_run_trains_on(triplet_folder: Path, tmp_path: Path) -> None:
    train = dataclasses.replace(CONFIG.train, steps=1, precision="bfloat16")
    trial = Trial(triplet_folder, dataclasses.replace(CONFIG, train=train), tmp_path)
    trial.pretraining().run(trial.batches)
    assert trial.logged[0] == (
        "device CPU (1 threads), as no GPU was found, 1 worker(s), bfloat16, batch 12 a worker, "
        "12 in all"
    )
    line = device.first_line("NVIDIA H100 80GB HBM3", 8, "float32", 32, tf32=True)
    assert line == (
        "device NVIDIA H100 80GB HBM3, 8 worker(s), float32 with TF32, batch 32 a worker, "
        "256 in all"
    )


@pytest.mark.parametrize(
    ("name", "bfloat16", "tf32", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12, 51e12),
        ("NVIDIA H200", 989e12, 494e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12, 19.5e12),
        ("NVIDIA A10G", 70e12, 35e12, 31.5e12),
        ("NVIDIA L4", 121e12, 60e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 183e12, 91.6e12),
        ("NVIDIA GeForce RTX 4090", 165e12, 82.6e12, 82.6e12),
        ("CPU (4 threads)", None, None, None),
    ],
)
def test_the_peak_is_that_of_the_named_gpu(
    name: str, bfloat16: float | None, tf32: float | None, float32: float | None
) -> None:
    assert device.peak_flops(name, "bfloat16", tf32=False) == bfloat16
    assert device.peak_flops(name, "float32", tf32=True) == tf32
    assert device.peak_flops(name, "float32", tf32=False) == float32


def test_workers_of_one_run_cannot_share_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"gpus_per_worker: NCCL .* 2 workers .*num_workers 1"):
        TrainConfig(num_workers=2, gpus_per_worker=0.5)
    assert TrainConfig(gpus_per_worker=0.5).gpus_per_worker == 0.5
    with pytest.raises(ValueError, match="tf32: only GPUs"):
        TrainConfig(device="cpu", tf32=True)


def test_fewer_gpus_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with (
        pytest.raises(UserError, match=r"3 processes need 3 GPUs, .* has 2; .*--nproc-per-node 2"),
        _process_group(0, 1, "auto"),
    ):
        pass
    with _process_group(0, 1, "cpu") as where:
        assert where == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with _process_group(0, 1, "auto") as where:
        assert where == "cpu"
