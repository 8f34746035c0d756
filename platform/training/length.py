"""Length of a run, from the size of its data set, and the size of a rank's batch."""

from __future__ import annotations

from dataclasses import dataclass

from dynaflip.errors import UserError
from dynaflip.platform.training.config import PretrainConfig

DEFAULT_STEPS = 2000


@dataclass(frozen=True)
class Plan:
    """Length of the run, from the size of the data set."""

    train_triplets: int
    steps_per_epoch: int
    total_steps: int
    # With source weights an epoch draws its rows, instead of taking each once.
    weighted: bool = False


def plan(config: PretrainConfig, train_triplets: int, *, weighted: bool = False) -> Plan:
    """Steps of an epoch (full batches of all workers) and of the run.

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
        steps = max(1, round(config.train.epochs * per_epoch))
    else:
        steps = config.train.steps or DEFAULT_STEPS
    return Plan(train_triplets, per_epoch, steps, weighted)


def rank_batch_size(config: PretrainConfig, workers: int) -> int:
    """Samples of a rank and step: lost workers' shares go to those that are left.

    Raises:
        UserError: there are more workers than samples.
    """
    whole = config.data.batch_size * config.train.num_workers
    if whole < workers:
        raise UserError(
            f"{workers} workers cannot share a batch of {whole}: raise data.batch_size or "
            "train.num_workers"
        )
    return whole // workers
