"""Named sets of Meta-World tasks, until their users ask the environment's description."""

from __future__ import annotations

from collections.abc import Sequence

from dynaflip.eval.envs.metaworld_tasks import ENVIRONMENT, TASK_SETS


def tasks_of(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Task ids of sets and tasks; ``known`` is no longer read."""
    return ENVIRONMENT.tasks_of(names)


__all__ = ["TASK_SETS", "tasks_of"]
