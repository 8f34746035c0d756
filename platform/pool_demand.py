"""How many workers a pool of actors asks for, and what it says while it waits.

Decisions without Ray: functions of what was seen of the cluster at one moment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_S, EVERY_S = 5.0, 60.0  # until the first line about what is waited for, and between lines

_UNITS = {"CPU": "CPUs", "GPU": "GPUs"}
# Ray reserves a worker's share before anybody can see whose it is.
_TAKEN = "taken by others or starting workers"


@dataclass(frozen=True)
class ClusterView:
    """A cluster at one moment; amounts by Ray's names of resources (CPU, GPU)."""

    total: Mapping[str, float]  # of the machines that are up
    free: Mapping[str, float]
    grows: bool  # whether it was joined, so that machines may be added to it


@dataclass(frozen=True)
class WorkersView:
    """A pool's workers at one moment."""

    answered: int  # that have answered, and so may have jobs
    placed: int  # that have a place on a machine and are starting there
    pending: int  # that the cluster has no room for


def room(total: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many workers fit on a cluster that nobody else uses.

    Args:
        total: resources of the cluster.
        each: what one worker reserves; a worker that reserves nothing always fits once.
    """
    shares = [total.get(name, 0) / amount for name, amount in each.items() if amount > 0]
    # 0.1 + 0.2 is no 0.3: a share that is whole but for rounding is whole.
    return min((math.floor(share + 1e-6) for share in shares), default=1)


def wanted_now(
    jobs: int | None, cluster: ClusterView, each: Mapping[str, float], asked: int | None, most: int
) -> int:
    """Workers that are worth having on the cluster as it is.

    Args:
        jobs: that are left or running; None where nobody knows.
        cluster: as it is now.
        each: what one worker reserves.
        asked: the user's own number of workers, or None.
        most: workers at most.
    """
    number = room(cluster.total, each) if asked is None else asked
    if cluster.grows:
        number = max(number, 1)  # of a machine that is yet to come
    return min(number, most if jobs is None else min(most, jobs))


def to_ask_for(
    wanted: int, jobs: int | None, cluster: ClusterView, asked: int | None, most: int
) -> int:
    """Workers that Ray is asked for: beyond those that fit, they are what an autoscaler sees.

    On a cluster that may grow as many again are asked for as fit now, and no more than there are
    jobs: each machine that comes doubles the demand at most. They cost nothing while they wait.

    Args:
        wanted: of :func:`wanted_now`.
        jobs: that are left or running; None asks for no more than what fits.
        cluster: as it is now.
        asked: the user's own number of workers, or None.
        most: workers at most.
    """
    if asked is not None or jobs is None or not cluster.grows:
        return wanted
    return max(wanted, min(jobs, 2 * wanted, most))


def waiting_line(
    job: str, each: Mapping[str, float], wanted: int, workers: WorkersView, cluster: ClusterView
) -> str | None:
    """One line about what a pool waits for; None where it has all workers that it wants.

    Args:
        job: the job's name, which the line begins with.
        each: what one worker reserves.
        wanted: of :func:`wanted_now`.
        workers: those of the pool.
        cluster: as it is now.
    """
    if workers.answered >= wanted:
        return None
    goes_on = _goes_on(workers.answered)
    if workers.answered + workers.placed >= wanted or not each:
        return f"{job}: waiting for {_counted(workers.placed, 'worker')} to start; {goes_on}"
    ours = workers.answered + workers.placed
    name = min(each, key=lambda one: cluster.total.get(one, 0) / each[one])
    total, need = cluster.total.get(name, 0), wanted * each[name]
    used = max(0.0, total - cluster.free.get(name, 0) - ours * each[name])
    if total < need:
        why = f"the cluster has {total:g}"
        why += f", {used:g} of them {_TAKEN}" if used else ""
        why += "; it is asked for more" if cluster.grows else ""
    elif used:
        why = f"{used:g} of {total:g} {_TAKEN}"
    else:
        why = f"{total:g} in the cluster, none of them free on one machine yet"
    unit = name if need == 1 else _UNITS.get(name, name)
    return f"{job}: waiting for {need:g} {unit}: {why}; {goes_on}"


class Announcer:
    """Says what is waited for: once, then at intervals, and anew after it was over."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._next = 0.0

    def due(self, line: str | None, now_s: float) -> bool:
        """True if a line is to be printed now.

        Args:
            line: of :func:`waiting_line`; None ends the waiting.
            now_s: seconds of any clock that only goes forward.
        """
        if line is None:
            self._since = None
            return False
        if self._since is None:
            self._since, self._next = now_s, now_s + FIRST_S
        if now_s < self._next:
            return False
        self._next = now_s + EVERY_S
        return True


def _goes_on(answered: int) -> str:
    return f"{_counted(answered, 'worker')} at work" if answered else "nothing runs yet"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
