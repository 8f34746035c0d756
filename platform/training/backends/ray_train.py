"""Ray around the loop: a TorchTrainer fed by Ray Data, its reports to MLflow and to a log.

Import this only after :func:`dynaflip.platform.cluster.start_ray`: Ray reads its
environment when it is imported.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
from ray.data.expressions import col
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig

from dynaflip.encoders.model import DynaFLIP
from dynaflip.errors import StoreError, UserError
from dynaflip.platform import tracking
from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.tracking import Run
from dynaflip.platform.training.checkpoint_manager import Checkpoints
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.data.collate import Batch, Collate, TextTable
from dynaflip.platform.training.data.index import TripletIndex, shard_paths
from dynaflip.platform.training.data.loader import COLUMNS, epoch_batches, gallery_batch
from dynaflip.platform.training.data.prefetch import EpochsAhead
from dynaflip.platform.training.data.sampling import Position, sampling_of
from dynaflip.platform.training.diagnostics import Collapsed
from dynaflip.platform.training.loop import Context, Metrics, Plan, Pretraining, rank_batch_size
from dynaflip.platform.training.progress import follow, progress_line
from dynaflip.platform.training.step import NonFiniteLoss

PROGRESS = "progress.log"
_NOTES = "notes"  # lines for the user that travel with a report
# What would be so again: the run ends instead of a worker's being started once more.
_FINAL = (NonFiniteLoss, Collapsed, StoreError, UserError)
# Where Ray's errors keep the one that they are about.
_WRAPPED = ("controller_failure", "health_check_failure", "_base_exc", "cause")
_READ_ROWS = 256  # rows handed to the consumer at a time
# Ray's own number of blocks depends on the cluster's CPUs, and the blocks decide which rank gets
# which rows: on a cluster of another size a run would go on in the middle of other streams.
_BLOCKS = 64
_REPORTS_KEPT = 10  # reports that MLflow may refuse in a row before the run ends


@dataclass(frozen=True)
class TrainJob:
    """What every worker is told; plain data, so that it travels."""

    config: PretrainConfig
    index: TripletIndex
    text: TextTable
    length: Plan
    checkpoints: str  # path or S3 URI
    # A sweep scores the model on the way: at which steps, and by what (called on rank 0).
    score_steps: frozenset[int] = frozenset()
    score: Callable[[DynaFLIP], Metrics] | None = None


def fit(
    work: TrainJob, run: Run, run_folder: Path, callbacks: Sequence[ray.train.UserCallback] = ()
) -> None:
    """Train on the cluster to the last checkpoint, which :func:`checkpoints_of` finds.

    A run folder that holds checkpoints is gone on with from the newest.

    Args:
        work: what to train.
        run: the open MLflow run that the curves go to.
        run_folder: absolute; its name is the run's, its parent Ray Train's storage.
        callbacks: more listeners to what the workers report.

    Raises:
        UserError: the cluster is too small for the settings.
        NonFiniteLoss: names the step and the batch's triplets.
        Collapsed: where the settings ask for a stop.
    """
    scaling = scaling_of(work.config, ray.cluster_resources())
    _calm_ray_data()
    checkpoints_of(work)  # makes the folder, which the workers look for
    # Typed for Ray's older callbacks, which the Train of today refuses.
    listeners: list[Any] = [
        Reporter(
            run, run_folder / PROGRESS, work.length.total_steps, work.config.objective.weighted()
        )
    ]
    listeners += callbacks
    trainer = ray.train.torch.TorchTrainer(
        _train_on_worker,
        train_loop_config={"work": work},
        scaling_config=scaling,
        datasets={"train": _dataset(work.index.folder)},
        # Order is part of the run: a resumed one sees the same batches.
        dataset_config=ray.train.DataConfig(
            execution_options=_ordered(), enable_shard_locality=False
        ),
        run_config=RunConfig(
            name=run_folder.name,
            storage_path=str(run_folder.parent),
            failure_config=FailureConfig(max_failures=work.config.train.max_failures),
            callbacks=listeners,
        ),
    )
    _fit_in_thread(trainer, run_folder / PROGRESS)


def checkpoints_of(work: TrainJob) -> Checkpoints:
    """The run's checkpoints."""
    train = work.config.train
    return Checkpoints(work.checkpoints, keep=train.keep_checkpoints, best_metric=train.best_metric)


