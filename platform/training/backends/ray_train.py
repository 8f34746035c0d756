"""The Ray Train backend: a TorchTrainer, its reports to the run's folder.

Nothing outside the step holds up the step. A worker's reports pass through a queue of its own to
Ray Train's controller, which hands them to another that writes them to disk; the driver sends them
to MLflow from there.

Import this only after :func:`dynaflip.platform.cluster.start_ray`: Ray reads its
environment when it is imported.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig

from dynaflip.errors import StoreError, UserError
from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.tracking import Run
from dynaflip.platform.training.backends.ray_notices import (
    Ending,
    TorchWithNotices,
    worker_notices,
)
from dynaflip.platform.training.background import Background
from dynaflip.platform.training.config import PretrainConfig, TrainConfig
from dynaflip.platform.training.context import Context, Metrics
from dynaflip.platform.training.curve_file import CurveFile
from dynaflip.platform.training.diagnostics import Collapsed
from dynaflip.platform.training.heartbeat import Heartbeat
from dynaflip.platform.training.job import TrainJob
from dynaflip.platform.training.loop import Pretraining
from dynaflip.platform.training.notices import TO_END_S, Leaving, Stopped, on_sigterm
from dynaflip.platform.training.progress import append_lines, follow
from dynaflip.platform.training.reports import ReportWriter
from dynaflip.platform.training.sending import Sender
from dynaflip.platform.training.step import NonFiniteLoss

PROGRESS = "progress.log"
_NOTES = "notes"  # lines for the user that travel with a report
# Errors that a retry would meet again: they end the run.
_FINAL = (NonFiniteLoss, Collapsed, Stopped, StoreError, UserError)
# Attributes of Ray's errors that hold the error inside.
_WRAPPED = ("controller_failure", "health_check_failure", "_base_exc", "cause")
_WAITING_REPORTS = 6  # of a worker, for Ray Train's controller, which asks every 0.3 s
_LAST_REPORTS_S = 5.0  # that a failing rank waits for its reports to be taken
_PATIENCE_S = 30.0  # that a run's end waits for MLflow to take the rest of the curves


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
        Stopped: this process was told to end by SIGTERM, and has saved a checkpoint.
    """
    stop = uuid.uuid4().bytes  # the key under which the workers are told to end
    scaling = scaling_of(job.config, ray.cluster_resources())
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    job.checkpoint_manager()  # makes the folder, which the workers look for
    # Typed for Ray's older callbacks, which the Train of today refuses.
    terms = job.config.objective.weighted()
    reporter = Reporter(
        run_folder, job.length.total_steps, terms, max_failures=job.config.train.max_failures
    )
    listeners: list[Any] = [reporter, *callbacks]
    trainer = ray.train.torch.TorchTrainer(
        _train_on_worker,
        train_loop_config={"job": job, "heartbeat": heartbeat, "stop": stop},
        torch_config=TorchWithNotices(),
        scaling_config=scaling,
        run_config=RunConfig(
            name=run_folder.name,
            storage_path=str(run_folder.parent),
            failure_config=FailureConfig(max_failures=-1),  # the reporter counts
            callbacks=listeners,
        ),
    )
    told = threading.Event()
    with _sending(run, run_folder, told), on_sigterm(told.set):
        _fit_in_thread(trainer, run_folder / PROGRESS, Ending(told, stop, job.config.train.grace_s))


@contextlib.contextmanager
def _sending(run: Run, run_folder: Path, told: threading.Event) -> Iterator[None]:
    """Send the run's curves to MLflow while a block runs, and what is left after it.

    Args:
        run: that the curves are of.
        run_folder: where they lie.
        told: set when the process has to end soon.
    """
    curves = CurveFile(run_folder)
    curves.adopt(run.curves)
    ended = threading.Event()

    def log(line: str) -> None:
        append_lines(run_folder / PROGRESS, [line])
        if ended.is_set():  # nobody follows the log any more
            print(line, flush=True)

    sender = Sender(curves, run, log)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        told.set()
        raise
    finally:
        ended.set()
        sender.finish(TO_END_S / 2 if told.is_set() else _PATIENCE_S)


