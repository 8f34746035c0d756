"""A pretraining on two nodes of which one is drained, as for a preemption; run by test_faults.py.

It has a cluster of its own, so it is a program of its own. Prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from dynaflip.platform.cluster import prepare_environment, start_ray
from dynaflip.platform.paths import runs
from dynaflip.platform.training.curve_file import CurveFile

DRAINED_AT, STEPS_AFTER = 12, 10
NOTICE_S = 45  # many steps even of a busy machine


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
    from test_training_chaos import config_of

    from dynaflip.platform.training.run import pretrain

    config = config_of(Path(triplets))
    train = dataclasses.replace(
        config.train,
        steps=100_000,  # it is told to end when it has gone on for a while
        checkpoint_every_steps=100_000,  # there is none but that of the notice
        num_workers=2,
        min_workers=1,
        cpus_per_worker=2.0,
        max_failures=0,  # a preemption is none
        grace_s=120,
    )
    config = dataclasses.replace(config, train=train)
    taken_at = 0

    def wait_for(step: int, workers: int) -> None:
        while reached() < step or workers_of(log_lines())[-1:] != [workers]:
            time.sleep(0.1)

    def drain() -> None:
        nonlocal taken_at
        wait_for(DRAINED_AT, workers=2)
        words = [str(Path(sys.executable).with_name("ray")), "drain-node"]
        words += ["--address", cluster.address, "--node-id", second.node_id]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--deadline-remaining-seconds", str(NOTICE_S)]
        subprocess.run(words, check=True)
        time.sleep(NOTICE_S + 1)
        cluster.remove_node(second, allow_graceful=False)
        taken_at = reached()
        wait_for(taken_at + STEPS_AFTER, workers=1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=drain, daemon=True).start()
    with contextlib.suppress(SystemExit):
        pretrain(config)
    (folder,) = runs().iterdir()
    log = log_lines()
    result = {
        "steps": [step for step, _ in CurveFile(folder).curves()["train/loss"]],
        "taken_at": taken_at,
        "workers": workers_of(log),
        "noted": numbers_of(r"step (\d+): a machine will be taken away", log),
        "checkpoints": numbers_of(r"step-0*(\d+)", sorted(os.listdir(folder / "checkpoints"))),
    }
    print("FOUND " + json.dumps(result))


def log_lines() -> list[str]:
    """Of the run's log so far."""
    return [line for path in runs().glob("*/progress.log") for line in path.read_text().split("\n")]


def workers_of(log: list[str]) -> list[int]:
    """How many workers each start of the run had, by its first line."""
    return numbers_of(r"device .*, (\d+) worker\(s\)", log)


def numbers_of(pattern: str, lines: list[str]) -> list[int]:
    """The number in each line that begins as the pattern has it."""
    return [int(found[1]) for line in lines if (found := re.match(pattern, line))]


if __name__ == "__main__":
    main(sys.argv[1])
