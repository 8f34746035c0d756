"""The one pool of Ray actors: actors that ask for their next job when they are free.

Collecting, evaluating, rendering and scoring a sweep's trials all run their jobs here. On a
cluster that is shared, grows or loses machines:

- a job is handed only to an actor that has answered;
- what is waited for is said, once and then at intervals, while the actors that there are work;
- actors start on machines that join, and their demand is what an autoscaler sees;
- an actor that is lost is replaced and its job is done again. A job that has ended several actors
  is named and set aside, and the others are done first.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from dynaflip.errors import UserError
from dynaflip.platform.cluster import await_causes_of_death, joins_cluster, start_ray
from dynaflip.platform.pool_demand import (
    Announcer,
    ClusterView,
    WorkersView,
    to_ask_for,
    waiting_line,
    wanted_now,
)

# Actors that may be lost in a row, with no job finished in between, before a run gives up.
MOST_LOST = 5
# Actors that one job may end before it is set aside.
MOST_ENDED = 3
_LOOK_S = 1.0  # between two looks at the cluster
_ANY_NUMBER = 10**9


class PoolState(NamedTuple):
    """A pool's actors, counted."""

    busy: int
    idle: int
    starting: int  # or waiting for room
    lost: int  # since the pool was opened

    def words(self) -> str:
        """Such as ``2 busy, 1 starting, 1 lost``; what there is none of is left out."""
        named = {"busy": self.busy, "idle": self.idle, "starting": self.starting, "lost": self.lost}
        return ", ".join(f"{number} {name}" for name, number in named.items() if number) or "none"


@dataclass
class _Member:
    """An actor of the pool."""

    actor: Any
    node: str | None = None  # where it answered from
    waits_for: Any = None  # reference of its job's result, or of its first answer
    job: Any = None


