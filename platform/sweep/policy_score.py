"""Optional second objective of a trial: how often a small policy on its encoder fails.

Behaviour cloning on the frozen encoder, rolled out on perturbed ``dev`` episodes, as
``jobs/evaluate.py --suite rollouts`` does it. Demonstrations, initial states and the policy's
seed are the same for every trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynaflip.eval.envs.registry import environment
from dynaflip.eval.expert_views import UNPERTURBED
from dynaflip.platform.sweep.config import PolicyScoreConfig

if TYPE_CHECKING:
    from dynaflip.platform.evaluation.config import RolloutConfig
    from dynaflip.platform.evaluation.demonstration_set import DemonstrationSet


@dataclass(frozen=True)
class PolicyScore:
    """Scores encoders by rollouts; plain data, which Ray sends to the trials."""

    config: RolloutConfig
    demonstrations: dict[str, DemonstrationSet]  # by task

    def __call__(self, encoder_folder: Path) -> float:
        """Percentage of episodes that end unsolved; the mean over tasks and conditions.

        Runs in a process of its own, on the CPU of the trial's training, which has ended.
        """
        from dynaflip.encoders.checkpoint import backbone_name
        from dynaflip.platform.actor_pool import ActorPool
        from dynaflip.platform.evaluation.encoders_under_test import (
            TRAINED,
            EncoderUnderTest,
            encoder_at,
        )
        from dynaflip.platform.evaluation.plan import plan_jobs
        from dynaflip.platform.evaluation.schedule import run_jobs
        from dynaflip.platform.evaluation.worker import Worker

        # The trial has made the folder, so its backbone is that of the user's settings.
        encoder = encoder_at(str(encoder_folder), backbone_name(encoder_folder))
        under_test = EncoderUnderTest(TRAINED, (encoder,))
        jobs = [
            job
            for job in plan_jobs(self.config, [under_test], self.demonstrations)
            if job.condition.factor != UNPERTURBED
        ]
        # Of the trial's own CPU: its training has ended.
        variables = environment(self.config.environment).worker_environment()
        with ActorPool(Worker, job="sweep", most=1, cpus_each=0, variables=variables) as pool:
            results = run_jobs(jobs, pool, quiet=True)
        failed = [1 - sum(r.success_ever) / len(r.success_ever) for r in results]
        return 100 * sum(failed) / len(failed)


def policy_score(config: PolicyScoreConfig) -> PolicyScore:
    """The score with these settings; missing demonstrations are collected first.

    Raises:
        UserError: an unknown task, or the simulator cannot render here.
    """
    from dynaflip.platform.evaluation.demonstrations import collect_demonstrations

    settings = config.rollouts()
    tasks = environment(settings.environment).tasks_of(settings.tasks)
    return PolicyScore(settings, collect_demonstrations(settings, tasks))
