"""Pools of actors on a cluster that others use too, that grows and that loses a machine.

Run by test_shared_cluster.py as a program of its own, because the cluster is its own. Prints one
line of JSON for each of its parts.
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
from dynaflip.platform.cluster import prepare_environment, start_ray
from dynaflip.platform.job_queues import JobQueue

SMALL = {"object_store_memory": 100_000_000}
# Lines about what is waited for come within the test's seconds.
dynaflip.platform.pool_demand.FIRST_S = 1.5


class Sleeper:
    """An actor; the first to be made where a path is given never starts."""

    def __init__(self, never: str = "") -> None:
        if never:
            with contextlib.suppress(FileExistsError):
                Path(never).touch(exist_ok=False)
                time.sleep(1000)

    def nap(self, seconds: float) -> str:
        """Sleep; the id of the machine."""
        import ray

        time.sleep(seconds)
        return str(ray.get_runtime_context().get_node_id())


def run(number: int, seconds: float, *arguments: str, done: Callable[[int], None] = id) -> dict:
    """Jobs that sleep: on which machines they were done, what was said, and how it ended."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), ActorPool(Sleeper, *arguments, job="evaluate") as pool:
        nodes = []
        queue = JobQueue(list(range(number)))
        results = pool.run(queue.next, lambda actor, _: actor.nap.remote(seconds), number=number)
        for _, node in results:
            nodes.append(node)
            done(len(nodes))
        state = pool.state()
    return {"nodes": nodes, "said": said.getvalue().splitlines(), "lost": state.lost}


def pending_demand() -> int:
    """Actors that wait for room, as the autoscaler is told of them."""
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import GetClusterResourceStateReply

    state = GetClusterResourceStateReply.FromString(
        GcsClient(ray.get_runtime_context().gcs_address).get_cluster_resource_state(30)
    ).cluster_resource_state
    return sum(request.count for request in state.pending_resource_requests)


def main(folder: str) -> None:
    """All parts in turn, on one cluster."""
    prepare_environment()
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
    ray.get(occupied.nap.remote(0))
    demand = []
    found = run(4, 1.0, done=lambda _: demand.append(pending_demand()))
    report("busy", found | {"demand": max(demand)})
    ray.kill(occupied)

    report("never", run(4, 1.0, str(Path(folder) / "never")))

    joined: list[Any] = []

    def join(number: int) -> None:
        if number == 2:
            joined.append(cluster.add_node(num_cpus=1, **SMALL))

    found = run(24, 0.5, done=join)
    report("joined", found | {"node": joined[0].node_id})

    def leave(number: int) -> None:
        if number == 4:
            lose = cluster.remove_node
            threading.Thread(target=lose, args=(joined[0], False), daemon=True).start()

    report("left", run(24, 0.5, done=leave))
    ray.shutdown()
    cluster.shutdown()


def report(part: str, found: dict) -> None:
    """Print what a part has found."""
    print(f"FOUND {json.dumps({part: found})}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
