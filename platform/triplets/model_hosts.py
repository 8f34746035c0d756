"""Actors that hold models as long as a run of preprocessing: each loads them once.

Ray Data ends its actors with each wave of shards (:mod:`.listing`), and would load models anew for
the next. So the actors that hold models are the driver's own, and those of Ray Data hand shards on
to them. They end with the run, or with its driver.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

Row = dict[str, Any]

# Shards that are handed on at once: while a model works on one, the next one comes.
_HANDED_ON = 2
# How often a model's process may die while it is loaded first.
_LOADED_AGAIN = 2


class ModelStage(Protocol):
    """The part of :class:`.stage_graph.Stage` that is read here."""

    @property
    def name(self) -> str:
        """Name of the stage."""

    @property
    def work(self) -> Callable[..., Any]:
        """The class that loads the models and then takes rows."""

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Arguments of its constructor."""

    @property
    def cpus(self) -> float:
        """CPUs of one actor."""

    @property
    def gpus(self) -> float:
        """GPUs of one actor."""

    @property
    def actors(self) -> int:
        """The most actors."""


class ModelHosts:
    """The actors of all stages of a run."""

    def __init__(self) -> None:
        self._hosts: dict[str, list[Any]] = defaultdict(list)
        self._held: dict[str, tuple[float, float]] = {}  # CPUs and GPUs of each, by stage
        self._desk: Any = None
        self._waves = itertools.count()

    def start(self, stages: Sequence[ModelStage], cpus: float, gpus: float) -> None:
        """Start the actors that are not there yet, as many as a cluster has room for.

        The first one of each stage is there when this returns, before others are started. Stages
        that are not named or hold other resources now, as when GPUs have joined, lose theirs.

        Args:
            stages: those with actors.
            cpus: that they may hold together.
            gpus: likewise.

        Raises:
            Exception: whatever a model raises that cannot be loaded.
        """
        import ray

        held = {stage.name: (stage.cpus, stage.gpus) for stage in stages}
        for name in [name for name, before in self._held.items() if held.get(name) != before]:
            for host in self._hosts.pop(name):
                ray.kill(host)
        self._held = held
        for number in range(max((stage.actors for stage in stages), default=0)):
            for stage in stages:
                if number and (
                    number >= stage.actors or stage.cpus > cpus + 1e-6 or stage.gpus > gpus + 1e-6
                ):
                    continue
                cpus, gpus = cpus - stage.cpus, gpus - stage.gpus
                if number == len(self._hosts[stage.name]):
                    self._hosts[stage.name].append(_started(stage))
            if number == 0:
                first = [self._hosts[stage.name][0].ready for stage in stages]
                ready = [one.options(max_task_retries=_LOADED_AGAIN).remote() for one in first]
                try:
                    ray.get(ready)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None

    def stage(self, name: str, queued: int | None) -> dict[str, Any]:
        """What Ray Data's ``map`` is given for a stage whose shards go to these actors.

        Args:
            name: of the stage.
            queued: shards at an actor, those included that it works on; None for Ray Data's choice.
        """
        import ray

        hosts = self._hosts[name]
        if self._desk is None and len(hosts) > 1:
            self._desk = ray.remote(Desk).options(num_cpus=0, max_restarts=-1).remote()
        given = {"hosts": hosts, "desk": self._desk, "wave": next(self._waves)}
        return {
            "fn": HandsOn,
            "fn_constructor_kwargs": given,
            "num_cpus": 0,
            "compute": ray.data.ActorPoolStrategy(
                min_size=1,
                initial_size=len(hosts),
                max_size=len(hosts),
                max_tasks_in_flight_per_actor=queued,
                max_concurrent_calls_per_actor=_HANDED_ON,
                enable_true_multi_threading=True,
            ),
        }

    def close(self) -> None:
        """End the actors."""
        if not self._hosts:
            return
        import ray

        for actor in itertools.chain(*self._hosts.values(), [self._desk] if self._desk else []):
            ray.kill(actor)
        self._hosts.clear()
        self._held.clear()
        self._desk = None


class Host:
    """An actor of a stage.

    Args:
        work: a class that loads models.
        arguments: of its constructor.
    """

    def __init__(self, work: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        self._error: Exception | None = None
        try:
            self._work = work(**arguments)
        except Exception as error:  # of what a constructor raises, Ray would hand on a text alone
            self._error = error

    def ready(self) -> None:
        """Answer when the models are loaded, or raise why they cannot be."""
        if self._error is not None:
            raise self._error

    def make(self, row: Row) -> Row:
        """Do the stage's work on a shard."""
        self.ready()
        made: Row = self._work(row)
        return made


class Desk:
    """Numbers actors of Ray Data, which all are given the same arguments."""

    def __init__(self) -> None:
        self._known: dict[int, list[str]] = defaultdict(list)

    def number_of(self, wave: int, actor: str) -> int:
        """The number of an actor in its wave; one that was begun again keeps its own."""
        known = self._known[wave]
        if actor not in known:
            known.append(actor)
        return known.index(actor)


class HandsOn:
    """An actor of Ray Data that hands shards on to one that has the models.

    Args:
        hosts: of its stage, as many as there are of its own kind.
        desk: that says which is its own; None where there is one.
        wave: its number, other than that of another stage.
    """

    def __init__(self, hosts: Sequence[Any], desk: Any, wave: int) -> None:
        import ray

        number = 0
        if desk is not None:
            me = ray.get_runtime_context().get_actor_id()
            number = ray.get(desk.number_of.remote(wave, me))
        self._host = hosts[number % len(hosts)]
        ray.get(self._host.ready.remote())  # it is given no shard before

    def __call__(self, row: Row) -> Row:
        """The row as its stage has made it."""
        import ray

        made: Row = ray.get(self._host.make.remote(row))
        return made


def _started(stage: ModelStage) -> Any:
    import ray

    # Most deaths of workers are not a clip's fault; notes of attempts count the clips that kill.
    actor = ray.remote(Host).options(
        num_cpus=stage.cpus, num_gpus=stage.gpus, max_restarts=-1, max_task_retries=-1
    )
    return actor.remote(stage.work, dict(stage.arguments))
