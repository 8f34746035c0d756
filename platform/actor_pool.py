"""The one pool of Ray actors: actors that ask for their next job when they are free.

Collecting, evaluating, rendering and scoring a sweep's trials all run their jobs here. An actor
that is lost (killed, out of memory, its machine gone) is replaced and its job is done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from dynaflip.errors import UserError
from dynaflip.platform.cluster import start_ray

# Actors that may be lost before a run gives up.
MOST_LOST = 5


class ActorPool:
    """Actors of one class, one per CPU of the cluster.

    A context manager: the actors start with the first job and are killed at its end.

    Args:
        actor_class: a plain class; each actor is one object of it.
        *arguments: of its constructor.
        job: the job's name, which errors begin with (``evaluate``).
        most: actors at most; None = as many as the cluster has CPUs.
        cpus_each: CPUs that Ray reserves for an actor; 0 where the caller's own are used.
        start_cpus: CPUs of a cluster that is started for this; None = all of the machine's.
        variables: environment variables of the actors' processes, such as a simulator's
            (:meth:`dynaflip.eval.envs.base.EnvironmentSpec.worker_environment`).
    """

    def __init__(
        self,
        actor_class: type,
        *arguments: Any,
        job: str,
        most: int | None = None,
        cpus_each: int = 1,
        start_cpus: int | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._actor_class, self._arguments = actor_class, arguments
        self._job, self._most = job, most
        self._cpus_each, self._start_cpus = cpus_each, start_cpus
        self._variables = dict(variables or {})
        self._actors: list[Any] = []
        self._lost = 0

    def __enter__(self) -> ActorPool:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._actors:
            import ray

            for actor in self._actors:
                ray.kill(actor)
            self._actors = []

    def run(
        self, next_job: Callable[[int], Any], submit: Callable[[Any, Any], Any]
    ) -> Iterator[tuple[Any, Any]]:
        """Run jobs until there are none left; yields (job, result) as they finish.

        An actor gets its first job once it runs: one that the cluster has no room for yet holds
        no job back.

        Args:
            next_job: number of a free actor → its next job, or None where there is none.
            submit: (actor, job) → the reference of the job's result.

        Raises:
            UserError: the cluster has no CPU, a job raised it, or too many actors were lost.
        """
        self._start()
        self._lost = 0
        import ray

        # Reference → (number of the actor, its job; None while it starts).
        waiting: dict[Any, tuple[int, Any]] = {
            actor.__ray_ready__.remote(): (number, None)
            for number, actor in enumerate(self._actors)
        }
        working = 0
        left = True
        while working or (left and waiting):
            [done], _ = ray.wait(list(waiting))
            number, job = waiting.pop(done)
            working -= job is not None
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from None
                raise
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                self._replace(number, str(error).splitlines()[0])
                actor = self._actors[number]
                reference = actor.__ray_ready__.remote() if job is None else submit(actor, job)
                waiting[reference] = number, job
                working += job is not None
                continue
            if job is not None:
                yield job, result
            following = next_job(number)
            left = left and following is not None
            if following is not None:
                waiting[submit(self._actors[number], following)] = number, following
                working += 1

    def _start(self) -> None:
        if self._actors:
            return
        start_ray(self._start_cpus)
        import ray

        number = int(ray.cluster_resources().get("CPU", 0))
        if number < 1:
            raise UserError(f"{self._job}: the Ray cluster has no CPU to run on")
        if self._most is not None:
            number = min(number, self._most)
        self._actors = [self._new() for _ in range(number)]

    def _new(self) -> Any:
        import ray

        remote: Any = ray.remote(
            num_cpus=self._cpus_each, runtime_env={"env_vars": self._variables}
        )(self._actor_class)
        return remote.remote(*self._arguments)

    def _replace(self, number: int, reason: str) -> None:
        import ray

        self._lost += 1
        if self._lost > MOST_LOST:
            raise UserError(
                f"{self._job}: {self._lost} workers were lost, the last one: {reason}; finished "
                "work is saved, so find the cause and run the same command again"
            )
        print(f"\na worker was lost ({reason}); another one does its job")
        ray.kill(self._actors[number])
        self._actors[number] = self._new()


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
