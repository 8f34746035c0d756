"""A pretraining on two nodes of which one is drained, as for a preemption; run by test_faults.py.

It has a cluster of its own, so it is a program of its own. Prints one line of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from dynaflip.platform.cluster import prepare_environment, start_ray
from dynaflip.platform.paths import runs

STEPS, DRAINED_AT, NOTICE_S = 60, 12, 45  # seconds: many steps even of a busy machine


def main(triplets: str) -> None:
    """Train on ``triplets`` and drain a node on the way."""
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "8"
    prepare_environment()
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
    os.environ["RAY_ADDRESS"] = cluster.address
    start_ray()
    from elastic_run import reached
    from killed_workers import curves_and_points
    from test_training_chaos import config_of

    from dynaflip.platform.training.run import pretrain

    config = config_of(Path(triplets))
    train = dataclasses.replace(
        config.train,
        steps=STEPS,
        checkpoint_every_steps=1000,  # there is none but that of the notice
        num_workers=2,
        min_workers=1,
        cpus_per_worker=2.0,
        max_failures=0,  # a preemption is none
    )
    config = dataclasses.replace(config, train=train)

    def drain() -> None:
        while reached() < DRAINED_AT:
            time.sleep(0.05)
        words = [str(Path(sys.executable).with_name("ray")), "drain-node"]
        words += ["--address", cluster.address, "--node-id", second.node_id]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--deadline-remaining-seconds", str(NOTICE_S)]
        subprocess.run(words, check=True)
        time.sleep(NOTICE_S + 1)
        cluster.remove_node(second, allow_graceful=False)

    threading.Thread(target=drain, daemon=True).start()
    outcome = pretrain(config)
    curves, points = curves_and_points(outcome.run_id)
    folder = runs() / outcome.run_name
    last = json.loads((sorted((folder / "checkpoints").iterdir())[-1] / "state.json").read_text())
    log = (folder / "progress.log").read_text().splitlines()
    result = {
        "steps": points["train/loss"],
        "losses": [value for _, value in curves["train/contrastive"]],
        "workers_at_the_end": last["workers"],
        "noted": [line for line in log if "will be taken away" in line],
    }
    print("FOUND " + json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
