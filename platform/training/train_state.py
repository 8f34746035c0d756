"""What changes while training: modules, optimizer, counters, and the place in the data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dynaflip.encoders.model import DynaFLIP
from dynaflip.losses.distributed import gather_rows, world_size
from dynaflip.losses.objective import Objective
from dynaflip.platform.config_loader import to_dict
from dynaflip.platform.training.checkpoint_format import Snapshot, restore, seed_step, take_snapshot
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.data.sampling import Position
from dynaflip.platform.training.optimizer import build_optimizer, build_schedule

Metrics = dict[str, float]


class TrainingState:
    """One rank's copy; all but the examples of the last few steps is alike on every rank."""

    def __init__(self, config: PretrainConfig, device: str, total_steps: int) -> None:
        """Everything afresh, from the run's seed."""
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
        if config.train.activation_checkpointing:
            self.model.image.recompute_activations()
        self.optimizer = build_optimizer(self.model, self.objective, config.optimizer)
        self.schedule = build_schedule(self.optimizer, config.optimizer, total_steps)
        self.step = 0
        self.position = Position()
        # Examples that all ranks have had in this part, and this rank's since then.
        self._had = np.zeros(0, np.int64)
        self._recent: list[Tensor] = []

    def parallel(self) -> tuple[nn.Module, nn.Module]:
        """Model and objective as the step calls them: compiled, and gathering gradients."""
        if self.config.train.compile:
            self.model.compile()
        if world_size() == 1:
            return self.model, self.objective
        learns = any(parameter.requires_grad for parameter in self.objective.parameters())
        return (
            DistributedDataParallel(self.model),
            DistributedDataParallel(self.objective, forward_sync_buffers=False)
            if learns
            else self.objective,
        )

    def kept(self) -> DynaFLIP:
        """The model that is evaluated and registered: the average, where there is one."""
        if self.average is None:
            return self.model
        kept = self.average.module
        assert isinstance(kept, DynaFLIP)
        return kept

    def advance(self, examples: Tensor) -> None:
        """Count a step that had these examples, (B,) int64 ids of this rank."""
        self.step += 1
        self.position = dataclasses.replace(self.position, steps=self.position.steps + 1)
        self._recent.append(examples)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def learning_rates(self) -> Metrics:
        """Rates of the step to come: of the heads, and of the backbone where it is trained."""
        rates = {"train/lr": float(self.optimizer.param_groups[0]["lr"])}  # heads come first
        if any(parameter.requires_grad for parameter in self.model.image.parameters()):
            rates["train/lr_backbone"] = float(self.optimizer.param_groups[-1]["lr"])
        return rates

    def next_epoch(self) -> None:
        """Begin the next pass over the data."""
        self.position = Position(self.position.epoch + 1)
        self._had, self._recent = np.zeros(0, np.int64), []

    def snapshot(self, reports: list[Metrics]) -> Snapshot:
        """A copy to write; every rank must call it, because it asks all for their examples.

        Args:
            reports: the newest ones, to be repeated by a run that goes on from here.
        """
        if self._recent:
            device = next(self.model.parameters()).device
            everyone = gather_rows(torch.cat(self._recent).to(device)).cpu().numpy()
            self._had, self._recent = np.concatenate([self._had, everyone]), []
        seen = np.ascontiguousarray(self.position.seen)
        return take_snapshot(
            self._modules(),
            self.optimizer,
            self.schedule,
            position={"seen": torch.from_numpy(seen), "had": torch.from_numpy(self._had)},
            document={
                "step": self.step,
                "epoch": self.position.epoch,
                "steps_of_part": self.position.steps,
                "workers": world_size(),
                "random": {"kind": "counter", "seed": self.config.train.seed},
                "metrics": reports[-1] if reports else {},
                "reports": reports,
                "config": to_dict(self.config),
            },
        )

    def restore(self, folder: Path) -> list[Metrics]:
        """Take up a checkpoint; returns its reports.

        With other workers than it was written with, what is left of the epoch is dealt out
        anew.
        """
        document, position = restore(folder, self._modules(), self.optimizer, self.schedule)
        self.step = int(document["step"])
        if self.average is not None:
            self.average.n_averaged.fill_(self.step)
        seen, had = position["seen"].numpy(), position["had"].numpy()
        if document["workers"] == world_size():
            self._had = had
            self.position = Position(document["epoch"], document["steps_of_part"], seen)
        else:
            everything = np.unique(np.concatenate([seen, had]))
            self.position = Position(document["epoch"], 0, everything)
        return document["reports"]

    def _modules(self) -> dict[str, Any]:
        modules: dict[str, Any] = {"model": self.model, "objective": self.objective}
        if self.average is not None:
            modules["average"] = self.average.module
        return modules
