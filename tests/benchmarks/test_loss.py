"""The alignment's energies against the textbook formula that builds (N, N, D) tensors.

Run with `make bench`. Time and memory are ratios of two things measured in one run.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from expectation import show
from torch import Tensor
from torch.nn import functional as F

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.contrastive import Examples, contrastive_loss
from dynaflip.losses.energy import energy_matrix

pytestmark = pytest.mark.bench
NUM, DIM = 1024, 512


def raw_points(num: int = NUM, dim: int = DIM) -> dict[str, Tensor]:
    """Before normalisation: off the sphere the two formulas differ, and so do their slopes."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(num, dim, generator=generator).requires_grad_()
        for name in ("language", "image", "flow")
    }


def unit(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: F.normalize(value) for name, value in raw.items()}


def textbook(z: dict[str, Tensor]) -> Tensor:
    """E(L_j, I_i, F_j) as printed: differences of every image with every column, (N, N, D)."""
    u = z["image"][:, None] - z["language"][None]
    v = (z["flow"] - z["language"])[None].expand_as(u)
    uu, vv, uv = (u * u).sum(-1), (v * v).sum(-1), (u * v).sum(-1)
    area = 0.5 * (uu * vv - uv**2).clamp(min=0).sqrt()
    return area - (z["language"] * z["flow"]).sum(-1)[None]


def ours(z: dict[str, Tensor]) -> Tensor:
    return energy_matrix("image", z, z, 1.0, 1.0)


def measure(which: Callable[[dict[str, Tensor]], Tensor], out: str) -> None:
    """In a process of its own: forward and backward; seconds, peak bytes above the inputs."""
    torch.set_num_threads(1)
    raw = raw_points()
    which(
        unit(raw_points(8, 8))
    ).sum().backward()  # what torch loads at first use is not the formula's
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    matrix = which(unit(raw))
    matrix.sum().backward()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    gradient = torch.stack([value.grad for value in raw.values()])  # type: ignore[misc]
    torch.save({"s": seconds, "kB": peak, "matrix": matrix.detach(), "gradient": gradient}, out)


def test_loss_against_the_textbook(tmp_path: Path) -> None:
    found = []
    for which in (textbook, ours):
        out = str(tmp_path / which.__name__)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(which, out))
        process.start()
        process.join()
        assert process.exitcode == 0, "the textbook formula needs about 20 GB"
        found.append(torch.load(out, weights_only=True))
    book, mine = found
    print(
        f"\nenergies, N {NUM}, D {DIM}, forward and backward, one thread: memory "
        f"{book['kB'] / 1e6:.2f} GB against {mine['kB'] / 1e6:.3f} GB "
        f"(1/{book['kB'] / mine['kB']:.0f}), time {book['s']:.2f} s against {mine['s']:.3f} s "
        f"(1/{book['s'] / mine['s']:.0f})"
    )
    torch.testing.assert_close(mine["matrix"], book["matrix"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine["gradient"], book["gradient"], rtol=1e-3, atol=1e-5)
    show("memory of the textbook formula / ours", book["kB"] / mine["kB"], at_least=50)
    show("time of the textbook formula / ours", book["s"] / mine["s"], at_least=20)


def one_of_many(rank: int, world: int, local: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet-{world}-{local}", rank=rank, world_size=world
    )
    torch.set_num_threads(1)

    def step(number: int) -> None:
        z = unit(raw_points(number, 64))
        ids = rank * number + torch.arange(number)
        mine = Examples(z, ids, ids)
        contrastive_loss(ObjectiveConfig(), mine, mine.gathered())["loss"].backward()

    step(4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(local)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if rank == 0:
        Path(f"{folder}/{world}-{local}.txt").write_text(str(peak))
    dist.destroy_process_group()


def test_memory_of_a_process_grows_with_the_batch_times_its_own_share(tmp_path: Path) -> None:
    """The same N = 2048 over 8 processes and over 2: n·N is four times as much there."""
    found = {}
    for world, local in ((8, 256), (2, 1024)):
        mp.spawn(one_of_many, args=(world, local, str(tmp_path)), nprocs=world, join=True)
        found[world] = int((tmp_path / f"{world}-{local}.txt").read_text()) / 1e3
    print(
        f"\nalignment loss and its gradient, N 2048: {found[8]:.0f} MB a process at 8 processes, "
        f"{found[2]:.0f} MB at 2 ({found[2] / found[8]:.1f} times, as n·N is 4 times)"
    )
    show("memory of a process, 2 processes / 8", found[2] / found[8], at_least=2.5, at_most=6)
