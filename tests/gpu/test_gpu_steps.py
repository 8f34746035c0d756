"""Steps on the device: GradCache, copies, compilation, and exact resume with random numbers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from gpu_cases import (
    EMBEDDING_DIM,
    apart,
    batch_of,
    deterministic,
    differing,
    gradients,
    in_float64,
    on,
    tiny_model,
)
from torch import Tensor

from dynaflip.losses.config import ObjectiveConfig
from dynaflip.losses.objective import Objective
from dynaflip.platform.training.checkpoint_format import restore, seed_step, take_snapshot
from dynaflip.platform.training.config import OptimizerConfig
from dynaflip.platform.training.device import tf32
from dynaflip.platform.training.grad_cache import forward
from dynaflip.platform.training.optimizer import build_optimizer, build_schedule
from dynaflip.platform.training.step import train_step

OBJECTIVE = ObjectiveConfig(queue_size=16)


@on("cpu", "cuda")
def test_micro_batches_have_the_whole_batch_s_gradient(device: str) -> None:
    batch = in_float64(batch_of(10, device))
    found = []
    for size in (None, 4):
        model = tiny_model(device).double()
        objective = Objective(ObjectiveConfig()).to(device).double()
        outputs, backward = forward(model, batch, size)
        backward(objective(outputs, batch)["loss"])
        found.append(gradients(model))
    assert apart(found[1], found[0]) < 1e-9


@on("cpu", "cuda")
def test_the_second_pass_of_gradcache_draws_the_first_one_s_random_numbers(device: str) -> None:
    model = tiny_model(device, dropout=0.5)
    batch = batch_of(12, device)
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, args, out: seen.append(out["z_flow"].detach()))
    seed_step(0, 1, 0)
    outputs, backward = forward(model, batch, 4)
    backward(outputs["z_flow"].square().sum())
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first, second)
    again, _ = forward(model, batch, 4)
    assert not torch.equal(again["z_flow"], first), "chance is at work at all"


@on("cuda")
def test_pinned_batches_arrive_whole_while_the_device_computes(device: str) -> None:
    busy = torch.randn(4096, 4096, device=device)
    for seed in range(20):
        batch = batch_of(32, "cpu", seed)
        pinned = {name: value.pin_memory() for name, value in batch.items()}
        busy = torch.nn.functional.normalize(busy @ busy)
        arrived = {name: value.to(device, non_blocking=True) for name, value in pinned.items()}
        # A product after the copy, on the same stream, must see it whole.
        for name, value in arrived.items():
            assert torch.equal(value.cpu(), batch[name]), name


@on("cpu", "cuda")
def test_a_snapshot_does_not_change_with_the_weights(device: str) -> None:
    run = Run(device)
    run.train(1, 3)
    snapshot = run.snapshot()
    before = {k: v.clone() for k, v in snapshot.tensors["model"].items()}
    run.train(3, 5)
    for name, value in snapshot.tensors["model"].items():
        assert value.device.type == "cpu", name
        assert torch.equal(value, before[name]), name
    changed = [n for n, v in run.model.state_dict().items() if not torch.equal(v.cpu(), before[n])]
    assert changed, "training went on"


@on("cpu", "cuda", markers=("slow",))
def test_a_compiled_model_takes_the_same_step(device: str) -> None:
    found = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = tiny_model(device)
        if compiled:
            model.compile()
        batch = batch_of(8, device)
        with tf32(False):
            outputs, backward = forward(model, batch, None)
            loss = Objective(ObjectiveConfig()).to(device)(outputs, batch)["loss"]
            backward(loss)
        found.append((float(loss.detach()), gradients(model)))
    assert abs(found[1][0] - found[0][0]) < 1e-4 * abs(found[0][0])
    assert apart(found[1][1], found[0][1]) < 1e-3


class Run:
    """Model, objective with a memory bank, optimizer and schedule, as the loop has them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.model = tiny_model(device, dropout=0.5)
        self.objective = Objective(OBJECTIVE, EMBEDDING_DIM).to(device)
        settings = OptimizerConfig(lr=1e-2)
        self.optimizer = build_optimizer(self.model, self.objective, settings)
        self.schedule = build_schedule(self.optimizer, settings, 6)

    def train(self, first: int, end: int) -> None:
        """Steps ``first`` … ``end`` − 1 in micro-batches, seeded as the loop does it."""
        for step in range(first, end):
            seed_step(0, step, 0)
            batch = batch_of(8, self.device, seed=step)
            train_step(
                self.model, self.objective, self.optimizer, self.schedule, batch,
                micro_batch_size=4,
            )  # fmt: skip

    def snapshot(self):  # type: ignore[no-untyped-def]
        modules = {"model": self.model, "objective": self.objective}
        return take_snapshot(modules, self.optimizer, self.schedule, position={}, document={})

    def restore(self, folder: Path) -> None:
        modules = {"model": self.model, "objective": self.objective}
        restore(folder, modules, self.optimizer, self.schedule)


@on("cpu", "cuda")
def test_three_steps_and_three_after_a_restore_are_six_steps(device: str) -> None:
    with deterministic(), tempfile.TemporaryDirectory() as name:
        whole, again = Run(device), Run(device)
        whole.train(1, 7)
        again.train(1, 7)
        assert not differing(whole.model, again.model), "the device itself does not repeat itself"
        half = Run(device)
        half.train(1, 4)
        half.snapshot().write(Path(name))
        torch.manual_seed(123)  # another process has drawn other numbers
        rest = Run(device)
        rest.restore(Path(name))
        rest.train(4, 7)
        assert not differing(whole.model, rest.model)
        assert not differing(whole.objective, rest.objective), "the memory bank too"
