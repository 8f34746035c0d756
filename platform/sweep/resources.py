"""Resources of a trial, and how many trials fit; Ray would wait for ever for what is missing."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from dynaflip.errors import UserError
from dynaflip.platform.training.config import PretrainConfig

# A trial's driver sleeps while its workers train; Ray refuses 0.
DRIVER_CPUS = 0.1


@dataclass(frozen=True)
class Fit:
    """Resources of one trial, and the number of trials that fit."""

    cpus_per_worker: float
    gpus_per_worker: float
    workers: int
    threads: int
    most: int  # trials that fit at once
    cpus: float  # of the cluster

    def text(self) -> str:
        """One line for the terminal."""
        gpu = f" and {self.gpus_per_worker:g} GPU" if self.gpus_per_worker else ""
        return (
            f"a trial uses {self.workers} worker(s) of {self.cpus_per_worker:g} CPU{gpu} with "
            f"{self.threads} thread(s), and {DRIVER_CPUS:g} CPU for its driver; "
            f"{self.most} at once fit {self.cpus:g} CPUs"
        )


def fit_trials(
    config: PretrainConfig,
    concurrent: int,
    resources: dict[str, float],
    node_cpus: float = math.inf,
) -> Fit:
    """Divide a cluster's resources among ``concurrent`` trials.

    There are at most as many workers as CPUs.

    Args:
        config: of a trial.
        concurrent: trials at once.
        resources: of the whole cluster.
        node_cpus: of its smallest machine; a worker computes on one.

    Raises:
        UserError: fewer fit; the message names the number.
    """
    train = config.train
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    use_gpu = train.device == "gpu" or (train.device == "auto" and gpus > 0)
    gpu_share = train.gpus_per_worker if use_gpu else 0.0
    wanted = train.cpus_per_worker
    limits = {"CPUs": _most_by_cpu(cpus, train.num_workers, wanted)}
    if use_gpu:
        # A worker lives on one GPU: fractions of two do not add up.
        per_gpu = math.floor(1 / gpu_share + 1e-9) if gpu_share <= 1 else 1 / gpu_share
        limits["GPUs"] = math.floor(gpus * per_gpu / train.num_workers)
    scarce = min(limits, key=lambda name: limits[name])
    most = limits[scarce]
    if concurrent > most:
        held = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if use_gpu else "")
        raise UserError(
            f"--concurrent {concurrent}: the cluster has {held}, and its {scarce} hold "
            + (
                f"{most} such trial(s) at once"
                if most
                else f"no trial of {train.num_workers} worker(s)"
            )
        )
    share = (cpus - concurrent * DRIVER_CPUS) / (concurrent * train.num_workers)
    per_worker = wanted or min(1.0, math.floor(100 * share) / 100)
    share_of_cores = int(min(cpus // (concurrent * train.num_workers), node_cpus))
    threads = train.threads or max(1, share_of_cores)
    return Fit(per_worker, gpu_share, train.num_workers, threads, most, cpus)


def placed(config: PretrainConfig, fit: Fit) -> PretrainConfig:
    """Settings with a trial's share of the resources filled in."""
    train = dataclasses.replace(
        config.train,
        cpus_per_worker=fit.cpus_per_worker,
        gpus_per_worker=fit.gpus_per_worker or config.train.gpus_per_worker,
        threads=fit.threads,
    )
    return dataclasses.replace(config, train=train)


def _most_by_cpu(cpus: float, workers: int, wanted: float | None) -> int:
    by_cores = math.floor(cpus / workers)
    # The least that each trial must reserve: Ray counts in hundredths.
    smallest = workers * (wanted or 0.01) + DRIVER_CPUS
    return min(by_cores, math.floor(cpus / smallest + 1e-9))