class ActorPool:
    """Actors of one class, one per CPU of the cluster.

    A context manager: the actors start with the first job and are killed at its end.

    Args:
        actor_class: a plain class; each actor is one object of it.
        *arguments: of its constructor.
        job: the job's name, which errors begin with (``evaluate``).
        most: actors at most; None = as many as the cluster has room for.
        asked: actors that the user has asked for, whether or not the cluster has room for them
            now; None leaves it to the cluster.
        cpus_each: CPUs that Ray reserves for an actor; 0 where the caller's own are used.
        gpus_each: GPUs, or share of one, that Ray reserves for an actor.
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
        asked: int | None = None,
        cpus_each: float = 1,
        gpus_each: float = 0,
        start_cpus: int | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._actor_class, self._arguments = actor_class, arguments
        self._job, self._asked = job, asked
        self._most = _ANY_NUMBER if most is None else most
        self._each = {"CPU": cpus_each, "GPU": gpus_each}
        self._each = {name: amount for name, amount in self._each.items() if amount > 0}
        self._start_cpus = start_cpus
        self._variables = dict(variables or {})
        self._members: dict[int, _Member] = {}
        self._announcer, self._looked = Announcer(), 0.0
        self._lost = self._in_row = 0

    def __enter__(self) -> ActorPool:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._members:
            import ray

            for member in self._members.values():
                ray.kill(member.actor)
            self._members = {}

    def state(self) -> PoolState:
        """Numbers of actors that work, wait, start and were lost."""
        members = self._members.values()
        busy = sum(member.job is not None for member in members)
        starting = sum(member.node is None for member in members)
        return PoolState(busy, len(members) - busy - starting, starting, self._lost)

    def run(
        self,
        next_job: Callable[[int], Any],
        submit: Callable[[Any, Any], Any],
        *,
        number: int | None = None,
        describe: Callable[[Any], str] = str,
    ) -> Iterator[tuple[Any, Any]]:
        """Run jobs until there are none left; yields (job, result) as they finish.

        Args:
            next_job: number of a free actor → its next job, or None where there is none.
            submit: (actor, job) → the reference of the job's result.
            number: how many jobs there are, where it is known: no more actors are started.
            describe: a job in a few words, for the error that names one.

        Raises:
            UserError: the cluster has no CPU, a job raised it, too many actors were lost, or
                jobs were set aside; these are raised when all others are done.
        """
        jobs = _Jobs(next_job, number)
        self._open()
        import ray

        self._in_row = 0
        for member in self._members.values():  # of an earlier run: are they still there?
            _greet(member)
        while jobs.running or jobs.left():
            self._look(jobs)
            waiting = {m.waits_for: n for n, m in self._members.items() if m.waits_for is not None}
            done, _ = ray.wait(list(waiting), timeout=_LOOK_S) if waiting else ([], [])
            if not waiting:
                time.sleep(_LOOK_S)
            for reference in done:
                worker = waiting[reference]
                finished = self._receive(worker, reference, jobs)
                # Before its result is read: nobody waits while the caller saves it.
                for free, member in self._members.items():
                    self._hand_out(free, member, jobs, submit)
                if finished is not None:
                    self._in_row = 0
                    yield finished
        if jobs.aside:
            raise UserError(_set_aside(self._job, jobs, describe))

    def _receive(self, worker: int, reference: Any, jobs: _Jobs) -> tuple[Any, Any] | None:
        """What an actor has answered: its job with the result, or None."""
        import ray

        member, job = self._members[worker], self._members[worker].job
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        except _lost_errors() as error:
            self._replace(worker, error, jobs)
            return None
        member.job = member.waits_for = None
        if job is None:
            member.node = result
            return None
        jobs.running -= 1
        return job, result

    def _hand_out(
        self, worker: int, member: _Member, jobs: _Jobs, submit: Callable[[Any, Any], Any]
    ) -> None:
        """Give an actor that has answered and is free its next job, if there is one."""
        if member.node is None or member.waits_for is not None:
            return
        job = jobs.take(worker)
        if job is not None:
            member.job, member.waits_for = job, submit(member.actor, job)
            jobs.running += 1

    def _open(self) -> None:
        await_causes_of_death()
        start_ray(self._start_cpus)
        import ray

        if not joins_cluster():  # else machines may be added
            total = ray.cluster_resources()
            for name, amount in {"CPU": 1.0, **self._each}.items():
                if total.get(name, 0) < amount:
                    has = f"{total[name]:g} {name}" if total.get(name) else f"no {name}"
                    raise UserError(f"{self._job}: the Ray cluster has {has} to run on")
        self._looked = 0.0

    def _look(self, jobs: _Jobs) -> None:
        """Look at the cluster: start the actors that it has room for, and say what is missing."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        cluster = _view_cluster()
        outstanding = jobs.outstanding()
        wanted = wanted_now(outstanding, cluster, self._each, self._asked, self._most)
        asked_for = to_ask_for(wanted, outstanding, cluster, self._asked, self._most)
        for _ in range(asked_for - len(self._members)):
            self._members[len(self._members)] = self._new()
        starting = [m for m in self._members.values() if m.node is None]
        if len(self._members) - len(starting) >= wanted:
            self._announcer.due(None, now)
            return
        placed = sum(is_placed(member.actor) for member in starting)
        workers = WorkersView(len(self._members) - len(starting), placed, len(starting) - placed)
        line = waiting_line(self._job, self._each, wanted, workers, cluster)
        if self._announcer.due(line, now):
            _print(str(line))

    def _new(self) -> _Member:
        import ray

        remote: Any = ray.remote(
            num_cpus=self._each.get("CPU", 0),
            num_gpus=self._each.get("GPU", 0),
            runtime_env={"env_vars": self._variables},
        )(self._actor_class)
        member = _Member(remote.remote(*self._arguments))
        _greet(member)
        return member

    def _replace(self, worker: int, error: Exception, jobs: _Jobs) -> None:
        import ray

        member = self._members[worker]
        reason, machine_gone = _first_line(error), _machine_is_gone(error, member.node)
        self._lost += 1
        self._in_row += not machine_gone
        ray.kill(member.actor)
        self._members[worker] = self._new()
        what = "another one is started"
        if member.job is not None:
            jobs.running -= 1
            again = jobs.give_back(member.job, ended_it=not machine_gone)
            what = "another one does its job" if again else "its job is set aside"
        if machine_gone:
            reason = f"its machine is gone: {reason}"
        _print(f"a worker was lost ({reason}); {what}")
        if self._in_row > MOST_LOST:
            raise UserError(
                f"{self._job}: {self._in_row} workers were lost in a row, the last one: {reason}; "
                "finished work is saved, so find the cause and run the same command again"
            )


