"""A pretraining on two nodes of which one is lost half-way; run by test_elastic.py.

It has a cluster of its own, so it is a program of its own. Prints one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

from dynaflip.platform.cluster import prepare_environment, start_ray
from dynaflip.platform.paths import runs

STEPS, LOST_AT = 40, 12


def main(triplets: str) -> None:
    """Train on ``triplets`` and lose a node on the way."""
    # How long Train waits for the lost machine before it goes on with fewer workers.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "8"
    prepare_environment()
    from ray.cluster_utils import Cluster

    # A worker takes 2 CPUs: no node has room for two.
    head = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    os.environ["RAY_ADDRESS"] = cluster.address
    start_ray()
    from killed_workers import curves_and_points
    from test_training_chaos import config_of

    from dynaflip.platform.training.run import pretrain

    config = config_of(Path(triplets))
    train = dataclasses.replace(
        config.train, steps=STEPS, num_workers=2, min_workers=1, cpus_per_worker=2.0
    )
    config = dataclasses.replace(config, train=train)

    def lose() -> None:
        while reached() < LOST_AT:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)

    threading.Thread(target=lose, daemon=True).start()
    outcome = pretrain(config)
    curves, points = curves_and_points(outcome.run_id)
    folder = runs() / outcome.run_name / "checkpoints"
    last = json.loads((sorted(folder.iterdir())[-1] / "state.json").read_text())
    result = {
        "steps": points["train/loss"],
        "losses": [value for _, value in curves["train/contrastive"]],
        "workers_at_the_end": last["workers"],
    }
    print("FOUND " + json.dumps(result))


def reached() -> int:
    """The last step in the run's log."""
    logs = sorted(runs().glob("*/progress.log"))
    lines = logs[-1].read_text().splitlines() if logs else []
    return max((int(m[1]) for line in lines if (m := re.match(r"step +(\d+)/", line))), default=0)


if __name__ == "__main__":
    main(sys.argv[1])
