"""The pretraining loop; it knows neither Ray nor MLflow, a :class:`Context` stands for both."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dynaflip.encoders.model import DynaFLIP
from dynaflip.eval.retrieval import retrieval_report
from dynaflip.losses.objective import Objective
from dynaflip.platform.config import to_dict
from dynaflip.platform.training.collate import Batch
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.optimizer import build_optimizer, build_schedule
from dynaflip.platform.training.resume import load_state, save_state, seed_step
from dynaflip.platform.training.step import NonFiniteLoss, train_step

Metrics = dict[str, float]
DEFAULT_STEPS = 2000


@dataclass(frozen=True)
class Context:
    """What the loop needs of its surroundings: Ray Train, torchrun or nothing at all."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"
    # (metrics, checkpoint folder or None). Every rank calls it equally often; rank 0 alone
    # gives a folder, which is gone after the call.
    report: Callable[[Metrics, Path | None], None] = lambda metrics, folder: None


@dataclass(frozen=True)
class Plan:
    """How long the run is, from the size of the data set."""

    steps_per_epoch: int
    total_steps: int


def plan(config: PretrainConfig, train_triplets: int) -> Plan:
    """Steps of an epoch (full batches of a rank) and of the run.

    Raises:
        ValueError: fewer triplets than one batch of every worker.
    """
    per_epoch = train_triplets // config.train.num_workers // config.data.batch_size
    if per_epoch < 1:
        raise ValueError(
            f"{train_triplets} training triplets do not fill one batch: data.batch_size "
            f"{config.data.batch_size} x train.num_workers {config.train.num_workers}"
        )
    if config.train.epochs is not None:
        return Plan(per_epoch, max(1, round(config.train.epochs * per_epoch)))
    return Plan(per_epoch, config.train.steps or DEFAULT_STEPS)