class _Jobs:
    """The jobs of a run: those to come, those to do again, and those set aside."""

    def __init__(self, next_job: Callable[[int], Any], number: int | None) -> None:
        self._next_job, self._number = next_job, number
        self._again: list[Any] = []
        self._exhausted = False
        self._handed_out = 0
        self._ended: Counter[int] = Counter()  # id of a job → actors that it has ended
        self.running = 0
        self.aside: list[Any] = []

    def left(self) -> bool:
        return bool(self._again) or not (self._exhausted or self._handed_out == self._number)

    def outstanding(self) -> int | None:
        """Jobs that are running, to come or to do again; None where nobody knows."""
        if self._exhausted:
            return self.running + len(self._again)
        return (
            None
            if self._number is None
            else self._number - self._handed_out + self.running + len(self._again)
        )

    def take(self, worker: int) -> Any:
        if self._again:
            return self._again.pop(0)
        job = None if self._exhausted else self._next_job(worker)
        self._exhausted |= job is None
        self._handed_out += job is not None
        return job

    def give_back(self, job: Any, *, ended_it: bool) -> bool:
        """Have a lost actor's job done again, unless it has ended too many; whether it is."""
        self._ended[id(job)] += ended_it
        if self._ended[id(job)] >= MOST_ENDED:
            self.aside.append(job)
            return False
        self._again.append(job)
        return True


def _set_aside(name: str, jobs: _Jobs, describe: Callable[[Any], str]) -> str:
    shown = "; ".join(describe(job) for job in jobs.aside[:3])
    more = f" and {len(jobs.aside) - 3} more" if len(jobs.aside) > 3 else ""
    count = "1 job was" if len(jobs.aside) == 1 else f"{len(jobs.aside)} jobs were"
    return (
        f"{name}: {count} set aside, each of which ended {MOST_ENDED} workers: {shown}{more}; all "
        "others are done and saved, so find the cause (memory, most often) and run the same "
        "command again"
    )


def _greet(member: _Member) -> None:
    """Have an actor say that it is there, and where; until then it gets no job."""
    member.node, member.job = None, None
    member.waits_for = member.actor.__ray_call__.remote(_own_node)


def _own_node(_: Any) -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def _view_cluster() -> ClusterView:
    import ray

    return ClusterView(ray.cluster_resources(), ray.available_resources(), joins_cluster())


def is_placed(actor: Any) -> bool:
    """True if an actor that has not answered has a machine, and is starting there."""
    from ray._private.state import state  # Ray's public State API needs a dashboard

    return bool(state.actor_table(actor._actor_id.hex()).get("Pid"))


def _lost_errors() -> tuple[type[Exception], ...]:
    """Ray's errors that say that an actor, its machine or its result is gone."""
    from ray import exceptions as ray_errors

    return (
        ray_errors.RayActorError,
        ray_errors.OutOfMemoryError,
        ray_errors.NodeDiedError,
        ray_errors.ObjectLostError,
        ray_errors.RuntimeEnvSetupError,
    )


def _machine_is_gone(error: Exception, node: str | None) -> bool:
    """True if an actor was lost with its machine, which is no fault of its job."""
    import ray

    words = str(error)
    if any(said in words for said in ("node has died", "node was terminated", "node died")):
        return True
    return node is not None and not any(n["NodeID"] == node and n["Alive"] for n in ray.nodes())


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _print(line: str) -> None:
    """Print a line above a progress bar, if there is one."""
    from tqdm import tqdm

    tqdm.write(line)
