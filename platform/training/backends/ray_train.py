"""The Ray Train backend: a TorchTrainer fed by Ray Data, its reports to MLflow and to a log.

Import this only after :func:`dynaflip.platform.cluster.start_ray`: Ray reads its
environment when it is imported.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
from ray.data.expressions import col
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig

from dynaflip.errors import StoreError, UserError
from dynaflip.platform import tracking
from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.tracking import Run
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.data.collate import Batch
from dynaflip.platform.training.data.index import shard_paths
from dynaflip.platform.training.data.loader import COLUMNS, epoch_batches
from dynaflip.platform.training.data.prefetch import EpochsAhead
from dynaflip.platform.training.data.sampling import Position
from dynaflip.platform.training.diagnostics import Collapsed
from dynaflip.platform.training.heartbeat import Heartbeat
from dynaflip.platform.training.job import TrainJob
from dynaflip.platform.training.loop import Context, Metrics, Pretraining, rank_batch_size
from dynaflip.platform.training.progress import follow, progress_line
from dynaflip.platform.training.step import NonFiniteLoss

PROGRESS = "progress.log"
_NOTES = "notes"  # lines for the user that travel with a report
# Errors that a retry would meet again: they end the run.
_FINAL = (NonFiniteLoss, Collapsed, StoreError, UserError)
# Attributes of Ray's errors that hold the error inside.
_WRAPPED = ("controller_failure", "health_check_failure", "_base_exc", "cause")
_READ_ROWS = 256  # rows handed to the consumer at a time
# Ray's own number of blocks depends on the cluster's CPUs, and the blocks decide which rank gets
# which rows: on a cluster of another size a resumed run would read other streams.
_BLOCKS = 64
_PENDING_REPORTS = 10  # reports that MLflow may refuse in a row before the run ends


def fit(
    job: TrainJob,
    run: Run,
    run_folder: Path,
    callbacks: Sequence[ray.train.UserCallback] = (),
    *,
    heartbeat: Path | None = None,
) -> None:
    """Train on the cluster to the last step, whose checkpoint ``job.checkpoint_manager`` finds.

    A run whose folder holds checkpoints continues from the newest.

    Args:
        job: what to train.
        run: the open MLflow run that the curves go to.
        run_folder: absolute; its name is the run's, its parent Ray Train's storage.
        callbacks: further callbacks on the workers' reports.
        heartbeat: a folder that all machines share, where rank 0 says once a second what it does.

    Raises:
        UserError: the cluster is too small for the settings.
        NonFiniteLoss: names the step and the batch's triplets.
        Collapsed: an embedding collapsed, and the settings stop on that.
    """
    scaling = scaling_of(job.config, ray.cluster_resources())
    _quiet_ray_data()
    job.checkpoint_manager()  # makes the folder, which the workers look for
    # Typed for Ray's older callbacks, which the Train of today refuses.
    listeners: list[Any] = [
        Reporter(
            run, run_folder / PROGRESS, job.length.total_steps, job.config.objective.weighted()
        )
    ]
    listeners += callbacks
    trainer = ray.train.torch.TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "heartbeat": heartbeat},
        scaling_config=scaling,
        datasets={"train": _dataset(job.index.folder)},
        # Order is part of the run: a resumed one sees the same batches.
        dataset_config=ray.train.DataConfig(
            execution_options=_ordered(), enable_shard_locality=False
        ),
        run_config=RunConfig(
            name=run_folder.name,
            storage_path=str(run_folder.parent),
            failure_config=FailureConfig(max_failures=job.config.train.max_failures),
            callbacks=listeners,
        ),
    )
    _fit_in_thread(trainer, run_folder / PROGRESS)


class Reporter(ray.train.UserCallback):
    """Runs in Ray Train's controller: one log_batch and one line of progress a report."""

    def __init__(self, run: Run, log: Path, total_steps: int, terms: Sequence[str] = ()) -> None:
        """``terms`` are the loss terms that the progress line shows."""
        self.run, self.log, self.total_steps, self.terms = run, log, total_steps, terms
        curves = run.curves().values()
        # A resumed run repeats reports that came after its checkpoint; the curves have them.
        self.last_step = max((points[-1][0] for points in curves if points), default=-1)
        self._pending: list[tuple[int, Metrics]] = []  # reports that MLflow has not taken yet

    def after_report(
        self, run_context: Any, metrics: list[Metrics], checkpoint: Checkpoint | None
    ) -> None:
        """Log the report of rank 0 to MLflow and to the progress file.

        Raises:
            StoreError: the disk is full, or MLflow has refused several reports in a row.
        """
        report: dict[str, Any] = dict(metrics[0])
        notes: list[str] = report.pop(_NOTES, [])
        step = int(report["step"])
        lines = list(notes)
        if step > self.last_step:
            lines.append(progress_line(report, self.total_steps, self.terms))
            del report["step"]
            self._pending.append((step, {k: v for k, v in report.items() if math.isfinite(v)}))
            self.last_step = step
            lines += self._log_pending(last=step >= self.total_steps)
        try:
            with self.log.open("a") as log:
                log.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            raise StoreError(
                f"progress: cannot write {self.log}: {error.strerror}; make room, then go on "
                "with --resume"
            ) from None

    def _log_pending(self, *, last: bool) -> list[str]:
        """Log the pending reports; where MLflow refuses, they wait for the next one."""
        try:
            self.run.log_curves(self._pending)
        except tracking.store_error() as error:
            reason = str(error).partition("\n")[0]
            if last or len(self._pending) >= _PENDING_REPORTS:
                raise StoreError(
                    f"MLflow refused {len(self._pending)} reports in a row ({reason}); "
                    "then go on with --resume"
                ) from None
            return [f"warning: MLflow refused a report ({reason}); it is tried again"]
        self._pending.clear()
        return []

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """An error that would come again ends the run instead of a retry."""
        for error in worker_exceptions.values():
            final = find_final(error)
            if final is not None:
                raise final


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
    """Resources of concurrent runs, for an autoscaler: one bundle a worker, a CPU for Ray Data."""
    train = config.train
    worker = {"CPU": train.cpus_per_worker or 1.0}
    if train.device == "gpu":
        worker["GPU"] = train.gpus_per_worker
    return [worker] * (train.min_workers or train.num_workers) * runs + [{"CPU": 1.0}]


