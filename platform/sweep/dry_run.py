"""``--dry-run``: search space, resources of a trial, trials at once, and estimated time."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path

from dynaflip.platform.paths import default_triplets, input_path
from dynaflip.platform.sweep import study as studies
from dynaflip.platform.sweep.config import SweepJobConfig, pretrain_part
from dynaflip.platform.sweep.resources import Fit
from dynaflip.platform.sweep.run import join_cluster
from dynaflip.platform.sweep.space import Dimension, paper_values, parse_space
from dynaflip.platform.sweep.table import aligned
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.training.progress import clock

# Rough time to start a trial's processes (Tune's, Train's controller, worker) and imports.
START_S = 20.0
_TIMED_STEPS = 3


def dry_run(job: SweepJobConfig) -> str:
    """Describe what the sweep would do; times three training steps in this process.

    Raises:
        UserError: as the sweep itself would raise.
    """
    space, base = parse_space(job.sweep.search), pretrain_part(job)
    papers = paper_values(space, base)
    base = dataclasses.replace(base, triplets=input_path(base.triplets, default_triplets()))
    fit = join_cluster(base, job.sweep.concurrent)
    rows = [["setting", "range", "trial 0"]]
    rows += [[d.key, _range(d), f"{papers[d.key]}"] for d in space]
    lines = ["space", *(f"  {line}" for line in aligned(rows)), "", "resources", f"  {fit.text()}"]
    return "\n".join([*lines, "", "cost", *_cost(job, base, fit)])


def _range(dimension: Dimension) -> str:
    return dimension.text().partition("=")[2]


def _cost(job: SweepJobConfig, base: PretrainConfig, fit: Fit) -> list[str]:
    from dynaflip.platform.training.run import prepare

    with tempfile.TemporaryDirectory() as nowhere:
        work = prepare(base, Path(nowhere))
        step_s = time_step(base, work, fit.threads)
    steps, sweep = work.length.total_steps, job.sweep
    trial_s = START_S + steps * step_s
    scorings = len(studies.score_steps(sweep, steps))
    search_s = trial_s * sweep.trials / sweep.concurrent
    runs = (sweep.confirm + 1) * sweep.confirm_seeds if sweep.confirm else 0
    confirm_s = trial_s * runs / sweep.concurrent
    early = "" if sweep.scheduler == "none" else f" at most ({sweep.scheduler} stops some early)"
    return [
        f"  {steps} steps of {step_s:.2f} s (measured now, alone) and {START_S:.0f} s to start: "
        f"{clock(trial_s)} a trial, and {scorings} scoring(s)",
        f"  search: {sweep.trials} trials, {sweep.concurrent} at once: {clock(search_s)}{early}",
        f"  confirmation: {runs} trainings: {clock(confirm_s)}",
        f"  together {clock(search_s + confirm_s)}, if {sweep.concurrent} at once do not slow "
        f"each other down",
    ]


def time_step(base: PretrainConfig, work: object, threads: int) -> float:
    """Seconds per training step on this machine's CPU or GPU, without the first step."""
    import torch

    from dynaflip.platform.training.context import Context
    from dynaflip.platform.training.job import TrainJob
    from dynaflip.platform.training.loop import Pretraining

    assert isinstance(work, TrainJob)
    torch.set_num_threads(threads)
    train = dataclasses.replace(
        base.train, steps=_TIMED_STEPS + 1, epochs=None, report_every_steps=1, eval_every_steps=0
    )
    config = dataclasses.replace(base, train=train)
    moments: list[float] = []

    def note(metrics: dict[str, float]) -> None:
        moments.append(time.perf_counter())

    on_gpu = base.train.device != "cpu" and torch.cuda.is_available()
    context = Context(device="cuda" if on_gpu else "cpu", report=note)
    length = dataclasses.replace(work.length, total_steps=_TIMED_STEPS + 1)
    pretraining = Pretraining(config, context, length)
    feed = dataclasses.replace(work, config=config).feed(
        pretraining.state.model.learnt_frames, threads=threads, device=context.device
    )
    with contextlib.closing(feed):
        pretraining.run(feed)
    # The first step warms up.
    return (moments[-1] - moments[0]) / (len(moments) - 1)
