"""Fit what is not fitted, roll out what has not run, on all CPUs of the Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from dynaflip.errors import UserError
from dynaflip.platform.cluster import start_ray
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.encoders_under_test import Encoder
from dynaflip.platform.evaluation.plan import Cell, PolicySpec
from dynaflip.platform.evaluation.worker import (
    WORKER_ENVIRONMENT,
    CellResult,
    Imitated,
    Looked,
    Worker,
)


def run_cells(cells: list[Cell], workers: Workers) -> list[CellResult]:
    """Results of all cells in their order, from the store where they are in it.

    Raises:
        UserError: an encoder does not do what an encoder must, or nothing can be rendered.
    """
    missing = [cell for cell in cells if cache.load_result(cell) is None]
    # Arms of equal weights share their cells.
    distinct = list({cell.digest(): cell for cell in missing}.values())
    print(
        f"{len(cells)} cells (task x condition x seed x arm), "
        f"{len(cells) - len(missing)} of them finished before"
    )
    if distinct:
        fit_missing(distinct, workers)
        _roll_out_missing(distinct, workers)
    results = []
    for cell in cells:
        result = cache.load_result(cell)
        assert result is not None, f"cell {cell.digest()} has just been written"
        results.append(result)
    return results


def imitate(cells: list[Cell], workers: Workers) -> dict[tuple[str, str], Imitated]:
    """Agreement of all cells' policies with the expert: (task, digest of a policy) → it.

    Their policies must be fitted. Those of one task and encoder are held against it together.
    """
    from tqdm import tqdm

    jobs: dict[_Imitation, list[Cell]] = {}
    for cell in cells:
        jobs.setdefault(_Imitation(cell.task, cell.policy.encoder.digest), []).append(cell)
    queues = _Queues(list(jobs))

    def submit(actor: Any, job: _Imitation) -> Any:
        specs = {cell.policy.digest(): cell.policy for cell in jobs[job]}
        fitted = [digest for digest, spec in specs.items() if spec.encoder.folder is not None]
        return actor.imitate.remote(jobs[job], {d: cache.load_policy(d) for d in fitted})

    found: dict[tuple[str, str], Imitated] = {}
    with tqdm(total=len(jobs), desc="imitate", unit="encoder a task") as bar:
        for (task, _), imitated in workers.run(queues.next, submit):
            found |= {(task, digest): imitated for digest in imitated.agreement}
            bar.update()
    return found


def look(
    tasks: tuple[str, ...],
    image_px: int,
    layout_seeds: list[int],
    encoders: list[Encoder],
    workers: Workers,
) -> dict[str, Looked]:
    """Where encoders look, task by task."""
    queue = list(reversed(tasks))
    found = dict(
        workers.run(
            lambda _: queue.pop() if queue else None,
            lambda actor, task: actor.look.remote(task, image_px, layout_seeds, encoders),
        )
    )
    return {task: found[task] for task in tasks}


# Workers that may be lost (killed, out of memory, their machine gone) before a run gives up.
MOST_LOST = 5


class Workers:
    """Actors, one a CPU, that ask for their next job when they are free.

    A context manager; they start when there is something to do.
    """

    def __init__(self) -> None:
        self._actors: list[Any] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def start(self) -> list[Any]:
        """The actors, which are started once.

        Raises:
            UserError: the cluster has no CPU.
        """
        if self._actors:
            return self._actors
        start_ray()
        import ray

        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus < 1:
            raise UserError("evaluate: the Ray cluster has no CPU to run environments with")
        self._actors = [self._new() for _ in range(cpus)]
        return self._actors

    def _new(self) -> Any:
        import ray

        actor: Any = ray.remote(num_cpus=1, runtime_env={"env_vars": WORKER_ENVIRONMENT})(Worker)
        return actor.remote()

    def run(
        self, next_job: Callable[[int], Any], submit: Callable[[Any, Any], Any]
    ) -> Iterator[tuple[Any, Any]]:
        """(job, answer) as they finish. A lost worker is replaced and its job done again.

        Args:
            next_job: number of a free worker → its next job, or None.
            submit: (actor, job) → what Ray promises.

        Raises:
            UserError: a job says what its user must do, or too many workers are lost.
        """
        actors = self.start()
        import ray

        running: dict[Any, tuple[int, Any]] = {}
        lost = 0

        def hand_out(worker: int) -> None:
            job = next_job(worker)
            if job is not None:
                running[submit(actors[worker], job)] = worker, job

        for worker in range(len(actors)):
            hand_out(worker)
        while running:
            [done], _ = ray.wait(list(running))
            worker, job = running.pop(done)
            try:
                answer = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from None
                raise
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                lost += 1
                reason = str(error).splitlines()[0]
                if lost > MOST_LOST:
                    raise UserError(
                        f"evaluate: {lost} workers were lost, the last one: {reason}; what is "
                        f"finished is kept, so find out why and run the same again"
                    ) from None
                print(f"\na worker was lost ({reason}); another one does its job")
                ray.kill(actors[worker])
                actors[worker] = self._new()
                running[submit(actors[worker], job)] = worker, job
                continue
            yield job, answer
            hand_out(worker)


def fit_missing(cells: list[Cell], workers: Workers) -> None:
    """Fit the policies of these cells, those of one encoder and task together."""
    from tqdm import tqdm

    groups: dict[tuple[str, ...], dict[str, PolicySpec]] = {}
    for cell in cells:
        spec = cell.policy
        if spec.encoder.folder is None or cache.has_policy(spec):
            continue
        key = (spec.encoder.digest, *(d.digest for d in spec.demonstrations))
        groups.setdefault(key, {})[spec.digest()] = spec
    jobs = [list(specs.values()) for specs in groups.values()]
    if not jobs:
        return
    with tqdm(total=sum(map(len, jobs)), desc="fit", unit="policy") as bar:
        queue = list(reversed(jobs))
        for specs, fitted in workers.run(
            lambda _: queue.pop() if queue else None,
            lambda actor, specs: actor.fit.remote(specs),
        ):
            for digest, weights in fitted.items():
                cache.save_policy(digest, weights)
            bar.update(len(specs))


def _roll_out_missing(cells: list[Cell], workers: Workers) -> None:
    from tqdm import tqdm

    queues = _Queues(cells)
    began, steps = time.monotonic(), 0

    def submit(actor: Any, cell: Cell) -> Any:
        spec = cell.policy
        weights = None if spec.encoder.folder is None else cache.load_policy(spec.digest())
        return actor.roll_out.remote(cell, weights)

    with tqdm(total=len(cells), desc="roll out", unit="cell") as bar:
        for cell, result in workers.run(queues.next, submit):
            cache.save_result(cell, result)
            steps += sum(result.steps)
            bar.set_postfix_str(
                f"{steps / (time.monotonic() - began):.0f} steps/s, last {cell.task} "
                f"{cell.condition.name} {cell.arm}: {sum(result.success_ever)}/{len(result.steps)}"
            )
            bar.update()


class _Imitation(NamedTuple):
    """Policies on one encoder that are held against the expert in one task."""

    task: str
    encoder_digest: str


_Job = TypeVar("_Job", Cell, _Imitation)


class _Queues(Generic[_Job]):
    """Hands out jobs so that a worker stays with a task, whose scenes it has loaded."""

    def __init__(self, jobs: list[_Job]) -> None:
        self._left: dict[str, list[_Job]] = {}
        for job in reversed(jobs):
            self._left.setdefault(job.task, []).append(job)
        self._task: dict[int, str] = {}

    def next(self, worker: int) -> _Job | None:
        task = self._task.get(worker, "")
        if not self._left.get(task):
            left = {name: len(jobs) for name, jobs in self._left.items() if jobs}
            if not left:
                return None
            busy = list(self._task.values())
            task = max(left, key=lambda name: left[name] / (1 + busy.count(name)))
            self._task[worker] = task
        return self._left[task].pop()
