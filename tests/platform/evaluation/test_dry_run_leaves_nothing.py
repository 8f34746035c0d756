"""``--dry-run`` as a user runs it: a table, unit costs in a file, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY
from tiny_rollouts import encoder_folder

pytestmark = [pytest.mark.sim, pytest.mark.integration]

_SMALL = (
    "--baselines initialization --tasks reach --seeds 2 --factors light_tint --all_at_once false "
    "--episodes 2 --demonstrations 3 --image_px 32 --horizon_steps 60 --environments 2 "
    "--behaviour_cloning.hidden_dim 16 --behaviour_cloning.layers 1"
)


def dry_run(encoder: Path, split: str, folder: Path) -> str:
    """What the command prints, run in an empty folder."""
    words = ["--suite", "rollouts", "--encoder", str(encoder), "--split", split, "--dry-run"]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / "evaluate.py"), *words, *_SMALL.split()],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_leaves_unit_costs_alone_and_counts_no_look_at_test(
    home: Path, tmp_path: Path
) -> None:
    from dynaflip.platform.evaluation.evaluation_run import count_test_evaluations
    from dynaflip.platform.evaluation.rollout_run import KIND
    from dynaflip.platform.tracking import newest_run_names

    encoder, started_in = encoder_folder(tmp_path / "encoder"), tmp_path / "empty"
    started_in.mkdir()
    given = files(encoder)

    said = dry_run(encoder, "dev", started_in)
    # 2 seeds under 2 conditions, of 2 episodes each; 3 demonstrations with 2 to spare.
    for name in ("trained", "initialization"):
        row = next(line.split() for line in said.splitlines() if line.split()[:1] == [name])
        assert row == [name, "3", "4", "0", "8"]
    assert "demonstrations to render, episodes" in said
    assert "16 cores and a GPU (assumed)" in said
    assert said.endswith("nothing was run\n")
    assert said.count("measuring unit costs") == 2
    left = files(home)
    # Every job marks a new home as one.
    (kept,) = set(left) - {home / ".gitignore", home / "home.json"}
    assert (kept.parent, kept.suffix) == (home / "calibration", ".json")

    again = dry_run(encoder, "test", started_in)
    assert "measuring unit costs" not in again
    assert files(home) == left
    assert files(encoder) == given
    assert not list(started_in.iterdir())
    # The store is first opened here. Were one counted, this would be the second.
    assert count_test_evaluations("the first one", KIND) == 1
    assert newest_run_names(KIND) == []
