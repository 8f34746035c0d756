"""Evaluation's pool on a cluster that is busy, grows, and loses a machine: it finishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY
from shared_cluster_run import BUSY, NEVER

pytestmark = [pytest.mark.ray, pytest.mark.integration]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What each part of shared_cluster_run.py has found."""
    script = Path(__file__).with_name("shared_cluster_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("shared"))],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    parts: dict = {}
    for line in done.stdout.splitlines():
        if line.startswith("FOUND "):
            parts |= json.loads(line.removeprefix("FOUND "))
    assert len(parts) == 4, done.stdout[-2000:] + done.stderr[-3000:]
    return parts


def test_a_busy_cluster_is_named_and_gone_on_with_and_asked_to_grow(found: dict) -> None:
    busy = found["busy"]
    assert len(busy["nodes"]) == 4
    assert BUSY in busy["said"]
    # Three of four workers wait for a CPU: one that others have, two for a machine to come.
    assert busy["demand"] == 3


def test_a_worker_that_never_starts_holds_no_job(found: dict) -> None:
    never = found["never"]
    assert len(never["nodes"]) == 4
    assert NEVER in never["said"]
    assert never["lost"] == 0


def test_a_machine_that_joins_is_used(found: dict) -> None:
    joined = found["joined"]
    assert len(joined["nodes"]) == 6
    assert joined["node"] in joined["nodes"]
    assert joined["lost"] == 0


def test_a_machine_that_dies_costs_the_job_that_ran_there(found: dict) -> None:
    left = found["left"]
    assert len(left["nodes"]) == 6
    assert found["joined"]["node"] not in left["nodes"], "its job is never done"
    assert left["lost"] == 1
    (line,) = [line for line in left["said"] if "a worker was lost" in line]
    assert "its machine is gone" in line
    assert "another one does its job" in line
