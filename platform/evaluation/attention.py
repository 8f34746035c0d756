"""Computing what fitted policies read of each task, on an evaluation's workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynaflip.eval.envs.registry import environment
from dynaflip.eval.expert_views import ALL_FACTORS, UNPERTURBED
from dynaflip.eval.policies.readouts.config import POOLED
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.plan import Condition, EvaluationJob, PolicySpec
from dynaflip.platform.evaluation.worker import SceneSpec
from dynaflip.platform.job_queues import JobQueue

if TYPE_CHECKING:
    from dynaflip.eval.metrics.attention import AttentionMaps

MOMENTS = 3  # of each task, under each condition


def compute_attention(
    config: RolloutConfig, jobs: list[EvaluationJob], pool: ActorPool
) -> dict[str, AttentionMaps]:
    """Attention of the fitted policies, by task, unperturbed and under the strongest perturbation.

    Policies are those of the first of ``config.proprioception`` on all demonstrations.

    Returns:
        Empty where policies read pooled features, or by a read-out that says nothing of places.
    """
    if config.readout == POOLED or config.adaptation != "frozen":
        return {}
    shown = shown_conditions(jobs)
    tasks = environment(config.environment).tasks_of(config.tasks)
    policies: dict[str, dict[str, PolicySpec]] = {task: {} for task in tasks}
    starts: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    for job in jobs:
        if job.condition in shown:
            starts[job.task][job.condition.name] = job.starts[:MOMENTS]
        if is_shown(config, job.policy):
            policies[job.task][job.policy.digest()] = job.policy

    def submit(actor: Any, scene: SceneSpec) -> Any:
        fitted = [
            (spec, cache.load_policy(digest)) for digest, spec in policies[scene.task].items()
        ]
        return actor.attention.remote(scene, starts[scene.task], fitted)

    scenes = [SceneSpec(config.environment, task, config.image_px) for task in tasks]
    found = dict(
        pool.run(
            JobQueue(scenes).next,
            submit,
            number=len(scenes),
            describe=lambda scene: f"attention in {scene.task}",
        )
    )
    maps = {scene.task: found[scene] for scene in scenes}
    return {task: of_task for task, of_task in maps.items() if of_task is not None}


def shown_conditions(jobs: list[EvaluationJob]) -> list[Condition]:
    """Unperturbed, and all factors at once, else the last factor alone, at the highest level."""
    conditions = list(dict.fromkeys(job.condition for job in jobs))
    perturbed = [c for c in conditions if c.factor != UNPERTURBED]
    shown = [c for c in perturbed if c.factor == ALL_FACTORS] or [
        c for c in perturbed if c.factor == perturbed[-1].factor
    ]
    highest = sorted(shown, key=lambda c: c.level)[-1:]
    return [c for c in conditions if c.factor == UNPERTURBED] + highest


def is_shown(config: RolloutConfig, policy: PolicySpec) -> bool:
    """True if a policy is one of those whose attention is shown."""
    return (
        policy.encoder.folder is not None
        and policy.use_proprioception == config.proprioception[0]
        and policy.demonstrations[0].first is None
    )
