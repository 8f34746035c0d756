"""Processes on the device: NCCL with one, and with two where there are two GPUs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import SkipTest

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from gpu_cases import apart, batch_of, gradients, in_float64, on, tiny_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.distributed import gather_rows, global_sum, world_size
from dynaflip.losses.objective import Objective
from dynaflip.platform.training.grad_cache import forward

BATCH = 8


def begin(rank: int, world: int, kind: str, folder: str) -> str:
    """Join the group; returns this process's device."""
    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=world,
    )
    return f"cuda:{rank}" if kind == "cuda" else "cpu"


def gradient_of(rank: int, device: str, *, parallel: bool) -> dict[str, Tensor]:
    """The gradient of this process's share of one batch, in micro-batches, in float64."""
    whole = in_float64(batch_of(BATCH, device))
    own = BATCH // world_size()
    mine = {name: value[rank * own : (rank + 1) * own] for name, value in whole.items()}
    model = tiny_model(device).double()
    called = DistributedDataParallel(model) if parallel else model
    objective = Objective(ObjectiveConfig()).to(device).double()
    outputs, backward = forward(called, mine, 2)
    backward(objective(outputs, mine)["loss"])
    return gradients(model)


def one_of_two(rank: int, kind: str, folder: str) -> None:
    """What each of two processes does; the first writes its gradient."""
    device = begin(rank, 2, kind, folder)
    try:
        found = gradient_of(rank, device, parallel=True)
        if rank == 0:
            torch.save(found, f"{folder}/gradient.pt")
    finally:
        dist.destroy_process_group()


@on("cpu", "cuda")
def test_a_group_of_one_changes_nothing(device: str) -> None:
    alone = gradient_of(0, device, parallel=False)
    with tempfile.TemporaryDirectory() as folder:
        name = begin(0, 1, device, folder)
        try:
            rows = torch.arange(6.0, device=name).view(3, 2).requires_grad_()
            assert torch.equal(gather_rows(rows), rows)
            assert torch.equal(global_sum(rows), rows)
            found = gradient_of(0, name, parallel=True)
        finally:
            dist.destroy_process_group()
    assert apart(found, alone) < 1e-9


@on("cpu", "cuda", markers=("ddp", "integration"))
def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(device: str) -> None:
    if device == "cuda" and torch.cuda.device_count() < 2:
        raise SkipTest("needs two GPUs")
    alone = gradient_of(0, device, parallel=False)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_of_two, args=(device, folder), nprocs=2, join=True)
        found = torch.load(Path(folder) / "gradient.pt", weights_only=True)
    assert apart(found, alone) < 1e-9
