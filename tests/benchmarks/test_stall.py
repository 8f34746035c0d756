"""What an MLflow that hangs, refuses or is slow costs a training: nothing that its clock shows.

    pytest -m bench tests/benchmarks/test_stall.py -s
    STALL_SECONDS=30 pytest -m bench tests/benchmarks/test_stall.py -s     # less than 3 minutes

One real run on Ray against a real MLflow server, which is well, hangs (accepts and never answers),
is well, refuses (503), is well, is slow (25 s an answer) and is well again. The times are the run's
own: what its loop waited for reports and checkpoints, and how long steps took with them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
from checkout import REPOSITORY
from troubled_mlflow import HANG, REFUSE, SLOW, WELL, TroubledMlflow

from dynaflip.platform.tracking.store import client
from dynaflip.platform.training.curve_file import METRICS, CurveFile

pytestmark = pytest.mark.bench
SECONDS = float(os.environ.get("STALL_SECONDS", "300"))
WELL_S = min(SECONDS, 20.0)


@pytest.mark.timeout(3600)
def test_an_mlflow_in_trouble_costs_no_time(triplet_folder: Path, tmp_path: Path) -> None:
    with TroubledMlflow(tmp_path) as server:
        words = [sys.executable, "jobs/pretrain.py", "--config", "tests/tiny.yaml"]
        words += ["--triplets", str(triplet_folder), "--train.steps", "1000000"]
        words += ["--train.report_every_steps", "25", "--train.checkpoint_every_steps", "500"]
        home = tmp_path / "home"
        environment = {
            **os.environ, "DYNAFLIP_HOME": str(home), "MLFLOW_TRACKING_URI": server.uri,
        }  # fmt: skip
        log = (tmp_path / "log").open("w")
        process = subprocess.Popen(words, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
        try:
            folder = _begun(home, process)
            phases = _trouble(server, process)
            deadline = time.monotonic() + 300
            while len(_stored(server, folder)) < 3 or not CurveFile(folder).all_sent():
                assert time.monotonic() < deadline, "the curves do not arrive"
                time.sleep(1)
        finally:
            process.terminate()
            process.wait(60)
        assert process.returncode == 143, (tmp_path / "log").read_text()[-2000:]
        on_disk = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
        stored = _stored(server, folder)
        steps = [point["step"] for point in on_disk]
        assert steps == sorted(set(steps)), "no hole and nothing twice on disk"
        assert stored == steps[: len(stored)], "the same in MLflow, in order, once"
        assert len(stored) >= len(steps) - 2, "but for what came after the signal"
    _print(on_disk, phases)
    print((folder / "progress.log").read_text().count("MLflow is away"), "warnings of one line")


def _begun(home: Path, process: subprocess.Popen[bytes]) -> Path:
    deadline = time.monotonic() + 300
    while not (found := [p.parent for p in home.glob("runs/*/metrics.jsonl") if p.stat().st_size]):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found[0]


def _trouble(
    server: TroubledMlflow, process: subprocess.Popen[bytes]
) -> list[tuple[str, float, float]]:
    """What the server was, and from when to when in ms."""
    phases = []
    for mode in (WELL, HANG, WELL, REFUSE, WELL, SLOW, WELL):
        begin = time.time()
        server.be(mode)
        time.sleep(WELL_S if mode == WELL else SECONDS)
        assert process.poll() is None, f"the run ended while MLflow was {mode}"
        phases.append((mode, 1000 * begin, 1000 * time.time()))
    return phases


def _stored(server: TroubledMlflow, folder: Path) -> list[int]:
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    return [p.step for p in client(server.store).get_metric_history(run_id, "train/loss")]


def _print(points: list[dict[str, float]], phases: list[tuple[str, float, float]]) -> None:
    """A row for each state of the server: share of time waited, and the longest steps.

    A step's time is at most that of the steps between two reports beyond what the others took on
    average, with all that was waited for between them.
    """
    waited: dict[str, float] = defaultdict(float)
    longest: dict[str, float] = defaultdict(float)
    lasted: dict[str, float] = defaultdict(float)
    for mode, begin, end in phases:
        lasted[mode] += (end - begin) / 1000
    before = points[0]
    for point in points[1:]:
        mode = next((m for m, b, e in phases if b <= point["time_ms"] <= e), None)
        steps = point["step"] - before["step"]
        before = point
        if mode is None:
            continue
        mean_s = 1 / point["speed/steps_per_s"]
        wait_s = point["speed/report_wait_s"] + point["speed/checkpoint_wait_s"]
        waited[mode] += point["speed/report_wait_s"]
        longest[mode] = max(longest[mode], steps * mean_s - (steps - 1) * _least(points) + wait_s)
    print(f"\n{'MLflow':10}{'seconds':>9}{'waited for reports':>20}{'longest step at most':>22}")
    for mode in (WELL, HANG, REFUSE, SLOW):
        share = waited[mode] / lasted[mode]
        print(f"{mode:10}{lasted[mode]:9.0f}{share:19.2%} {longest[mode]:20.2f} s")
    worst = max(longest[mode] for mode in (HANG, REFUSE, SLOW))
    share = sum(waited.values()) / sum(lasted.values())
    holds = share < 0.01 and worst <= longest[WELL] + 1
    print(
        f"waited in reporting: {share:.2%} of the run (bar: below 1 %); longest step "
        f"{worst - longest[WELL]:+.2f} s beside the undisturbed one (bar: below +1 s): "
        f"{'holds' if holds else 'does not hold'}"
    )


def _least(points: list[dict[str, float]]) -> float:
    return min(1 / point["speed/steps_per_s"] for point in points if "speed/steps_per_s" in point)