def find_final(error: BaseException | None) -> Exception | None:
    """The error that a retry would meet again, inside Ray's wrappers, or None."""
    inner = find_error(error, _FINAL)
    if inner is None:
        return None
    # Ray mixes its own class into an error that came over the wire.
    kind = next(kind for kind in _FINAL if isinstance(inner, kind))
    return kind(*inner.args)


def find_error(
    error: BaseException | None, kinds: tuple[type[BaseException], ...]
) -> BaseException | None:
    """The first error of some kinds inside Ray's wrappers, or None."""
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
    """Train on one Ray Train worker."""
    job: TrainJob = settings["job"]
    check_shared(job.checkpoints)
    config = job.config
    worker = ray.train.get_context()
    # Its share of the machine that it is on, which need not be the driver's.
    share = max(1, available_cpus() // worker.get_local_world_size())
    torch.set_num_threads(config.train.threads or share)
    rank, workers = worker.get_world_rank(), worker.get_world_size()
    collate, sampling = job.collate(augment=True), job.sampling()
    shard = ray.train.get_dataset_shard("train")
    notes: list[str] = []

    def tables() -> Iterator[pa.Table]:
        return iter(
            shard.iter_batches(batch_size=_READ_ROWS, batch_format="pyarrow", prefetch_batches=1)
        )

    epochs = EpochsAhead(tables)

    def batches(position: Position) -> Iterator[Batch]:
        last = (position.epoch + 1) * job.length.steps_per_epoch >= job.length.total_steps
        rows = epochs.read(last=last)
        size = rank_batch_size(config, workers)
        return epoch_batches(
            rows, collate, config.data, sampling, position, batch_size=size, rank=rank
        )

    def report(metrics: Metrics) -> None:
        ray.train.report({**metrics, _NOTES: [*notes]} if notes else dict(metrics))
        notes.clear()

    context = Context(
        rank=rank,
        world_size=workers,
        device=str(ray.train.torch.get_device()),
        report=report,
        log=notes.append,
        checkpoints=job.checkpoint_manager(),
        score_steps=job.score_steps,
        score=job.score if rank == 0 else None,
        heartbeat=_heartbeat(settings["heartbeat"], rank, job.length.total_steps),
    )
    sources = tuple(job.index.sources)
    with contextlib.nullcontext() if context.heartbeat is None else context.heartbeat.beating():
        context.doing("building the model")
        Pretraining(config, context, job.length, job.gallery(rank), sources).run(batches)


def _heartbeat(folder: Path | None, rank: int, total_steps: int) -> Heartbeat | None:
    return None if folder is None or rank != 0 else Heartbeat(folder, total_steps)


def check_shared(uri: str) -> None:
    """Refuse a checkpoint folder that the driver has made and this machine does not see.

    Raises:
        UserError: this machine does not have the folder.
    """
    if "://" not in uri and not Path(uri).is_dir():
        raise UserError(
            f"checkpoints: {uri} is not there on {socket.gethostname()}; let all machines share "
            "DYNAFLIP_HOME, or give train.checkpoint_storage s3://bucket/prefix"
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


def _quiet_ray_data() -> None:
    """Leave Ray Data's own progress (a plan and a table an epoch) to its log files."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _fit_in_thread(trainer: ray.train.torch.TorchTrainer, log: Path) -> ray.train.Result:
    """Fit in a thread; the main one follows the log and stays free for Ctrl-C and SIGTERM."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:  # raised again below, in the main thread
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True, name="fit")
    thread.start()
    follow(log, thread.is_alive, print)
    error = outcome.get("error")
    if error is not None:
        raise (find_final(error) or error)
    return outcome["result"]
