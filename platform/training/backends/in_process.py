"""A pretraining without Ray and MLflow: one process, a notebook, or many under torchrun.

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
from dynaflip.encoders.language import embed_captions
from dynaflip.errors import UserError
from dynaflip.files import write_file
from dynaflip.platform.config_loader import flatten, to_dict
from dynaflip.platform.provenance import git_commit
from dynaflip.platform.training.checkpoint_manager import Checkpoints
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.data.collate import Batch, Collate, TextTable
from dynaflip.platform.training.data.index import read_index
from dynaflip.platform.training.data.loader import epoch_batches, gallery_batch, plain_tables
from dynaflip.platform.training.data.sampling import Position, sampling_of
from dynaflip.platform.training.loop import (
    Context,
    Metrics,
    Pretraining,
    plan,
    rank_batch_size,
)
from dynaflip.platform.training.progress import progress_line

METRICS = "metrics.jsonl"
RUN = "run.json"  # settings and the triplets' digest


def pretrain_plain(
    config: PretrainConfig, output: Path, say: Callable[[str], None] = print
) -> Pretraining:
    """Train, or go on with what the output folder holds; every rank of a torchrun calls this.

    Args:
        config: the settings; ``triplets`` names a folder, ``train.num_workers`` is the number
            of processes that the batch size is meant for.
        output: a folder that all processes see.
        say: takes lines for the user, on rank 0.

    Returns:
        The finished pretraining; rank 0 has written ``output/encoder``.

    Raises:
        UserError: the folder holds a run with other settings or triplets.
    """
    assert config.triplets is not None, "give a triplet folder"
    rank, workers = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    index = read_index(config.triplets)
    sampling = sampling_of(config.data, index, config.train.seed)
    length = plan(config, index.counts["train"], weighted=not sampling.is_plain())
    features = embed_captions(index.captions, config.model.language)
    text = TextTable({c: i for i, c in enumerate(index.captions)}, features.numpy())
    px, seed = config.model.image.image_px, config.train.seed
    collate = Collate(config.data, px, text, seed=seed, augment=True)
    still = Collate(config.data, px, text, seed=seed, augment=False)
    tables = plain_tables(index.folder, "train", rank=rank, world_size=workers)

    def batches(position: Position) -> Iterator[Batch]:
        size = rank_batch_size(config, workers)
        return epoch_batches(
            tables(position.epoch), collate, config.data, sampling, position,
            batch_size=size, rank=rank,
        )  # fmt: skip

    output.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        _check_same_run(output, config, index.digest)
    last: Metrics = {"step": _last_step(output / METRICS) if rank == 0 else -1}

    def report(metrics: Metrics) -> None:
        # A run that goes on reports again what came after its checkpoint; the file has it.
        if rank == 0 and metrics["step"] > last["step"]:
            with (output / METRICS).open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            say(progress_line(metrics, length.total_steps, config.objective.weighted()))
            last.update(metrics)

    with _process_group(rank, workers, config.train.device) as device:
        elsewhere = config.train.checkpoint_storage
        storage = f"{elsewhere.rstrip('/')}/{output.name}" if elsewhere else output / "checkpoints"
        best = config.train.best_metric
        context = Context(
            rank=rank,
            world_size=workers,
            device=device,
            report=report,
            say=say if rank == 0 else lambda line: None,
            checkpoints=Checkpoints(
                str(storage), keep=config.train.keep_checkpoints, best_metric=best
            ),
        )
        gallery = None
        if rank == 0 and config.train.eval_every_steps:
            gallery = gallery_batch(index, still, config.train.gallery_size)
        pretraining = Pretraining(config, context, length, gallery, tuple(index.sources))
        pretraining.run(batches)
        if rank == 0:
            info = {
                "config": to_dict(config),
                "git_commit": git_commit(),
                **index.provenance(),
                "steps": length.total_steps,
                "metrics": {name: value for name, value in last.items() if name != "step"},
            }
            save_folder(output / "encoder", pretraining.state.kept(), info)
    return pretraining


def _check_same_run(output: Path, config: PretrainConfig, data_digest: str) -> None:
    """Write down what is trained, or hold it against what the folder was begun with."""
    train = dataclasses.replace(config.train, threads=None)
    settings = flatten(to_dict(dataclasses.replace(config, triplets=None, train=train)))
    mine = {**settings, "data_digest": data_digest}
    file = output / RUN
    if not file.exists():
        write_file(file, json.dumps(mine, indent=1))
        return
    before = json.loads(file.read_text())
    other = [name for name in {**before, **mine} if before.get(name) != mine.get(name)]
    if other:
        raise UserError(
            f"{output} holds a run with other {', '.join(other)}; go on with its settings, or "
            "give another folder"
        )


def _last_step(curves: Path) -> float:
    """The last step that a file of curves has; -1 where there is none. Half a line is cut off."""
    if not curves.exists():
        return -1
    lines = curves.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # killed while it was written
        lines.pop()
        curves.write_text("".join(lines))
    return max((json.loads(line)["step"] for line in lines), default=-1)


@contextlib.contextmanager
def _process_group(rank: int, workers: int, wanted: str) -> Iterator[str]:
    """Join the other processes that torchrun started; the device to train on.

    Raises:
        UserError: a GPU is wanted and there is none.
    """
    device = "cpu"
    if wanted == "gpu" and not torch.cuda.is_available():
        raise UserError("train.device gpu: this machine has none; use train.device cpu or auto")
    if wanted != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        device = "cuda"
    if workers == 1:
        yield device
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=workers)
    try:
        yield device
    finally:
        dist.destroy_process_group()
