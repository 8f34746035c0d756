"""A Gymnasium environment from one file of somebody outside, through real jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY
from tiny_rollouts import encoder_folder

pytest.importorskip("gymnasium")
OWN = "class:point_reacher:PointReacher"
SMALL = ("--env", OWN, "--image_px", "32")


def job(home: Path, *words: str) -> str:
    """What a job prints; it must succeed."""
    paths = [str(REPOSITORY), str(REPOSITORY / "tests" / "eval")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "DYNAFLIP_HOME": str(home)}
    command = [sys.executable, str(REPOSITORY / "jobs" / words[0]), *words[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.integration
def test_an_outsiders_gymnasium_environment_is_collected_and_evaluated(tmp_path: Path) -> None:
    home, output = tmp_path / "home", tmp_path / "points"
    said = job(
        home, "collect.py", *SMALL, "--output", str(output), "--episodes_per_task", "3",
        "--num-cpus", "1",
    )  # fmt: skip
    assert f"note: {OWN} renders 64x48; images are resized to the size asked for" in said
    assert "solved 3 of 3" in said
    encoder = encoder_folder(tmp_path / "encoder")
    shared = [
        *SMALL, "--encoder", str(encoder), "--baselines", "random", "--seeds", "2",
        "--episodes", "2", "--demonstrations", "3", "--factors", "light", "--all_at_once", "false",
        "--behaviour_cloning.steps", "20", "--keep_policies", "false",
    ]  # fmt: skip
    said = job(
        home, "evaluate.py", "--suite", "rollouts", *shared, "--horizon_steps", "20",
        "--check_harness", "true",
    )  # fmt: skip
    assert "factors seen in pretraining" in said
    report = Path(said.split("report: ")[1].splitlines()[0])
    assert "point_reacher source " in report.read_text()
    said = job(home, "evaluate.py", "--suite", "imitation", *shared)
    assert "in distribution" in said
