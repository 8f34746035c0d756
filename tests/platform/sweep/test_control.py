"""A sweep that runs is steered from another process: one trial is skipped, then all is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import REPOSITORY
from recovery import JOB, start, until

from dynaflip.platform.sweep.consistency import inconsistencies
from dynaflip.platform.sweep.opened_sweep import open_to_read
from dynaflip.platform.sweep.study import SEARCH
from dynaflip.platform.tracking import child_runs

pytestmark = pytest.mark.ray


def type_in(home: Path, *words: str) -> str:
    """What `sweep.py` answers in another terminal."""
    said = subprocess.run(
        [sys.executable, str(JOB), *words],
        env={**os.environ, "DYNAFLIP_HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert said.returncode == 0, said.stderr
    return said.stdout


@pytest.mark.integration
def test_a_trial_is_skipped_and_the_sweep_stopped_shown_and_continued(
    home: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    script, log = Path(__file__).with_name("computed_sweep.py"), tmp_path / "sweep.log"
    process = start(home, ["steered", "2"], log, script)
    request.addfinalizer(lambda: process.popen.kill())

    def trains(trial: str) -> bool:
        assert process.popen.poll() is None, process.said()
        files = (home / "sweeps" / "steered" / "tune").glob(f"*/{trial}/result.json")
        return any(file.read_text() for file in files)

    until(lambda: trains("trial-000"), 240, "a report of trial-000")
    assert "skipped: trial-000 of steered" in type_in(home, "skip", "steered", "0")
    until(lambda: trains("trial-001"), 240, "a report of trial-001")
    assert "sweep steered: running" in type_in(home, "show", "steered")
    go_on = "python jobs/sweep.py --resume steered"
    assert f"stopped: steered; continue with: {go_on}" in type_in(home, "stop", "steered")
    assert process.popen.wait(timeout=120) == 130
    assert process.said().rstrip().endswith(f"stopped: steered; continue with: {go_on}")
    shown = type_in(home, "show", "steered")
    assert f"stopped; continue with: {go_on}" in shown
    assert "search: 1 skipped, 1 stopped of 2" in shown
    sweep = open_to_read("steered", "test")
    runs = {run.tags["sweep.trial"]: run.status for run in child_runs(sweep.parent)}
    assert runs == {"trial-000": "FINISHED", "trial-001": "KILLED"}
    process = start(home, ["steered", "2"], log, script)
    assert process.popen.wait(timeout=240) == 0, process.said()
    assert [t.state.name for t in sweep.trials(SEARCH)] == ["PRUNED", "COMPLETE"]
    assert inconsistencies("steered") == []
