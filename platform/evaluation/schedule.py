"""Run an evaluation's jobs on all CPUs of the Ray cluster, except those with a cached result."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.encoders_under_test import Encoder
from dynaflip.platform.evaluation.plan import EvaluationJob, PolicySpec
from dynaflip.platform.evaluation.worker import (
    ImitationResult,
    JobResult,
    SaliencyMaps,
    SceneSpec,
    Worker,
)
from dynaflip.platform.job_queues import JobQueue, TaskQueue


def open_pool(environment: EnvironmentSpec) -> ActorPool:
    """The actors of an evaluation in an environment, which start with its first job."""
    return ActorPool(Worker, job="evaluate", variables=environment.worker_environment())


def run_jobs(jobs: list[EvaluationJob], pool: ActorPool, *, quiet: bool = False) -> list[JobResult]:
    """Results of all jobs in their order, from the cache where they are in it.

    Args:
        jobs: of any encoders and tasks; those of equal digests run once.
        pool: of :class:`Worker`.
        quiet: print neither counts nor progress.

    Raises:
        UserError: an encoder does not do what an encoder must, or nothing can be rendered.
    """
    missing = [job for job in jobs if cache.load_result(job) is None]
    # Encoders of equal weights share their jobs.
    distinct = list({job.digest(): job for job in missing}.values())
    if not quiet:
        print(
            f"{len(jobs)} evaluation jobs (task x condition x seed x encoder), "
            f"{len(jobs) - len(missing)} of them cached"
        )
    if distinct:
        fit_missing(distinct, pool, quiet=quiet)
        _roll_out_missing(distinct, pool, quiet=quiet)
    results = []
    for job in jobs:
        result = cache.load_result(job)
        assert result is not None, f"job {job.digest()} has just been written"
        results.append(result)
    return results


def fit_missing(jobs: list[EvaluationJob], pool: ActorPool, *, quiet: bool = False) -> None:
    """Fit the jobs' policies that are not cached, those of one encoder and task together."""
    from tqdm import tqdm

    groups: dict[tuple[str, ...], dict[str, PolicySpec]] = {}
    for job in jobs:
        spec = job.policy
        if spec.encoder.folder is None or cache.has_policy(spec):
            continue
        shown = (d.digest for d in spec.demonstrations)
        key = (spec.encoder.digest, *shown, spec.readout, repr(spec.readout_settings))
        groups.setdefault(key, {})[spec.digest()] = spec
    batches = [list(specs.values()) for specs in groups.values()]
    if not batches:
        return
    number = sum(map(len, batches))
    with tqdm(total=number, desc="fit", unit="policy", disable=quiet) as bar:
        results = pool.run(
            JobQueue(batches).next,
            lambda actor, specs: actor.fit.remote(specs),
            number=len(batches),
            describe=lambda specs: f"fitting {len(specs)} policies on {specs[0].encoder.name}",
        )
        for specs, fitted in results:
            for digest, weights in fitted.items():
                cache.save_policy(digest, weights)
            bar.set_postfix_str(f"workers {pool.state().words()}")
            bar.update(len(specs))


def compare_with_expert(
    jobs: list[EvaluationJob], pool: ActorPool
) -> dict[tuple[str, str], ImitationResult]:
    """Compare all jobs' policies with the expert: (task, digest of a policy) → its result.

    The policies must be fitted. Those of one task and encoder are compared together.
    """
    from tqdm import tqdm

    batches: dict[_Imitation, list[EvaluationJob]] = {}
    for job in jobs:
        key = _Imitation(job.task, job.policy.encoder.digest)
        batches.setdefault(key, []).append(job)

    def submit(actor: Any, key: _Imitation) -> Any:
        specs = {job.policy.digest(): job.policy for job in batches[key]}
        fitted = [digest for digest, spec in specs.items() if spec.encoder.folder is not None]
        weights = {digest: cache.load_policy(digest) for digest in fitted}
        return actor.compare_with_expert.remote(batches[key], weights)

    results: dict[tuple[str, str], ImitationResult] = {}
    queue = TaskQueue(list(batches))
    with tqdm(total=len(batches), desc="imitate", unit="encoder") as bar:
        for key, result in pool.run(queue.next, submit, number=len(batches), describe=str):
            results |= {(key.task, digest): result for digest in result.agreement}
            bar.update()
    return results


def compute_saliency(
    scenes: list[SceneSpec],
    layout_seeds: list[int],
    encoders: list[Encoder],
    pool: ActorPool,
) -> dict[str, SaliencyMaps]:
    """Saliency of every encoder by task; empty in an environment without segmentation."""
    by_scene = dict(
        pool.run(
            JobQueue(scenes).next,
            lambda actor, scene: actor.saliency.remote(scene, layout_seeds, encoders),
            number=len(scenes),
            describe=lambda scene: f"saliency in {scene.task}",
        )
    )
    maps = {scene.task: by_scene[scene] for scene in scenes}
    return {task: of_task for task, of_task in maps.items() if of_task is not None}


def _roll_out_missing(jobs: list[EvaluationJob], pool: ActorPool, *, quiet: bool) -> None:
    from tqdm import tqdm

    queue = TaskQueue(jobs)
    began, steps = time.monotonic(), 0

    def submit(actor: Any, job: EvaluationJob) -> Any:
        spec = job.policy
        weights = None if spec.encoder.folder is None else cache.load_policy(spec.digest())
        return actor.roll_out.remote(job, weights)

    with tqdm(total=len(jobs), desc="roll out", unit="job", disable=quiet) as bar:
        for job, result in pool.run(queue.next, submit, number=len(jobs), describe=_words):
            cache.save_result(job, result)
            steps += sum(result.steps)
            solved = f"{sum(result.success_ever)}/{len(result.steps)}"
            bar.set_postfix_str(
                f"{steps / (time.monotonic() - began):.0f} steps/s, last {job.task} "
                f"{job.condition.name} {job.under_test}: {solved}, workers {pool.state().words()}"
            )
            bar.update()


def _words(job: EvaluationJob) -> str:
    return f"{job.task} {job.condition.name} {job.under_test} seed {job.policy.seed}"


class _Imitation(NamedTuple):
    """Policies on one encoder that are compared with the expert in one task."""

    task: str
    encoder_digest: str
