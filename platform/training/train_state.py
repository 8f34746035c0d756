"""Training state: modules, optimizer, counters, and the position in the data."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dynaflip.encoders.backbones.transformers_vision import TransformersBackbone
from dynaflip.encoders.model import DynaFLIP
from dynaflip.losses.distributed import gather_rows, world_size
from dynaflip.losses.objective import Objective
from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.training.checkpoint_format import (
    HostBuffers,
    Snapshot,
    restore,
    seed_step,
    take_snapshot,
)
from dynaflip.platform.training.config import PRETRAIN_VERSION, PretrainConfig
from dynaflip.platform.training.data.sampling import Position
from dynaflip.platform.training.flops import flops_per_example
from dynaflip.platform.training.optimizer import build_optimizer, build_schedule

Metrics = dict[str, float]


class TrainingState:
    """One rank's state; apart from the examples of the last few steps it is equal on every rank."""

    def __init__(self, config: PretrainConfig, device: str, total_steps: int) -> None:
        """Build everything anew, from the run's seed."""
        self.config = config
        seed_step(config.train.seed, 0, 0)  # the same weights on every rank
        self.model = DynaFLIP(config.model).to(device).train()
        self.model.image.freeze_unread()
        width = config.model.embedding_dim
        self.objective = Objective(config.objective, width, self.model.image.dim).to(device)
        self.model.learnt_frames = self.objective.frames()
        self.average: AveragedModel | None = None
        if config.train.ema_decay:
            averaging = get_ema_multi_avg_fn(config.train.ema_decay)
            self.average = AveragedModel(self.model, multi_avg_fn=averaging)
        # Where a peak to compare it with may be known.
        on_gpu = torch.device(device).type == "cuda"
        counted = on_gpu and isinstance(self.model.image.backbone, TransformersBackbone)
        self.flops_per_example = flops_per_example(self.model) if counted else None
        if config.train.activation_checkpointing:
            self.model.image.recompute_activations()
        self.optimizer = build_optimizer(self.model, self.objective, config.optimizer)
        self.schedule = build_schedule(self.optimizer, config.optimizer, total_steps)
        self.step = 0
        self.position = Position()
        # Examples of this part that all ranks have trained on, and this rank's since then.
        self._trained = np.zeros(0, np.int64)
        self._recent: list[Tensor] = []
        self._buffers = HostBuffers()
        # What the meter holds between two reports (:meth:`Meter.state`), JSON values.
        self.meter: dict[str, Any] = {}

    def parallel(self) -> tuple[nn.Module, nn.Module]:
        """Model and objective as the step calls them: compiled, and gathering gradients.

        :attr:`model` itself is never compiled: evaluation would compile it a second time.
        """
        compiles = self.config.train.compile
        if world_size() == 1:
            model = torch.compile(self.model) if compiles else self.model
            return cast(nn.Module, model), self.objective
        # Statistics of BatchNorm are the only buffers that may differ, and only where they learn.
        # All parameters are used in every step (ImageEncoder.freeze_unread), but by GradCache in
        # several passes: neither unused ones are looked for nor is the graph static.
        parallel = DistributedDataParallel(
            self.model,
            gradient_as_bucket_view=True,
            **_buffers(shared=self.config.model.image.train_batchnorm),
        )
        if compiles:
            parallel.compile()  # what DDP does around the model is not compiled
        if not any(parameter.requires_grad for parameter in self.objective.parameters()):
            return parallel, self.objective
        objective = DistributedDataParallel(
            self.objective, gradient_as_bucket_view=True, **_buffers(shared=False)
        )
        return parallel, objective

    def evaluated_model(self) -> DynaFLIP:
        """The model that is evaluated and registered: the average, where there is one."""
        if self.average is None:
            return self.model
        average = self.average.module
        assert isinstance(average, DynaFLIP)
        return average

    def advance(self, examples: Tensor) -> None:
        """Count a step on these examples, (B,) int64 ids of this rank."""
        self.step += 1
        self.position = dataclasses.replace(self.position, steps=self.position.steps + 1)
        self._recent.append(examples)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def learning_rates(self) -> Metrics:
        """Rates of the next step: of the heads, and of the backbone where it is trained."""
        rates = {"train/lr": float(self.optimizer.param_groups[0]["lr"])}  # heads come first
        if any(parameter.requires_grad for parameter in self.model.image.parameters()):
            rates["train/lr_backbone"] = float(self.optimizer.param_groups[-1]["lr"])
        return rates

    def next_epoch(self) -> None:
        """Begin the next pass over the data."""
        self.position = Position(self.position.epoch + 1)
        self._trained, self._recent = np.zeros(0, np.int64), []

    def gather_examples(self) -> None:
        """Gather what all ranks have trained on since the last call; every rank must call it."""
        if self._recent:
            device = next(self.model.parameters()).device
            everyone = gather_rows(torch.cat(self._recent).to(device)).cpu().numpy()
            self._trained, self._recent = np.concatenate([self._trained, everyone]), []

    def snapshot(self, reports: list[Metrics]) -> Snapshot:
        """A copy to write before the next one is taken, after :meth:`gather_examples`.

        Args:
            reports: the newest ones, repeated by a run that is resumed from here.
        """
        seen = np.ascontiguousarray(self.position.seen)
        return take_snapshot(
            self._modules(),
            self.optimizer,
            self.schedule,
            buffers=self._buffers,
            position={"seen": torch.from_numpy(seen), "had": torch.from_numpy(self._trained)},
            document={
                "pretrain_version": PRETRAIN_VERSION,
                "step": self.step,
                "epoch": self.position.epoch,
                "steps_of_part": self.position.steps,
                "workers": world_size(),
                "random": {"kind": "counter", "seed": self.config.train.seed},
                # Of this very step: a checkpoint between two reports has none.
                "metrics": reports[-1] if reports and reports[-1]["step"] == self.step else {},
                "reports": reports,
                "meter": self.meter,
                "config": to_dict(self.config),
            },
        )

    def restore(self, folder: Path, log: Callable[[str], None] = print) -> list[Metrics]:
        """Restore a checkpoint; returns its reports.

        With another number of workers than it was written with, the rest of the epoch is
        distributed anew. Of a checkpoint from the middle of an epoch of earlier code, whose order
        and ids of examples were others, that epoch begins anew.

        Args:
            folder: of the checkpoint.
            log: takes a line for the user.
        """
        document, position = restore(folder, self._modules(), self.optimizer, self.schedule)
        self.step = int(document["step"])
        self.meter = document.get("meter", {})
        if self.average is not None:
            self.average.n_averaged.fill_(self.step)
        seen, trained = position["seen"].numpy(), position["had"].numpy()
        epoch, steps = int(document["epoch"]), int(document["steps_of_part"])
        if document.get("pretrain_version") != PRETRAIN_VERSION and (steps or len(seen)):
            log(
                f"warning: the checkpoint of step {self.step} is of another version of this code, "
                f"which orders triplets otherwise: epoch {epoch} begins anew, and some of its "
                "triplets come twice"
            )
            self.position = Position(epoch)
        elif document["workers"] == world_size():
            self._trained = trained
            self.position = Position(epoch, steps, seen)
        else:
            everything = np.unique(np.concatenate([seen, trained]))
            self.position = Position(epoch, 0, everything)
        return document["reports"]

    def _modules(self) -> dict[str, Any]:
        modules: dict[str, Any] = {"model": self.model, "objective": self.objective}
        if self.average is not None:
            modules["average"] = self.average.module
        return modules


def _buffers(*, shared: bool) -> dict[str, Any]:
    """Argument of DDP for sending rank 0's buffers in each step, in its torch's own words."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers"  # since torch 2.13, where the other is deprecated
    return {name if name in known else "broadcast_buffers": shared}
