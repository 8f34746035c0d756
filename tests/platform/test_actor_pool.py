"""The pool of actors: one that is lost takes nothing with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dynaflip.errors import UserError
from dynaflip.platform.actor_pool import MOST_ENDED, MOST_LOST, ActorPool
from dynaflip.platform.job_queues import JobQueue, TaskQueue


def plain_class() -> type:
    """An actor's class without methods of its own; local, because workers import no tests."""

    class Plain:
        pass

    return Plain


def squares(folder: Path, deaths: int, *, raised: int | None = None) -> dict[int, int]:
    """Squares of 1 to 4 from actors, of which the one with 2 is killed so many times."""

    def square(_: Any, number: int) -> int:
        before = len(list(folder.iterdir()))
        if number == raised:
            raise UserError(f"no square of {number}")
        if number == 2 and before < deaths:
            (folder / str(before)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2

    with ActorPool(plain_class(), job="square") as pool:
        queue = JobQueue([1, 2, 3, 4])
        return dict(
            pool.run(
                queue.next,
                lambda actor, number: actor.__ray_call__.remote(square, number),
                describe=lambda number: f"number {number}",
            )
        )


@pytest.mark.ray
def test_the_job_of_a_lost_actor_is_done_again(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture
) -> None:
    assert squares(tmp_path, deaths=1) == {1: 1, 2: 4, 3: 9, 4: 16}
    assert capsys.readouterr().out.count("a worker was lost") == 1


@pytest.mark.ray
@pytest.mark.integration
def test_a_job_that_kills_every_actor_or_raises_ends_in_one_line(
    tmp_path: Path, ray_cluster: None
) -> None:
    aside = (
        r"square: 1 job was set aside, each of which ended 3 workers: number 2; all others are done"
    )
    with pytest.raises(UserError, match=aside) as error:
        squares(tmp_path, deaths=1000)
    assert "\n" not in str(error.value)
    assert len(list(tmp_path.iterdir())) == MOST_ENDED
    with pytest.raises(UserError, match=r"^no square of 3$"):
        squares(tmp_path, deaths=0, raised=3)


@pytest.mark.ray
def test_an_actor_that_the_cluster_has_no_room_for_holds_no_job_back(ray_cluster: None) -> None:
    import ray

    other: Any = ray.remote(num_cpus=1)(plain_class())
    occupied = other.remote()
    ray.get(occupied.__ray_ready__.remote())
    done: dict[int, int] = {}

    def double() -> None:
        with ActorPool(plain_class(), job="double") as pool:
            queue = JobQueue([1, 2, 3])
            results = pool.run(
                queue.next, lambda actor, n: actor.__ray_call__.remote(lambda _, n: 2 * n, n)
            )
            done.update(results)

    thread = threading.Thread(target=double, daemon=True)
    thread.start()
    thread.join(60)
    ray.kill(occupied)
    assert done == {1: 2, 2: 4, 3: 6}


@pytest.mark.ray
def test_what_a_cluster_that_cannot_grow_lacks_is_refused_and_not_waited_for(
    ray_cluster: None,
) -> None:
    with (
        ActorPool(plain_class(), job="fit", gpus_each=0.5) as pool,
        pytest.raises(UserError, match=r"^fit: the Ray cluster has no GPU to run on$"),
    ):
        list(pool.run(JobQueue([1]).next, lambda actor, _: actor.__ray_ready__.remote()))


@dataclass(frozen=True)
class Job:
    task: str
    number: int


def test_an_actor_stays_with_a_task_and_free_ones_take_the_longest_queue() -> None:
    queue = TaskQueue([Job("a", 1), Job("b", 1), Job("a", 2), Job("b", 2), Job("b", 3)])
    first, second = queue.next(0), queue.next(1)
    assert (first, second) == (Job("b", 1), Job("a", 1))
    assert [queue.next(1), queue.next(0), queue.next(1)] == [Job("a", 2), Job("b", 2), Job("b", 3)]
    assert queue.next(0) is None


# Ray's memory monitor sees every machine as full here, and kills actors until one answers; none
# does, so that it is no matter of time whether one is killed before it has a job or in it.
FULL_MACHINE = """
import time

import ray

from dynaflip.errors import UserError
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.job_queues import JobQueue

class Large:
    def __init__(self):
        time.sleep(1000)

full = {"memory_usage_threshold": 0.001, "memory_monitor_refresh_ms": 100}
ray.init(num_cpus=1, address="local", include_dashboard=False, _system_config=full)
with ActorPool(Large, job="evaluate") as pool:
    try:
        list(pool.run(
            JobQueue([0]).next,
            lambda actor, _: actor.__ray_call__.remote(lambda _: None),
        ))
    except UserError as error:
        print("refused:", error)
"""


@pytest.mark.ray
@pytest.mark.integration
def test_actors_that_memory_does_not_suffice_for_end_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_MACHINE], capture_output=True, text=True, timeout=240
    )
    refused = "refused: evaluate: 6 workers were lost in a row, the last one: "
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(refused)] or [""]
    assert "low on memory" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert line.endswith("so find the cause and run the same command again")
    assert done.stdout.count("a worker was lost") == MOST_LOST + 1
