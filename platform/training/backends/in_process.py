"""The in-process backend, without Ray and MLflow: one process, a notebook, or torchrun's many.

The same step, loop, data order and checkpoints as under Ray Train; the curves go to
``metrics.jsonl`` and the model to ``encoder/`` of the output folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from dynaflip.encoders.checkpoint import save_folder
from dynaflip.encoders.config import ModelConfig
from dynaflip.errors import UserError
from dynaflip.files import write_file
from dynaflip.platform.cluster import available_cpus
from dynaflip.platform.config_loader import flatten, to_dict
from dynaflip.platform.provenance import git_commit
from dynaflip.platform.training.config import PretrainConfig, TrainConfig
from dynaflip.platform.training.context import Context, Metrics
from dynaflip.platform.training.curve_file import CurveFile
from dynaflip.platform.training.job import TrainJob, build_job
from dynaflip.platform.training.loop import Pretraining
from dynaflip.platform.training.notices import STOP, Notices, on_sigterm
from dynaflip.platform.training.pretrained import pin_models
from dynaflip.platform.training.reports import ReportWriter

RUN = "run.json"  # settings and the triplets' digest


def train_in_process(
    config: PretrainConfig, output: Path, log: Callable[[str], None] = print
) -> Pretraining:
    """Train, or continue the run in the output folder; every rank of a torchrun calls this.

    Args:
        config: the settings; ``triplets`` names a folder, ``train.num_workers`` is the number
            of processes that the batch size is meant for.
        output: a folder that all processes see.
        log: takes lines for the user, on rank 0.

    Returns:
        The finished pretraining; rank 0 has written ``output/encoder``.

    Raises:
        UserError: the folder holds a run with other settings or triplets.
        Stopped: a process was told to end by SIGTERM; a checkpoint is saved.
    """
    rank, workers = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    elsewhere = config.train.checkpoint_storage
    storage = f"{elsewhere.rstrip('/')}/{output.name}" if elsewhere else output / "checkpoints"
    notices = Notices()
    sigterm = on_sigterm(lambda: notices.notify(STOP))
    with sigterm, _process_group(rank, workers, config.train.device) as device:
        config = _with_one_start(config, output, rank, log)
        job = build_job(config, str(storage))
        output.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            _check_same_run(output, config, job.index.digest)
        reporter = _reporter(job, output, log) if rank == 0 else None
        context = Context(
            rank=rank,
            world_size=workers,
            device=device,
            report=reporter or (lambda metrics: None),
            log=log if rank == 0 else lambda line: None,
            checkpoints=job.checkpoint_manager(),
            notices=notices,
        )
        sources = tuple(job.index.sources)
        pretraining = Pretraining(config, context, job.length, job.gallery(rank), sources)
        here = int(os.environ.get("LOCAL_WORLD_SIZE", workers))
        threads = max(1, available_cpus() // here)
        frames = pretraining.state.model.learnt_frames
        feed = job.feed(frames, rank=rank, workers=workers, threads=threads, device=device)
        try:
            with contextlib.closing(feed):
                pretraining.run(feed, feed.traffic)
        finally:
            if reporter is not None:
                reporter.flush()
        if reporter is not None:
            _save_encoder(job, pretraining, output / "encoder", reporter.last)
    return pretraining


def _with_one_start(
    config: PretrainConfig, output: Path, rank: int, log: Callable[[str], None]
) -> PretrainConfig:
    """The settings with a commit in each hub id, which rank 0 asks the hub for.

    A run that is continued keeps those of its beginning.
    """
    model: list[ModelConfig] = [config.model]
    if rank == 0:
        file = output / RUN
        begun = json.loads(file.read_text()) if file.exists() else {}
        model[0] = pin_models(
            config.model,
            earlier=(begun.get("model.image.name", ""), begun.get("model.language.name", "")),
            log=log,
        )
    if dist.is_initialized():
        dist.broadcast_object_list(model)
    return dataclasses.replace(config, model=model[0])


def _reporter(job: TrainJob, output: Path, log: Callable[[str], None]) -> ReportWriter:
    def show(lines: list[str]) -> None:
        for line in lines:
            log(line)

    terms = job.config.objective.weighted()
    return ReportWriter(CurveFile(output), show, job.length.total_steps, terms)


def _save_encoder(job: TrainJob, pretraining: Pretraining, folder: Path, metrics: Metrics) -> None:
    info = {
        "config": to_dict(job.config),
        "git_commit": git_commit(),
        **job.index.provenance(),
        "steps": job.length.total_steps,
        "metrics": {name: value for name, value in metrics.items() if name != "step"},
    }
    save_folder(folder, pretraining.state.evaluated_model(), info)


def _check_same_run(output: Path, config: PretrainConfig, data_digest: str) -> None:
    """Record what is trained, or compare it with what the folder was begun with."""
    # These may differ from call to call.
    grace_s = TrainConfig().grace_s
    train = dataclasses.replace(config.train, threads=None, grace_s=grace_s)
    settings = flatten(to_dict(dataclasses.replace(config, triplets=None, train=train)))
    mine = {**settings, "data_digest": data_digest}
    file = output / RUN
    if not file.exists():
        write_file(file, json.dumps(mine, indent=1))
        return
    # Settings that did not exist yet when the run was begun had today's defaults.
    before = flatten(to_dict(PretrainConfig())) | json.loads(file.read_text())
    # A mapping with entries has a name for each of them, an empty one a name of its own.
    names = [name for name, value in {**before, **mine}.items() if value != {}]
    other = [name for name in names if before.get(name) != mine.get(name)]
    if other:
        raise UserError(
            f"{output} holds a run with other {', '.join(other)}; go on with its settings, or "
            "give another folder"
        )


@contextlib.contextmanager
def _process_group(rank: int, workers: int, wanted: str) -> Iterator[str]:
    """Join the other processes that torchrun started; the device to train on.

    Raises:
        UserError: a GPU is wanted and there is none, or there are fewer than processes.
    """
    device, gpus = "cpu", torch.cuda.device_count() if wanted != "cpu" else 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if wanted == "gpu" and not gpus:
        raise UserError("train.device gpu: this machine has none; use train.device cpu or auto")
    if 0 < gpus < here:
        raise UserError(
            f"train.device {wanted}: {here} processes need {here} GPUs, this machine has {gpus}; "
            f"use torchrun --nproc-per-node {gpus}, or --train.device cpu"
        )
    if gpus:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if workers == 1:
        yield device
        return
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # not torchrun's: perhaps left in the shell
        print(
            f"WORLD_SIZE={workers}, RANK={rank}: waiting for {workers - 1} other processes at "
            f"MASTER_ADDR; unset WORLD_SIZE and RANK if they are left from something else",
            flush=True,
        )
    try:
        dist.init_process_group("nccl" if gpus else "gloo", rank=rank, world_size=workers)
    except (dist.DistError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"
        raise UserError(
            f"WORLD_SIZE={workers} and RANK={rank} in the environment say that this is one of "
            f"{workers} processes, and the others are not met at MASTER_ADDR {where} "
            f"({' '.join(str(error).split())[:80]}); start it with torchrun, or unset WORLD_SIZE "
            "and RANK"
        ) from None
    try:
        yield device
    finally:
        dist.destroy_process_group()
