"""The order in which a pool's actors get their jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class TaskJob(Protocol):
    """A job that belongs to a task of an environment."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...


_Job = TypeVar("_Job")
_TaskJob = TypeVar("_TaskJob", bound=TaskJob)


class JobQueue(Generic[_Job]):
    """Hands out jobs in their order, to whichever actor is free."""

    def __init__(self, jobs: Sequence[_Job]) -> None:
        self._left = list(reversed(jobs))

    def next(self, actor: int) -> _Job | None:
        """The next job of an actor, by its number; None: there is none left."""
        return self._left.pop() if self._left else None


class TaskQueue(Generic[_TaskJob]):
    """Hands out jobs so that an actor stays with a task, whose scenes it has loaded."""

    def __init__(self, jobs: Sequence[_TaskJob]) -> None:
        self._left: dict[str, list[_TaskJob]] = {}
        for job in reversed(jobs):
            self._left.setdefault(job.task, []).append(job)
        self._task: dict[int, str] = {}

    def next(self, actor: int) -> _TaskJob | None:
        """The next job of an actor, by its number; None: there is none left."""
        task = self._task.get(actor, "")
        if not self._left.get(task):
            left = {name: jobs for name, jobs in self._left.items() if jobs}
            if not left:
                return None
            busy = Counter(self._task.values())
            task = max(left, key=lambda name: len(left[name]) / (1 + busy[name]))
            self._task[actor] = task
        return self._left[task].pop()
