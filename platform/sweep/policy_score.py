"""By setting, a trial's second score: how often a small policy on its encoder fails.

Behaviour cloning on the frozen encoder, rolled out on perturbed ``dev`` episodes, as
``jobs/evaluate.py --suite metaworld`` does it. Demonstrations, initial states and the policy's
seed are the same for every trial.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.eval.expert_views import UNPERTURBED
from dynaflip.platform.sweep.config import PolicyScoreConfig

if TYPE_CHECKING:
    from dynaflip.platform.evaluation.demonstrations import DemonstrationSet
    from dynaflip.platform.evaluation.rollout_config import RolloutConfig


@dataclass(frozen=True)
class PolicyScore:
    """Scores encoders by rollouts; travels to trials with where the demonstrations lie."""

    config: RolloutConfig
    demonstrations: dict[str, DemonstrationSet]  # by task

    def __call__(self, encoder_folder: Path) -> float:
        """Episodes of a hundred that end unsolved; the mean over tasks and conditions.

        Runs in a process of its own, on the CPU of the trial's training, which has ended.
        """
        import ray

        from dynaflip.platform.evaluation.encoders_under_test import TRAINED, Arm, encoder_at
        from dynaflip.platform.evaluation.plan import plan_cells
        from dynaflip.platform.evaluation.worker import WORKER_ENVIRONMENT, Worker

        arm = Arm(TRAINED, (encoder_at(str(encoder_folder)),))
        cells = [
            cell
            for cell in plan_cells(self.config, [arm], self.demonstrations)
            if cell.condition.factor != UNPERTURBED
        ]
        actor: Any = ray.remote(num_cpus=0, runtime_env={"env_vars": WORKER_ENVIRONMENT})(Worker)
        worker = actor.remote()
        try:
            failed: list[float] = []
            fitted: dict[str, Any] = {}
            for cell in cells:
                if cell.policy.digest() not in fitted:
                    fitted = ray.get(worker.fit.remote([cell.policy]))
                result = ray.get(worker.roll_out.remote(cell, fitted[cell.policy.digest()]))
                failed.append(1 - sum(result.success_ever) / len(result.success_ever))
        finally:
            ray.kill(worker)
        return 100 * sum(failed) / len(failed)


def policy_score(config: PolicyScoreConfig) -> PolicyScore:
    """The score of some settings; demonstrations that are not there yet are collected.

    Raises:
        UserError: an unknown task, or the simulator cannot render here.
    """
    from dynaflip.eval.envs.metaworld_task_sets import tasks_of
    from dynaflip.eval.envs.metaworld_tasks import KNOWN_TASKS
    from dynaflip.platform.evaluation.demonstrations import collect_demonstrations

    settings = config.rollouts()
    tasks = tasks_of(settings.tasks, KNOWN_TASKS)
    return PolicyScore(settings, collect_demonstrations(settings, tasks))