class Reporter(ray.train.UserCallback):
    """Runs in Ray Train's controller: one log_batch and one line of progress a report."""

    def __init__(self, run: Run, log: Path, total_steps: int, terms: Sequence[str] = ()) -> None:
        """``terms`` are the loss terms that the progress line shows."""
        self.run, self.log, self.total_steps, self.terms = run, log, total_steps, terms
        curves = run.curves().values()
        # A run that goes on reports again what came after its checkpoint; the curves have it.
        self.last_step = max((points[-1][0] for points in curves if points), default=-1)
        self._kept: list[tuple[int, Metrics]] = []  # reports that MLflow has not taken yet

    def after_report(
        self, run_context: Any, metrics: list[Metrics], checkpoint: Checkpoint | None
    ) -> None:
        """Write down what rank 0 said.

        Raises:
            StoreError: the disk is full, or MLflow has not answered for several reports.
        """
        said: dict[str, Any] = dict(metrics[0])
        notes: list[str] = said.pop(_NOTES, [])
        step = int(said["step"])
        lines = list(notes)
        if step > self.last_step:
            lines.append(progress_line(said, self.total_steps, self.terms))
            del said["step"]
            self._kept.append((step, {k: v for k, v in said.items() if math.isfinite(v)}))
            self.last_step = step
            lines += self._log_kept(last=step >= self.total_steps)
        try:
            with self.log.open("a") as log:
                log.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            raise StoreError(
                f"progress: cannot write {self.log}: {error.strerror}; make room, then go on "
                "with --resume"
            ) from None

    def _log_kept(self, *, last: bool) -> list[str]:
        """Log what is kept; where MLflow refuses, keep it for the next report, and say so."""
        try:
            self.run.log_curves(self._kept)
        except tracking.store_error() as error:
            reason = str(error).partition("\n")[0]
            if last or len(self._kept) >= _REPORTS_KEPT:
                raise StoreError(
                    f"MLflow refused {len(self._kept)} reports in a row ({reason}); "
                    "then go on with --resume"
                ) from None
            return [f"warning: MLflow refused a report ({reason}); it is tried again"]
        self._kept.clear()
        return []

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """An error that would come again ends the run instead of a retry."""
        for error in worker_exceptions.values():
            found = find_final(error)
            if found is not None:
                raise found


def scaling_of(config: PretrainConfig, resources: dict[str, float]) -> ScalingConfig:
    """Workers and what each gets; Ray Data keeps one CPU beside them.

    Raises:
        UserError: the cluster has too few CPUs or GPUs. (Ray itself would wait for ever.)
    """
    train = config.train
    fewest = train.min_workers or train.num_workers
    # Typed for Ray's older Train, which took no range.
    workers: Any = (fewest, train.num_workers) if fewest < train.num_workers else fewest
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    wanted_gpus = fewest * train.gpus_per_worker
    use_gpu = train.device == "gpu" or (train.device == "auto" and gpus >= wanted_gpus)
    if train.device == "gpu" and gpus < wanted_gpus:
        raise UserError(
            f"train.device gpu: {fewest} workers need {wanted_gpus:g} GPUs, the cluster has "
            f"{gpus:g}; lower train.num_workers or use train.device cpu"
        )
    # Ray takes fractions in steps of 1/10000.
    share = math.floor(100 * (cpus - 1) / train.num_workers) / 100
    per_worker = train.cpus_per_worker or min(1.0, share)
    if per_worker <= 0 or fewest * per_worker + 1 > cpus:
        wanted = train.cpus_per_worker or "some"
        raise UserError(
            f"train.num_workers {fewest}: needs {wanted} CPU a worker and 1 for Ray "
            f"Data, the cluster has {cpus:g}; lower train.num_workers or train.cpus_per_worker"
        )
    return ScalingConfig(
        num_workers=workers,
        use_gpu=use_gpu,
        # On CPUs a worker takes its whole machine; GPUs are best near each other.
        placement_strategy="PACK" if use_gpu else "SPREAD",
        resources_per_worker={"CPU": per_worker}
        | ({"GPU": train.gpus_per_worker} if use_gpu else {}),
    )


def bundles_of(config: PretrainConfig, runs: int = 1) -> list[dict[str, float]]:
    """What runs at once take, for an autoscaler: a bundle a worker, and one CPU for Ray Data."""
    train = config.train
    worker = {"CPU": train.cpus_per_worker or 1.0}
    if train.device == "gpu":
        worker["GPU"] = train.gpus_per_worker
    return [worker] * (train.min_workers or train.num_workers) * runs + [{"CPU": 1.0}]


