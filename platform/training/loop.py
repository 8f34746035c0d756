"""The pretraining loop. It knows neither Ray nor MLflow: a :class:`Context` stands for both."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dynaflip.errors import UserError
from dynaflip.losses.distributed import gather_rows, global_sum, world_size
from dynaflip.platform.training import device
from dynaflip.platform.training.checkpoint_format import seed_step
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.context import Context, Metrics
from dynaflip.platform.training.data.augment import augment_on_device
from dynaflip.platform.training.data.collate import Batch
from dynaflip.platform.training.data.sampling import Position
from dynaflip.platform.training.diagnostics import CollapseGuard, diagnose, some_rows
from dynaflip.platform.training.evaluation import evaluate
from dynaflip.platform.training.length import Plan, rank_batch_size
from dynaflip.platform.training.meter import Meter
from dynaflip.platform.training.notices import (
    HEEDED,
    NOTHING,
    SAVE,
    STOP,
    TO_END_S,
    Agreement,
    Leaving,
    Stopped,
)
from dynaflip.platform.training.profiler import ProfiledSteps, profile_uri
from dynaflip.platform.training.step import NonFiniteLoss, train_step
from dynaflip.platform.training.time_use import time_shares
from dynaflip.platform.training.traffic import EpochTraffic, epoch_traffic, traffic_line
from dynaflip.platform.training.train_state import TrainingState

# Reports in a checkpoint, which a resumed run repeats: more than can be on their way to the disk
# when a process dies (6 in the worker's queue, 12 in the controller's, and those in hands between
# them). What the disk has already is dropped there.
_REPEATED_REPORTS = 24


class Pretraining:
    """Model, optimizer and counters of one rank, and the loop over them."""

    def __init__(
        self,
        config: PretrainConfig,
        context: Context,
        length: Plan,
        gallery: Batch | None = None,
        sources: tuple[str, ...] = (),
    ) -> None:
        """Build everything anew, or as the newest checkpoint has it.

        Args:
            config: the settings.
            context: rank, device, checkpoints, and where reports go.
            length: of :func:`plan`.
            gallery: held-out transitions, for rank 0; None skips retrieval.
            sources: of the triplets, for curves by source.
        """
        self.config, self.context, self.length, self.gallery = config, context, length, gallery
        if torch.device(context.device).type == "cuda":
            torch.cuda.set_device(context.device)  # of collectives and random numbers too
        self.autocast = device.autocast_dtype(config.train.precision, context.device)
        self.state = TrainingState(config, context.device, length.total_steps)
        self.sources = sources
        self._replayed = self._resume()
        self.parallel = self.state.parallel()
        self.batch_size = rank_batch_size(config, context.world_size)
        self._peak_examples_per_s: float | None = None
        self.meter = Meter(context.world_size * self.batch_size, sources, context.device)
        self.guard = CollapseGuard(
            config.train.collapse_spread, config.train.collapse_checks, config.train.collapse_action
        )
        self.meter.restore(self.state.meter)
        self._agreement, self._heeded = Agreement(context.device), NOTHING
        self.profiled = self._profiled_steps()
        self._reports: list[Metrics] = list(self._replayed)
        self._rates: Metrics = {}
        self._traffic: EpochTraffic = lambda epoch: None
        self._epoch_read: Metrics = {}

    def run(
        self,
        batches: Callable[[Position], Iterator[Batch]],
        traffic: EpochTraffic = lambda epoch: None,
    ) -> None:
        """Train to the last step; the last checkpoint is then written.

        Args:
            batches: a position in the data to an iterator over the rest of its part, in
                batches of ``batch_size``.
            traffic: what an epoch asked of a bucket so far.

        Raises:
            NonFiniteLoss: names the step and the batch's triplets.
            Collapsed: where the settings ask for a stop.
            Stopped: the run was told to end; a checkpoint is saved.
            Leaving: a worker was told to end; a checkpoint is saved.
            UserError: checkpoints cannot be written.
        """
        self.context.log(self._first_line())
        self._traffic = traffic
        with device.tf32(self.config.train.tf32):
            self._run(batches)

    def _first_line(self) -> str:
        """What this trains on; its use of the peak is reported where the peak is known."""
        train, name = self.config.train, device.device_name(self.context.device)
        precision = device.precision_of(train.precision, self.context.device)
        peak = device.peak_flops(name, precision, tf32=train.tf32)
        if train.device == "auto" and self.context.device == "cpu":
            name += ", as no GPU was found"
        workers = self.context.world_size
        line = device.first_line(name, workers, precision, self.batch_size, tf32=train.tf32)
        if self.state.flops_per_example is None:
            return line
        if peak is None:
            return f"{line}; no MFU, as this device's peak is not known"
        self._peak_examples_per_s = workers * peak / self.state.flops_per_example
        return line

    def _profiled_steps(self) -> ProfiledSteps:
        window, last = self.config.train.profile_window(), self.length.total_steps
        if window is not None and window[1] > last:
            raise UserError(
                f"train.profile_steps {window[0]}-{window[1]}: the run has {last} steps"
            )
        where = self.context.checkpoints
        if where is None or self.context.rank != 0:
            window = None
        uri = profile_uri(where.uri) if where is not None else ""
        return ProfiledSteps(window, self.context.device, uri, self.context.log)

    def _run(self, batches: Callable[[Position], Iterator[Batch]]) -> None:
        for metrics in self._replayed:
            self._pass_on(metrics)
        if self.step == 0 and self._evaluates(0):
            self.context.doing("first evaluation")
            self._pass_on({"step": 0, **self.evaluate()})
        compiles = ", which compiles the model" if self.config.train.compile else ""
        self.context.doing(f"first step{compiles}")
        while self.step < self.length.total_steps:
            if self._steps_left() == 0:  # stopped at the very end of an epoch
                self.state.next_epoch()
            before = self.step
            for batch in self._agreed(self.meter.waiting(batches(self.state.position))):
                self._train_on(batch)
                if self.step == self.length.total_steps:
                    break
                self._heed_notices()
            else:
                part = self.state.position
                if before == self.step and part.is_whole() and part.steps == 0:
                    raise RuntimeError(
                        f"epoch {part.epoch} has no batch: the triplet folder changed under the run"
                    )
                self._count_traffic()
                self.state.next_epoch()
        self._agreement.finish()
        if self.context.checkpoints is not None and self.context.rank == 0:
            self.context.checkpoints.finish()

    def _count_traffic(self) -> None:
        """Sum up what the epoch has read, for the log and the next report; every rank calls it."""
        epoch = self.state.position.epoch
        if read := epoch_traffic(self._traffic, epoch, self.context.device):
            self.context.log(traffic_line(read, epoch + 1))
            self._epoch_read = read

    def evaluate(self) -> Metrics:
        """Retrieval, areas and spread on the gallery; empty but on rank 0."""
        if self.gallery is None or self.context.rank != 0:
            return {}
        with self.meter.time("evaluation"):
            model = self.state.evaluated_model()
            return evaluate(model, self.gallery, self.sources, self.config.objective)

    def _agreed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """A part's batches, as long as every rank has one.

        Ranks have equally many rows of a whole epoch. Of the rest of an epoch, or with drawn
        rows, they may not, and a rank with one batch more would wait for the others for ever.
        """
        part, left = self.state.position, self._steps_left()
        if left is None:
            while True:
                batch = next(batches, None)
                have = torch.tensor(float(batch is not None), device=self.context.device)
                if float(global_sum(have)) < world_size() or batch is None:
                    return
                yield batch
        count = 0
        for batch in itertools.islice(batches, left):
            yield batch
            count += 1
        if count < left:
            raise RuntimeError(
                f"epoch {part.epoch} ended {left - count} batches early: "
                "the triplet folder changed under the run"
            )
        next(batches, None)  # the part's end: so the feed goes on with what it has read ahead

    def _steps_left(self) -> int | None:
        """Steps left in the epoch, on every rank; None where only its end will tell."""
        part = self.state.position
        if not part.is_whole() or self.length.weighted:
            return None
        rows = self.length.train_triplets // self.context.world_size
        return rows // self.batch_size - part.steps

    def _train_on(self, batch: Batch) -> None:
        train = self.config.train
        seed_step(train.seed, self.step + 1, self.context.rank)
        on_device = augment_on_device(to_device(batch, self.context.device))
        parts = train.micro_batch_size
        if parts is None and self.batch_size > self.config.data.batch_size:
            parts = self.config.data.batch_size  # the batch that fits into memory
        self._rates = self.state.learning_rates()  # of this step
        self.profiled.before(self.step)
        self.meter.timer.start()
        try:
            terms = train_step(
                *self.parallel,
                self.state.optimizer,
                self.state.schedule,
                on_device,
                micro_batch_size=parts,
                clip_norm=self.config.optimizer.clip_norm,
                autocast=self.autocast,
                mark=self.meter.timer.mark,
            )
        except NonFiniteLoss as error:
            ids = ", ".join(batch["triplet_id"])
            raise NonFiniteLoss(
                f"step {self.step}: {error}; triplets of the batch: {ids}"
            ) from None
        self.state.advance(batch["example"])
        self.meter.add(terms, batch)
        with self.meter.time("diagnostics"):
            self.profiled.after(self.step)
        if self.context.heartbeat is not None:
            self.context.heartbeat.stepped(self.step, terms["loss"])
        due = self.step % train.report_every_steps == 0 or self.step in self.context.score_steps
        if due or self._saves() or self._evaluates(self.step) or self._diagnoses():
            self._report(on_device)

    @property
    def step(self) -> int:
        """Steps done."""
        return self.state.step

    def _saves(self) -> bool:
        last, train = self.step == self.length.total_steps, self.config.train
        # The best checkpoint is chosen by a value measured at its own step.
        valued = bool(train.best_metric) and self._evaluates(self.step)
        return last or valued or self.step % train.checkpoint_every_steps == 0

    def _evaluates(self, step: int) -> bool:
        every = self.config.train.eval_every_steps
        return every > 0 and (step == self.length.total_steps or step % every == 0)

    def _diagnoses(self) -> bool:
        every = self.config.train.diagnostics_every_steps
        return every > 0 and self.step % every == 0

    def _report(self, batch: Batch) -> None:
        if self.step == self.length.total_steps:
            self._count_traffic()
        read, self._epoch_read = self._epoch_read, {}
        metrics = {
            "step": self.step,
            "train/epoch": self.step / self.length.steps_per_epoch,
            **self._rates,
            **self.meter.flush(),
            **read,
        }
        if self._peak_examples_per_s is not None:
            metrics["speed/mfu"] = metrics["speed/samples_per_s"] / self._peak_examples_per_s
        if self._diagnoses():
            rows = some_rows(batch, self.config.train.micro_batch_size)
            with self.meter.time("diagnostics"):
                metrics |= diagnose(self.state.model, self.state.objective, rows, self.autocast)
            if warning := self.guard.check(self.step, metrics):
                self.context.log(warning)
        if self._evaluates(self.step):
            self.context.doing("evaluating")
            metrics |= self.evaluate()
        if self.context.score is not None and self.step in self.context.score_steps:
            self.context.doing("scoring")
            with self.meter.time("evaluation"):
                metrics |= self.context.score(self.state.evaluated_model())
        self._reports = [*self._reports, metrics][-_REPEATED_REPORTS:]
        if self._saves():
            with self.meter.time("checkpoint"):
                self._save(wait=self.step == self.length.total_steps)
        if self.step == self.length.total_steps:
            # A new one: the checkpoint's thread may be writing the other.
            metrics = {**metrics, **self._time_shares()}
        self._pass_on(metrics)

    def _time_shares(self) -> Metrics:
        """Every rank calls this: the slowest one's wait for data holds all."""
        own_s = torch.full((1,), self.meter.totals_s["data"], device=self.context.device)
        waits_s = gather_rows(own_s)
        return time_shares(self.meter.totals_s, self.meter.elapsed_s(), waits_s.tolist())

    def _pass_on(self, metrics: Metrics) -> None:
        with self.meter.time("report"):
            self.context.report(metrics)

    def _save(self, *, wait: bool) -> None:
        """Write a checkpoint in a thread. The step does not wait for the one before it.

        Args:
            wait: for the one before, instead of leaving this one out. Every rank calls this.
        """
        checkpoints = self.context.checkpoints
        if checkpoints is None:
            return
        self.state.gather_examples()
        if self.context.rank != 0:
            return
        if wait:
            checkpoints.wait()
        if checkpoints.busy():
            self.context.log(
                f"warning: step {self.step}: the checkpoint before is still being written, so "
                "there is none of this step"
            )
            return
        # Between two reports the meter holds the steps since the first of them.
        self.state.meter = self.meter.state()
        checkpoints.save(self.step, self.state.snapshot(self._reports).write, self.context.log)

    def _heed_notices(self) -> None:
        """Save a checkpoint at the step at which all ranks have heard of a new notice."""
        level = self._agreement.reach(self.context.notices.level())
        if level <= self._heeded:
            return
        self._heeded = level
        self._save(wait=True)
        self.context.log(f"step {self.step}: {HEEDED[level]}")
        if level == SAVE:
            return
        self._agreement.finish()
        saved = True
        if self.context.checkpoints is not None and self.context.rank == 0:
            # A store that takes longer leaves the run with the checkpoint before.
            saved = self.context.checkpoints.wait(self.config.train.grace_s - TO_END_S)
        if world_size() > 1:  # the first rank to leave takes the others down
            torch.distributed.barrier()
        what = HEEDED[level] if saved else "told to end; the checkpoint could not be saved in time"
        raise (Stopped if level == STOP else Leaving)(f"step {self.step}: {what}")

    def _resume(self) -> list[Metrics]:
        """Restore the newest whole checkpoint; returns its last reports, which may be lost."""
        if self.context.checkpoints is None:
            return []
        chosen: list[str | None] = [None]
        with contextlib.ExitStack() as held:
            if self.context.rank == 0:
                self.context.checkpoints.storage.remove_unfinished()
                newest = self.context.checkpoints.newest_files(self.context.log)
                if (found := held.enter_context(newest)) is not None:
                    chosen = [found.name]
            if world_size() > 1:  # all ranks take the same one
                torch.distributed.broadcast_object_list(chosen)
            if chosen[0] is None:
                return []
            # On rank 0's machine it is there by now, and on the others one rank downloads it.
            folder = held.enter_context(self.context.checkpoints.fetched(chosen[0]))
            reports = self.state.restore(folder, self.context.log)
            if world_size() > 1:  # the last one to leave deletes what was downloaded
                torch.distributed.barrier()
            return reports


def to_device(batch: Batch, where: str) -> Batch:
    """Move a batch's tensors; ids stay where they are. Pinned memory makes it asynchronous."""
    return {
        name: value.to(where, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
