"""Does a training wait for a bucket? The same run with and without 20 ms before each answer.

The triplets lie on a real S3 server (moto's) behind a proxy that waits. Run with `make bench`, or
alone: ``python -m pytest tests/benchmarks/test_bucket_feed.py -m bench -s``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY
from expectation import show
from s3_server import failing_proxy, s3_server, upload
from synthetic_triplets import write_triplets

pytestmark = pytest.mark.bench
STEPS, TURNS, LATENCY_S, POINTS = 60, 2, 0.02, 0.03
MODEL = ["--config", "tests/tiny.yaml", "--backend", "in_process", "--data.batch_size", "16"]
MODEL += ["--train.steps", str(STEPS), "--train.checkpoint_every_steps", str(STEPS)]


def last_metrics(home: Path, url: str, triplets: str) -> dict[str, float]:
    """The last metrics of a training in a process of its own."""
    words = [*MODEL, "--triplets", triplets, "--output", str(home / "run")]
    environment = {**os.environ, "AWS_ENDPOINT_URL": url, "DYNAFLIP_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "jobs/pretrain.py", *words],
        cwd=REPOSITORY,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    print("\n".join(line for line in done.stdout.splitlines() if "to the bucket" in line))
    merged: dict[str, float] = {}
    for line in (home / "run" / "metrics.jsonl").read_text().splitlines():
        merged |= json.loads(line)
    return merged


def test_a_latency_of_20_ms_is_hardly_waited_for(tmp_path: Path) -> None:
    folder = write_triplets(tmp_path / "set", clips=120, shards=3)
    shares: dict[float, list[float]] = {0.0: [], LATENCY_S: []}
    with s3_server() as server, failing_proxy(server) as (url, proxy):
        triplets = upload(server, folder, "bench")
        for turn in range(TURNS):
            for latency_s, found in shares.items():
                proxy.latency_s = latency_s
                metrics = last_metrics(tmp_path / f"{turn}-{latency_s}", url, triplets)
                found.append(metrics["speed/share/data"])
                read, requests = metrics["data/bytes"] / 1e6, metrics["data/requests"]
                print(
                    f"{latency_s * 1e3:.0f} ms: {found[-1]:.1%} of the run waits for data; the "
                    f"last epoch read {read:.1f} MB in {requests:.0f} requests"
                )
    before, after = (statistics.median(found) for found in shares.values())
    show("more waiting for data with 20 ms a request", max(0.0, after - before), at_most=POINTS)
