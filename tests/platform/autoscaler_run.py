"""An evaluation's pool on a head without CPUs, whose autoscaler adds a machine for it.

Run by test_autoscaler.py as a program of its own, because the cluster is its own. Ray's autoscaler
itself decides; the machines that it adds are processes of this one (Ray's fake provider). Prints
one line of JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import dynaflip.platform.pool_demand
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.cluster import free_port, prepare_environment, start_ray
from dynaflip.platform.job_queues import JobQueue

SMALL = {"object_store_memory": 100_000_000}
MACHINE = {"resources": {"CPU": 1, **SMALL}, "node_config": {}, "min_workers": 0, "max_workers": 1}
AUTOSCALER: dict[str, Any] = {
    "cluster_name": "fake",
    "max_workers": 1,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_launch_config_check": True,
        "disable_node_updaters": True,
        "foreground_node_launch": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "machine": MACHINE,
    },
    "head_node_type": "ray.head.default",
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
}


class Squarer:
    """An actor of the pool."""

    def square(self, number: int) -> tuple[int, str]:
        """The square, and the id of the machine."""
        import ray

        return number**2, str(ray.get_runtime_context().get_node_id())


def main(folder: Path) -> None:
    """Run jobs that no machine has room for at first."""
    prepare_environment()
    os.environ |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    dynaflip.platform.pool_demand.FIRST_S = 0.0
    from ray.cluster_utils import Cluster
    from ray.util import get_node_ip_address

    port, settings = free_port(), folder / "autoscaler.json"
    AUTOSCALER["provider"]["gcs_address"] = f"{get_node_ip_address()}:{port}"
    settings.write_text(json.dumps(AUTOSCALER))
    head = {"num_cpus": 0, "gcs_server_port": port, "autoscaling_config": str(settings)}
    cluster = Cluster(True, head_node_args={**head, "include_dashboard": False, **SMALL})
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        start_ray()
        import ray
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        before = ray.cluster_resources().get("CPU", 0)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), ActorPool(Squarer, job="evaluate") as pool:
            queue = JobQueue([1, 2, 3, 4])
            results = pool.run(
                queue.next, lambda actor, number: actor.square.remote(number), number=4
            )
            done = dict(results)
        found = {
            "before": before,
            "after": ray.cluster_resources().get("CPU", 0),
            "squares": {number: square for number, (square, _) in done.items()},
            "nodes": sorted({node for _, node in done.values()}),
            "head": cluster.head_node.node_id,
            "said": said.getvalue().splitlines(),
        }
        print(f"FOUND {json.dumps(found)}", flush=True)
        ray.shutdown()
    finally:
        import psutil  # Ray brings it

        # The machine that was added is the autoscaler's child, and would outlive it.
        children = psutil.Process().children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