class Pretraining:
    """Model, optimizer and counters of one rank, and the loop over them."""

    def __init__(
        self,
        config: PretrainConfig,
        context: Context,
        length: Plan,
        gallery: Batch | None = None,
        resume_from: Path | None = None,
    ) -> None:
        """Build everything, afresh or as a checkpoint left it.

        Args:
            config: the settings.
            context: rank, device, and where reports go.
            length: of :func:`plan`.
            gallery: held-out transitions, for rank 0; None skips retrieval.
            resume_from: checkpoint folder to go on from.
        """
        self.config, self.context, self.length, self.gallery = config, context, length, gallery
        seed_step(config.train.seed, 0, 0)  # the same weights on every rank
        model = DynaFLIP(config.model)
        self.model = model.to(context.device).train()
        self.objective = Objective(config.objective, config.model.embedding_dim)
        self.optimizer = build_optimizer(model, config.optimizer)
        self.schedule = build_schedule(self.optimizer, config.optimizer, length.total_steps)
        self.step = 0
        if resume_from is not None:
            self.step = load_state(resume_from, self.model, self.optimizer, self.schedule)
        # Gathers gradients; with one rank the model itself.
        self.parallel: nn.Module = self.model
        if context.world_size > 1:
            self.parallel = nn.parallel.DistributedDataParallel(self.model)
        self.meter = Meter(context.world_size * config.data.batch_size)

    def run(self, batches: Callable[[int, int], Iterator[Batch]]) -> None:
        """Train to the last step.

        Args:
            batches: (epoch, batches to skip) to an iterator over the rest of that epoch.

        Raises:
            NonFiniteLoss: names the step and the batch's triplets.
        """
        if self.step == 0 and self._evaluates(0):
            self.context.report({"step": 0, **self.evaluate()}, None)
        while self.step < self.length.total_steps:
            epoch, done = divmod(self.step, self.length.steps_per_epoch)
            end = min((epoch + 1) * self.length.steps_per_epoch, self.length.total_steps)
            for batch in self.meter.waiting(batches(epoch, done)):
                self._train_on(batch)
                if self.step == end:
                    break
            if self.step < end:
                raise RuntimeError(
                    f"epoch {epoch} ended at step {self.step}, not at {end}: "
                    f"the triplet folder changed under the run"
                )

    def evaluate(self) -> Metrics:
        """Retrieval, areas and spread on the gallery; empty but on rank 0."""
        if self.gallery is None or self.context.rank != 0:
            return {}
        start_s = time.perf_counter()
        tensors = {k: v for k, v in self.gallery.items() if isinstance(v, Tensor)}
        weights = self.config.objective
        found = retrieval_report(self.model, tensors, volume=weights.volume, cosine=weights.cosine)
        metrics = {f"heldout/{name}": value for name, value in found.items()}
        return metrics | {"speed/evaluation_s": time.perf_counter() - start_s}

    def _train_on(self, batch: Batch) -> None:
        seed_step(self.config.train.seed, self.step + 1, self.context.rank)
        try:
            terms = train_step(
                self.parallel,
                self.objective,
                self.optimizer,
                self.schedule,
                to_device(batch, self.context.device),
                clip_norm=self.config.optimizer.clip_norm,
                autocast=torch.bfloat16 if self.config.train.precision == "bfloat16" else None,
            )
        except NonFiniteLoss as error:
            ids = ", ".join(batch["triplet_id"])
            raise NonFiniteLoss(
                f"step {self.step}: {error}; triplets of the batch: {ids}"
            ) from None
        self.step += 1
        self.meter.add(terms)
        reports = self.step % self.config.train.report_every_steps == 0
        if reports or self._saves() or self._evaluates(self.step):
            self._report()

    def _saves(self) -> bool:
        last = self.step == self.length.total_steps
        return last or self.step % self.config.train.checkpoint_every_steps == 0

    def _evaluates(self, step: int) -> bool:
        every = self.config.train.eval_every_steps
        return every > 0 and (step == self.length.total_steps or step % every == 0)

    def _report(self) -> None:
        metrics = {
            "step": self.step,
            "train/epoch": self.step / self.length.steps_per_epoch,
            "train/lr": float(self.schedule.get_last_lr()[-1]),
            **self.meter.flush(),
        }
        if self._evaluates(self.step):
            metrics |= self.evaluate()
        if not self._saves():
            self.context.report(metrics, None)
            return
        with tempfile.TemporaryDirectory(prefix="dynaflip-checkpoint-") as name:
            folder = Path(name) if self.context.rank == 0 else None
            if folder is not None:
                self.save(folder)
            self.context.report(metrics, folder)

    def save(self, folder: Path) -> None:
        """Write a checkpoint into an existing folder."""
        save_state(
            folder,
            self.model,
            self.optimizer,
            self.schedule,
            step=self.step,
            steps_per_epoch=self.length.steps_per_epoch,
            config=to_dict(self.config),
        )


class Meter:
    """Means of the terms, throughput, and the share of time spent waiting for data."""

    def __init__(self, samples_per_step: int) -> None:
        self.samples_per_step = samples_per_step
        self._start_s = time.perf_counter()
        self._reset()

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on and time how long each was waited for."""
        while True:
            self._start_s = time.perf_counter()
            batch = next(batches, None)
            self._wait_s += time.perf_counter() - self._start_s
            if batch is None:
                return
            yield batch

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count a step; its terms stay on the device until :meth:`flush`."""
        for name, term in terms.items():
            self._sums[name] = self._sums[name] + term if name in self._sums else term
        self._steps += 1
        self._busy_s += time.perf_counter() - self._start_s

    def flush(self) -> Metrics:
        """Means since the last call; evaluation and checkpoints do not count as step time."""
        means = {f"train/{name}": float(total) / self._steps for name, total in self._sums.items()}
        rate = self._steps / max(self._busy_s, 1e-9)
        means |= {
            "speed/steps_per_s": rate,
            "speed/samples_per_s": rate * self.samples_per_step,
            "speed/data_wait_share": self._wait_s / max(self._busy_s, 1e-9),
        }
        self._reset()
        return means

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps, self._busy_s, self._wait_s = 0, 0.0, 0.0


def to_device(batch: Batch, device: str) -> Batch:
    """Move a batch's tensors; ids stay where they are."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
