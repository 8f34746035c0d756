"""Pools of actors on a cluster that others use too, that grows and that loses a machine.

Run by test_shared_cluster.py as a program of its own, because the cluster is its own. Prints one
line of JSON for each of its parts. Nothing here is a matter of time: jobs of a part end when what
the part is about has come to pass, however slow the machine is.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dynaflip.platform.pool_demand
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.cluster import await_causes_of_death, prepare_environment, start_ray
from dynaflip.platform.job_queues import JobQueue

SMALL = {"object_store_memory": 100_000_000}
# Lines that the tests wait for.
BUSY = "evaluate: waiting for 2 CPUs: 1 of 2 taken by others or starting workers; 1 worker at work"
NEVER = "evaluate: waiting for 1 worker to start; 1 worker at work"
GIVE_UP_S = 120.0  # until a part goes on without what it waits for, and its test fails


class Sleeper:
    """An actor; the first to be made where a path is given never starts."""

    def __init__(self, never: str = "") -> None:
        if never:
            with contextlib.suppress(FileExistsError):
                Path(never).touch(exist_ok=False)
                time.sleep(1000)

    def nap(self, until: str = "") -> str:
        """Sleep until there is a file, and say so in another; the id of the machine."""
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        if until:
            Path(f"{until}.{node}").touch()
        while until and not Path(until).exists():
            time.sleep(0.05)
        return node


class Part:
    """A run of jobs that end when a condition has come to pass.

    Args:
        folder: for the files by which the jobs and this process tell each other.
        passed: this object → whether it has; asked again and again.
    """

    def __init__(self, folder: Path, passed: Callable[[Part], bool]) -> None:
        self._passed = passed
        self._go = folder / f"go-{time.monotonic_ns()}"
        self._said = io.StringIO()

    def said(self) -> list[str]:
        """Lines that were printed until now."""
        return self._said.getvalue().splitlines()

    def works_on(self, node: str) -> bool:
        """Whether a job has begun on a machine."""
        return Path(f"{self._go}.{node}").exists()

    def run(self, number: int, *arguments: str) -> dict:
        """On which machines jobs were done, what was said, and how many actors were lost."""
        found: dict[str, Any] = {}

        def run() -> None:
            with ActorPool(Sleeper, *arguments, job="evaluate") as pool:
                queue, go = JobQueue(list(range(number))), str(self._go)
                results = pool.run(queue.next, lambda actor, _: actor.nap.remote(go), number=number)
                found["nodes"] = [node for _, node in results]
                found["lost"] = pool.state().lost

        # Here is the watch, because Ray adds machines in the main thread alone.
        pool_thread = threading.Thread(target=run, daemon=True)
        with contextlib.redirect_stdout(self._said):
            pool_thread.start()
            until = time.monotonic() + GIVE_UP_S
            while time.monotonic() < until and not self._passed(self):
                time.sleep(0.05)
            self._go.touch()
            pool_thread.join(GIVE_UP_S)
        return {**found, "said": self.said()}


def pending_demand() -> int:
    """Actors that wait for room, as the autoscaler is told of them."""
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import GetClusterResourceStateReply

    state = GetClusterResourceStateReply.FromString(
        GcsClient(ray.get_runtime_context().gcs_address).get_cluster_resource_state(30)
    ).cluster_resource_state
    return sum(request.count for request in state.pending_resource_requests)


def main(folder: Path) -> None:
    """All parts in turn, on one cluster."""
    prepare_environment()
    await_causes_of_death()
    # What is waited for is said at once and again, as it changes.
    dynaflip.platform.pool_demand.FIRST_S = 0.0
    dynaflip.platform.pool_demand.EVERY_S = 0.5
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False, **SMALL}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    os.environ["RAY_ADDRESS"] = cluster.address
    start_ray()
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    other: Any = ray.remote(num_cpus=1)(Sleeper)
    occupied = other.remote()
    ray.get(occupied.nap.remote())
    demand: list[int] = []

    def busy(part: Part) -> bool:
        demand.append(pending_demand())
        return demand[-1] == 3 and BUSY in part.said()

    report("busy", Part(folder, busy).run(4) | {"demand": demand[-1]})
    ray.kill(occupied)

    never = Part(folder, lambda part: NEVER in part.said())
    report("never", never.run(4, str(folder / "never")))

    second: list[Any] = []

    def joined(part: Part) -> bool:
        if not second:
            second.append(cluster.add_node(num_cpus=1, **SMALL))
        return part.works_on(second[0].node_id)

    report("joined", Part(folder, joined).run(6) | {"node": second[0].node_id})

    def left(part: Part) -> bool:
        if part.works_on(second[0].node_id) and second[0] in cluster.worker_nodes:
            cluster.remove_node(second[0], allow_graceful=False)
        return any("a worker was lost" in line for line in part.said())

    report("left", Part(folder, left).run(6))
    ray.shutdown()
    cluster.shutdown()


def report(part: str, found: dict) -> None:
    """Print what a part has found."""
    print(f"FOUND {json.dumps({part: found})}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