class Reporter(ray.train.UserCallback):
    """Runs in Ray Train's controller, which it never holds up: reports go to disk in a thread."""

    def __init__(
        self, folder: Path, total_steps: int, terms: Sequence[str] = (), *, max_failures: int = 0
    ) -> None:
        """Write into the run's folder.

        Args:
            folder: of the run.
            total_steps: of the run.
            terms: the loss terms that the progress line shows.
            max_failures: of workers, after which the run ends.
        """
        self.folder, self.total_steps, self.terms = folder, total_steps, terms
        self.max_failures, self._failures = max_failures, 0
        self._writer: ReportWriter | None = None  # made in the controller's process

    def after_report(
        self, run_context: Any, metrics: list[Metrics], checkpoint: Checkpoint | None
    ) -> None:
        """Queue the report of rank 0.

        Raises:
            StoreError: the disk is full.
        """
        report: dict[str, Any] = dict(metrics[0])
        notes: list[str] = report.pop(_NOTES, [])
        self._writing()(report, notes)
        if report["step"] >= self.total_steps:
            self._writing().flush()  # the controller ends soon, and its threads with it

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Count a failure; one that would come again, or one too many, ends the run.

        Ray's own count would take a worker that was told to end for a crash.
        """
        self._writing().flush()
        leaving = [find_error(error, (Leaving,)) for error in worker_exceptions.values()]
        if said := [str(Leaving(*error.args)) for error in leaving if error is not None]:
            append_lines(self.folder / PROGRESS, said[:1])
        for error in worker_exceptions.values():
            final = find_final(error)
            if final is not None:
                raise final
        if not any(map(_was_announced, worker_exceptions.values())):
            self._failures += 1
        if self._failures > self.max_failures:
            raise next(iter(worker_exceptions.values()))

    def _writing(self) -> ReportWriter:
        if self._writer is None:
            log = partial(append_lines, self.folder / PROGRESS)
            curves = CurveFile(self.folder)
            self._writer = ReportWriter(curves, log, self.total_steps, self.terms)
        return self._writer


def _was_announced(error: BaseException) -> bool:
    """True if a worker left on a notice, or its node was taken away after one: no failure."""
    lost = find_error(error, (RayActorError,))
    return find_error(error, (Leaving,)) is not None or bool(getattr(lost, "preempted", False))


def scaling_of(config: PretrainConfig, resources: dict[str, float]) -> ScalingConfig:
    """Workers and what each gets.

    Raises:
        UserError: the cluster has too few CPUs or GPUs. (Ray itself would wait for ever.)
    """
    train = config.train
    fewest = train.min_workers or train.num_workers
    # Typed for Ray's older Train, which took no range.
    workers: Any = (fewest, train.num_workers) if fewest < train.num_workers else fewest
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    use_gpu = train.device == "gpu" or (train.device == "auto" and gpus > 0)
    if use_gpu and gpus < fewest * train.gpus_per_worker:
        raise UserError(too_few_gpus(train, fewest, gpus))
    # Ray takes fractions in steps of 1/10000.
    share = math.floor(100 * cpus / train.num_workers) / 100
    per_worker = train.cpus_per_worker or min(1.0, share)
    if per_worker <= 0 or fewest * per_worker > cpus:
        wanted = train.cpus_per_worker or "some"
        raise UserError(
            f"train.num_workers {fewest}: needs {wanted} CPU a worker, the "
            f"cluster has {cpus:g}; lower train.num_workers or train.cpus_per_worker"
        )
    return ScalingConfig(
        num_workers=workers,
        use_gpu=use_gpu,
        # On CPUs a worker takes its whole machine; GPUs are best near each other.
        placement_strategy="PACK" if use_gpu else "SPREAD",
        resources_per_worker={"CPU": per_worker}
        | ({"GPU": train.gpus_per_worker} if use_gpu else {}),
    )


def too_few_gpus(train: TrainConfig, workers: int, gpus: float) -> str:
    """Message for a cluster with too few GPUs, and the command to type.

    Args:
        train: the settings.
        workers: the fewest that the run trains with.
        gpus: of the cluster.
    """
    setting = "min_workers" if train.min_workers else "num_workers"
    fit = math.floor(gpus / train.gpus_per_worker)
    remedies = [f"--train.{setting} {fit}"] if fit else []
    each = math.floor(gpus / workers)
    if 1 <= each < train.gpus_per_worker:
        remedies.append(f"--train.gpus_per_worker {each}")
    wanted = workers * train.gpus_per_worker
    return (
        f"train.device {train.device}: {workers} worker(s) need {wanted:g} GPU(s), the cluster has "
        f"{gpus:g}; use {', '.join([*remedies, ''])}{'or ' if remedies else ''}--train.device cpu"
    )


def bundles_of(config: PretrainConfig, runs: int = 1) -> list[dict[str, float]]:
    """Resources of concurrent runs, for an autoscaler: one bundle a worker."""
    train = config.train
    worker = {"CPU": train.cpus_per_worker or 1.0}
    if train.device == "gpu":
        worker["GPU"] = train.gpus_per_worker
    return [worker] * (train.min_workers or train.num_workers) * runs


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
    notes: list[str] = []

    # Every rank reports equally often and in the same order, each in its own thread.
    reports = Background(ray.train.report, _WAITING_REPORTS, "reports")

    def report(metrics: Metrics) -> None:
        reports.put({**metrics, _NOTES: [*notes]} if notes else dict(metrics))
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
        notices=worker_notices(settings["stop"], rank),
    )
    sources = tuple(job.index.sources)
    beating = context.heartbeat.beating() if context.heartbeat else contextlib.nullcontext()
    with beating, _taken(reports):
        context.doing("building the model")
        pretraining = Pretraining(config, context, job.length, job.gallery(rank), sources)
        frames = pretraining.state.model.learnt_frames
        feed = job.feed(frames, rank=rank, workers=workers, threads=share, device=context.device)
        with contextlib.closing(feed):
            pretraining.run(feed, feed.traffic)


def _heartbeat(folder: Path | None, rank: int, total_steps: int) -> Heartbeat | None:
    return None if folder is None or rank != 0 else Heartbeat(folder, total_steps)


@contextlib.contextmanager
def _taken(reports: Background[Metrics]) -> Iterator[None]:
    """Leave the block when the controller has taken all reports."""
    try:
        yield
    except BaseException:
        # A rank that fails alone waits for the others' reports in vain.
        with contextlib.suppress(Exception):
            reports.flush(_LAST_REPORTS_S)
        raise
    reports.flush()


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


def _fit_in_thread(
    trainer: ray.train.torch.TorchTrainer, log: Path, ending: Ending
) -> ray.train.Result:
    """Fit in a thread; the main one follows the log and stays free for Ctrl-C and SIGTERM."""
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = trainer.fit()
        except BaseException as error:  # raised again below, in the main thread
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True, name="fit")
    thread.start()

    def running() -> bool:
        ending.check()
        return thread.is_alive()

    follow(log, running, print)
    error = outcome.get("error")
    if error is not None:
        raise (find_final(error) or error)
    return outcome["result"]
