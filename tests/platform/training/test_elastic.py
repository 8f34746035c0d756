"""A node is lost: the run goes on with the workers that are left, on the same whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.integration
def test_a_lost_node_costs_a_worker_and_no_step(triplet_folder: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("elastic_run.py")
    paths = [REPOSITORY, script.parent, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "DYNAFLIP_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    done = subprocess.run(
        [sys.executable, str(script), str(triplet_folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(lines[0].removeprefix("FOUND "))
    assert result["steps"] == list(range(1, 41)), "each step once"
    assert result["workers_at_the_end"] == 1
    before, after = result["losses"][:20], result["losses"][20:]
    assert max(after) < max(before) + 0.5, "the curve goes on where it was"
