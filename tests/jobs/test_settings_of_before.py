"""Every YAML file of version 0.1 still works: its settings are read, its pretraining trains.

``tests/data/settings_0.1`` holds them as they were at the commit before names changed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from checkout import REPOSITORY

FILES = REPOSITORY / "tests" / "data" / "settings_0.1"
JOBS = {
    "ablate.yaml": ["ablate"],
    "demo.yaml": ["pretrain"],
    "demo_collect.yaml": ["collect"],
    "demo_sweep.yaml": ["sweep"],
    "demo_triplets.yaml": ["preprocess"],
    "finetune.yaml": ["evaluate", "--suite", "metaworld"],
    "headline.yaml": ["evaluate", "--suite", "metaworld"],
    "headline_collect.yaml": ["collect"],
    "headline_pretrain.yaml": ["pretrain"],
    "tiny.yaml": ["pretrain"],
}


def test_every_file_of_before_is_read_by_its_job(tmp_path: Path) -> None:
    assert set(JOBS) == {file.name for file in FILES.glob("*.yaml")}
    lines = [[job, [*words, "--config", str(FILES / name)]] for name, (job, *words) in JOBS.items()]
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "docs" / "parse_commands.py")],
        input=json.dumps(lines),
        cwd=tmp_path,
        env={"DYNAFLIP_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    problems = dict(zip(JOBS, json.loads(result.stdout), strict=True))
    assert problems == dict.fromkeys(JOBS), problems


@pytest.mark.integration
@pytest.mark.parametrize("name", ["demo", "headline_pretrain", "tiny", "demo_sweep", "ablate"])
def test_a_pretraining_of_before_completes_three_steps(
    name: str, triplet_folder: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load((FILES / f"{name}.yaml").read_text())
    settings = settings.get("pretrain", settings)
    settings.pop("sweep", None)
    config = tmp_path / f"{name}.yaml"
    config.write_text(yaml.safe_dump(settings))
    output = tmp_path / "output"
    words = ["--config", str(config), "--train.steps", "3", "--train.threads", "1"]
    words += ["--backend", "in_process", "--output", str(output), "--triplets", str(triplet_folder)]
    result = subprocess.run(
        [sys.executable, "jobs/pretrain.py", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (output / "encoder" / "encoder.safetensors").is_file()