def find_final(error: BaseException | None) -> Exception | None:
    """The error that would come again, inside whatever Ray wrapped around it, or None."""
    found = find_error(error, _FINAL)
    if found is None:
        return None
    # Ray mixes its own class into an error that came over the wire.
    kind = next(kind for kind in _FINAL if isinstance(found, kind))
    return kind(*found.args)


def find_error(
    error: BaseException | None, kinds: tuple[type[BaseException], ...]
) -> BaseException | None:
    """The first error of some kinds inside whatever Ray wrapped around it, or None."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        if isinstance(current, kinds):
            return current
        seen.add(id(current))
        failures = getattr(current, "worker_failures", {}) or {}
        inner = [getattr(current, name, None) for name in _WRAPPED]
        queue += [*failures.values(), *inner, current.__cause__]
    return None


def _train_on_worker(settings: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    work: TrainJob = settings["work"]
    check_shared(work.checkpoints)
    config = work.config
    place = ray.train.get_context()
    # Its share of the machine that it is on, which need not be the driver's.
    share = max(1, available_cpus() // place.get_local_world_size())
    torch.set_num_threads(config.train.threads or share)
    rank, workers = place.get_world_rank(), place.get_world_size()
    collate = _collate(work, augment=True)
    sampling = sampling_of(config.data, work.index, config.train.seed)
    shard = ray.train.get_dataset_shard("train")
    notes: list[str] = []

    def tables() -> Iterator[pa.Table]:
        return iter(
            shard.iter_batches(batch_size=_READ_ROWS, batch_format="pyarrow", prefetch_batches=1)
        )

    epochs = EpochsAhead(tables)

    def batches(position: Position) -> Iterator[Batch]:
        last = (position.epoch + 1) * work.length.steps_per_epoch >= work.length.total_steps
        rows = epochs.read(last=last)
        size = rank_batch_size(config, workers)
        return epoch_batches(
            rows, collate, config.data, sampling, position, batch_size=size, rank=rank
        )

    def report(metrics: Metrics) -> None:
        ray.train.report({**metrics, _NOTES: [*notes]} if notes else dict(metrics))
        notes.clear()

    gallery = None
    if rank == 0 and config.train.eval_every_steps:
        still = _collate(work, augment=False)
        gallery = gallery_batch(work.index, still, config.train.gallery_size)
    context = Context(
        rank=rank,
        world_size=workers,
        device=str(ray.train.torch.get_device()),
        report=report,
        say=notes.append,
        checkpoints=checkpoints_of(work),
        score_steps=work.score_steps,
        score=work.score if rank == 0 else None,
    )
    sources = tuple(work.index.sources)
    Pretraining(config, context, work.length, gallery, sources).run(batches)


def check_shared(uri: str) -> None:
    """Refuse to write checkpoints where the driver, which made the folder, cannot see them.

    Raises:
        UserError: this machine does not have the folder.
    """
    if "://" not in uri and not Path(uri).is_dir():
        raise UserError(
            f"checkpoints: {uri} is not there on {socket.gethostname()}; let all machines share "
            "DYNAFLIP_HOME, or give train.checkpoint_storage s3://bucket/prefix"
        )


def _collate(work: TrainJob, *, augment: bool) -> Collate:
    config = work.config
    return Collate(
        config.data,
        config.model.image.image_px,
        work.text,
        seed=config.train.seed,
        augment=augment,
    )


def _dataset(folder: str) -> ray.data.Dataset:
    """The training rows, streamed; the filter is pushed down into the Parquet reader."""
    paths = shard_paths(folder)
    rows = ray.data.read_parquet(
        paths, columns=[*COLUMNS, "split"], override_num_blocks=max(_BLOCKS, len(paths))
    )
    return rows.filter(expr=col("split") == "train")


def _ordered() -> ray.data.ExecutionOptions:
    options = ray.data.ExecutionOptions()
    options.preserve_order = True
    return options


def _calm_ray_data() -> None:
    """Ray Data's own progress (a plan and a table an epoch) stays in its log files."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _fit_in_thread(trainer: ray.train.torch.TorchTrainer, log: Path) -> ray.train.Result:
    """Fit while the main thread follows the log, and stays free for Ctrl-C and SIGTERM."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:  # raised again below, in the main thread
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True, name="fit")
    thread.start()
    follow(log, thread.is_alive, print)
    error = outcome.get("error")
    if error is not None:
        raise (find_final(error) or error)
    return outcome["result"]
