"""Run an evaluation's jobs on all CPUs of the Ray cluster, except those with a cached result."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from dynaflip.eval.envs.base import EnvironmentSpec
from dynaflip.eval.policies.recipe import ENCODER_PREFIX
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.encoder_service import EncoderActors, EncoderService, actors_for
from dynaflip.platform.evaluation.encoders_under_test import Encoder
from dynaflip.platform.evaluation.end_to_end_fits import fit_end_to_end_policies
from dynaflip.platform.evaluation.fits_config import ANYWHERE, FitsConfig
from dynaflip.platform.evaluation.job_result import JobResult
from dynaflip.platform.evaluation.plan import EvaluationJob, PolicySpec
from dynaflip.platform.evaluation.worker import (
    ImitationResult,
    SaliencyMaps,
    SceneSpec,
    Worker,
)
from dynaflip.platform.job_queues import JobQueue, TaskQueue


def open_pool(environment: EnvironmentSpec) -> ActorPool:
    """The actors of an evaluation in an environment, which start with its first job."""
    return ActorPool(Worker, job="evaluate", variables=environment.worker_environment())


def run_jobs(
    jobs: list[EvaluationJob],
    pool: ActorPool,
    fits: FitsConfig = ANYWHERE,
    service: EncoderService | None = None,
    *,
    quiet: bool = False,
) -> list[JobResult]:
    """Results of all jobs in their order, from the cache where they are in it.

    Args:
        jobs: of any encoders and tasks; those of equal digests run once.
        pool: of :class:`Worker`.
        fits: where policies that train their encoder are fitted.
        service: encodes the workers' images, if it has actors; None: workers do.
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
        fit_missing(distinct, pool, fits, service, quiet=quiet)
        _roll_out_missing(distinct, pool, service, quiet=quiet)
    results = []
    for job in jobs:
        result = cache.load_result(job)
        assert result is not None, f"job {job.digest()} has just been written"
        results.append(result)
    return results


def fit_missing(
    jobs: list[EvaluationJob],
    pool: ActorPool,
    fits: FitsConfig = ANYWHERE,
    service: EncoderService | None = None,
    *,
    quiet: bool = False,
) -> None:
    """Fit the jobs' policies that are not cached.

    Those of one frozen encoder and task are fitted together, so that their features are computed
    once. Those that train their encoder are fitted one by one, where ``fits`` says.
    """
    from tqdm import tqdm

    needed = {job.policy.digest(): job.policy for job in jobs if job.policy.encoder.folder}
    missing = {digest: spec for digest, spec in needed.items() if not cache.has_policy(spec)}
    frozen = [spec for spec in missing.values() if spec.adaptation == "frozen"]
    adapted = [spec for spec in missing.values() if spec.adaptation != "frozen"]
    with tqdm(total=len(missing), desc="fit", unit="policy", disable=quiet or not missing) as bar:
        if frozen:
            _fit_frozen(frozen, pool, service, bar)
        for spec, fitted in fit_end_to_end_policies(adapted, fits) if adapted else ():
            cache.save_policy(spec.digest(), fitted.weights)
            bar.set_postfix_str(f"on {fitted.device}")
            bar.update()


def fit_groups(specs: list[PolicySpec]) -> list[list[PolicySpec]]:
    """Policies that share a frozen encoder, read-out and demonstrations, and so their features."""
    groups: dict[tuple[str, ...], list[PolicySpec]] = {}
    for spec in specs:
        # By the whole set: policies of its first episodes alone share its features.
        shown = (d.digest for d in spec.demonstrations)
        key = (spec.encoder.digest, *shown, spec.readout, repr(spec.readout_settings))
        groups.setdefault(key, []).append(spec)
    return list(groups.values())


def _fit_frozen(
    specs: list[PolicySpec], pool: ActorPool, service: EncoderService | None, bar: Any
) -> None:
    groups = fit_groups(specs)
    results = pool.run(
        JobQueue(groups).next,
        lambda actor, group: actor.fit.remote(group, actors_for(service)),
        number=len(groups),
        describe=lambda group: f"fitting {len(group)} policies on {group[0].encoder.name}",
    )
    for group, fitted in results:
        for digest, weights in fitted.items():
            cache.save_policy(digest, weights)
        bar.set_postfix_str(f"workers {pool.state().words()}")
        bar.update(len(group))


def compare_with_expert(
    jobs: list[EvaluationJob], pool: ActorPool, service: EncoderService | None = None
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
        there = actors_for(service) if fitted else None
        weights = {digest: _weights(digest, there) for digest in fitted}
        return actor.compare_with_expert.remote(batches[key], weights, there)

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


def _weights(digest: str, there: EncoderActors | None) -> dict[str, Any]:
    """A policy's tensors that a worker needs: without an encoder that actors load themselves."""
    weights = cache.load_policy(digest)
    if there is None:
        return weights
    return {k: tensor for k, tensor in weights.items() if not k.startswith(ENCODER_PREFIX)}


def _roll_out_missing(
    jobs: list[EvaluationJob], pool: ActorPool, service: EncoderService | None, *, quiet: bool
) -> None:
    from tqdm import tqdm

    queue = TaskQueue(jobs)
    began, steps = time.monotonic(), 0

    def submit(actor: Any, job: EvaluationJob) -> Any:
        spec = job.policy
        if spec.encoder.folder is None:
            return actor.roll_out.remote(job, None)
        there = actors_for(service)
        return actor.roll_out.remote(job, _weights(spec.digest(), there), there)

    with tqdm(total=len(jobs), desc="roll out", unit="job", disable=quiet) as bar:
        for job, result in pool.run(queue.next, submit, number=len(jobs), describe=_words):
            cache.save_result(job, result)
            steps += sum(result.steps)
            solved = f"{sum(result.success_ever)}/{len(result.steps)}"
            bar.set_postfix_str(
                f"{steps / (time.monotonic() - began):.0f} steps/s, last {job.task} "
                f"{job.condition.name} {job.under_test}: {solved}, workers {pool.state().words()}"
                + _encoding(service, result)
            )
            bar.update()


def _encoding(service: EncoderService | None, last: JobResult) -> str:
    """How busy encoder actors are, and how long the last job's worker waited for them."""
    if service is None or not (words := service.words()):
        return ""
    return f", {words}, worker waited {100 * last.waited_s / last.seconds:.0f} %"


def _words(job: EvaluationJob) -> str:
    return f"{job.task} {job.condition.name} {job.under_test} seed {job.policy.seed}"


class _Imitation(NamedTuple):
    """Policies on one encoder that are compared with the expert in one task."""

    task: str
    encoder_digest: str
