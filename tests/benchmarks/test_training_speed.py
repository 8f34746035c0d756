"""What does Ray Train cost? A run on its workers against a bare loop on the same rows.

Run with `make bench`. The triplets are those of the demo, where there are any.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest
import torch
from expectation import show
from torch import Tensor

from dynaflip.platform.config_loader import load_config
from dynaflip.platform.training.config import PretrainConfig

pytestmark = [pytest.mark.bench, pytest.mark.ray]
CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
STEPS, WARM_UP = 24, 6


def config_of(triplets: str, *, steps: int = STEPS, num_workers: int = 1) -> PretrainConfig:
    """The demo's model and batch; no looks in between."""
    config = load_config(PretrainConfig, str(CONFIGS / "demo.yaml"), {})
    train = dataclasses.replace(
        config.train,
        steps=steps,
        num_workers=num_workers,
        threads=1,
        report_every_steps=WARM_UP,
        eval_every_steps=0,
        diagnostics_every_steps=0,
        checkpoint_every_steps=10_000,
    )
    return dataclasses.replace(config, triplets=triplets, train=train)


@pytest.fixture
def triplets(tmp_path: Path) -> str:
    """The folder that BENCH_TRIPLETS names, or a synthetic one of the demo's image size."""
    if folder := os.environ.get("BENCH_TRIPLETS"):
        return folder
    from synthetic_triplets import write_triplets

    return str(write_triplets(tmp_path / "set", clips=64, per_clip=12, px=160))


def bare_steps_per_s(config: PretrainConfig) -> float:
    """The plainest loop there is: decode a batch inline, step, repeat."""
    from dynaflip.platform.training.data.augment import augment_on_device
    from dynaflip.platform.training.data.caption_cache import caption_table
    from dynaflip.platform.training.data.collate import Collate
    from dynaflip.platform.training.data.gallery import read_clips
    from dynaflip.platform.training.data.index import read_index
    from dynaflip.platform.training.loop import to_device
    from dynaflip.platform.training.step import train_step
    from dynaflip.platform.training.train_state import TrainingState

    assert config.triplets is not None
    index = read_index(config.triplets)
    text = caption_table(index.captions, config.model.language)
    collate = Collate(config.data, config.model.image.image_px, text, seed=0, augment=True)
    import numpy as np
    import pyarrow as pa

    rows = pa.concat_tables(read_clips(index.train, np.arange(len(index.train))))
    torch.set_num_threads(1)
    state = TrainingState(config, "cpu", STEPS)
    size = config.data.batch_size
    began = 0.0
    for step in range(STEPS):
        if step == WARM_UP:
            began = time.perf_counter()
        chosen = rows.take(pa.array([(step * size + i) % len(rows) for i in range(size)]))
        batch: dict[str, Tensor] = augment_on_device(to_device(collate(chosen), "cpu"))
        train_step(state.model, state.objective, state.optimizer, state.schedule, batch)
    return (STEPS - WARM_UP) / (time.perf_counter() - began)


def curves_of(config: PretrainConfig) -> dict[str, list[tuple[int, float]]]:
    from dynaflip.platform import tracking
    from dynaflip.platform.training.run import pretrain

    outcome = pretrain(config)
    curves = tracking.reopen_run(outcome.run_id).curves()
    tracking.reopen_run(outcome.run_id).end("FINISHED")
    return curves


def warm(curve: list[tuple[int, float]]) -> float:
    """Harmonic mean after the warm-up: of rates over equal numbers of steps."""
    values = [value for step, value in curve if step > WARM_UP]
    return len(values) / sum(1 / max(value, 1e-12) for value in values)


def test_steps_of_ray_train(ray_cluster: None, triplets: str) -> None:
    config = config_of(triplets)
    bare = bare_steps_per_s(config)
    curves = curves_of(config)
    fed = warm(curves["speed/steps_per_s"])
    waits = [value for step, value in curves["speed/data_wait_share"] if step > WARM_UP]
    waiting = sum(waits) / len(waits)
    print(
        f"\nfeeding, one worker, one thread: bare loop {bare:.2f} steps/s, Ray Train "
        f"{fed:.2f} ({100 * fed / bare:.0f} %), waiting for data {100 * waiting:.1f} %"
    )
    show("steps/s, fed by Ray / bare loop", fed / bare, at_least=0.95)
    show("share of the time that waits for data", waiting, at_most=0.02)


def test_weak_scaling(ray_cluster: None, triplets: str) -> None:
    """The same batch a worker; with two, twice the samples. What is lost goes to messages."""
    rates = {}
    for workers in (1, 2):
        config = config_of(triplets, num_workers=workers)
        curves = curves_of(config)
        rates[workers] = warm(curves["speed/samples_per_s"])
    shares = message_shares(config_of(triplets, num_workers=2))
    print(
        f"\nweak scaling, one thread a worker: 1 worker {rates[1]:.1f} samples/s, 2 workers "
        f"{rates[2]:.1f}: {100 * rates[2] / rates[1] / 2:.0f} % of twice; of a step of two "
        f"{json.dumps(shares)}"
    )
    show("samples/s, 2 workers / 1", rates[2] / rates[1], at_least=1)


def message_shares(config: PretrainConfig) -> dict[str, str]:
    """Time of the gradients' all-reduce and of the embeddings' gather on 2 gloo processes.

    Measured alone, on tensors of the run's sizes, against the step of one process.
    """
    import tempfile

    import torch.multiprocessing as mp

    step_s = 1 / bare_steps_per_s(config)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_messages, args=(folder, config), nprocs=2, join=True)
        found = json.loads((Path(folder) / "times.json").read_text())
    return {name: f"{100 * value / step_s:.1f} %" for name, value in found.items()}


def _messages(rank: int, folder: str, config: PretrainConfig) -> None:
    import torch.distributed as dist

    from dynaflip.encoders.model import DynaFLIP

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    number = sum(p.numel() for p in DynaFLIP(config.model).parameters() if p.requires_grad)
    gradients = torch.zeros(number)
    rows = torch.zeros(config.data.batch_size, config.model.embedding_dim)

    def timed(message) -> float:  # type: ignore[no-untyped-def]
        message()
        began = time.perf_counter()
        for _ in range(10):
            message()
        return (time.perf_counter() - began) / 10

    def gather() -> None:
        for _ in range(3):  # of three modalities, and its gradient
            dist.all_gather([torch.empty_like(rows) for _ in range(2)], rows)
            dist.all_reduce(torch.zeros(2 * len(rows), rows.shape[1]))

    times = {"all-reduce": timed(lambda: dist.all_reduce(gradients)), "gather": timed(gather)}
    if rank == 0:
        (Path(folder) / "times.json").write_text(json.dumps(times))
    dist.destroy_process_group()
