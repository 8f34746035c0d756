"""A pool's demand is what Ray's own autoscaler adds a machine for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY


@pytest.mark.ray
@pytest.mark.integration
def test_a_pool_that_nothing_has_room_for_gets_a_machine_and_finishes_there(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("autoscaler_run.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("FOUND "))
    assert (found["before"], found["after"]) == (0, 1)
    assert found["squares"] == {"1": 1, "2": 4, "3": 9, "4": 16}
    assert len(found["nodes"]) == 1
    assert found["head"] not in found["nodes"]
    waits = "evaluate: waiting for 1 CPU: the cluster has 0; it is asked for more; nothing runs yet"
    assert found["said"][0] == waits
