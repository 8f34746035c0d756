"""Demonstrations in an environment from outside, which has neither depth nor factors."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dynaflip.errors import UserError
from dynaflip.eval.envs.registry import environment
from dynaflip.jobs import collect as collect_job
from dynaflip.platform.config_loader import config_digest, load_config
from dynaflip.platform.demonstrations.collect import Recorder
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.demonstrations.lerobot_dataset import assemble
from dynaflip.platform.demonstrations.plan import plan_episodes
from dynaflip.platform.triplets.config import SourceConfig
from dynaflip.platform.triplets.sources.lerobot import LeRobotSource

REACH = "class:outside_environment:ENVIRONMENT"
PLAIN = {"perturbed_share": 0.0, "moving_camera_share": 0.0, "image_px": 48, "max_steps": 30}


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "eval"))
    monkeypatch.delitem(sys.modules, "outside_environment", raising=False)


def test_an_outsiders_demonstrations_are_recorded_and_read_again(tmp_path: Path) -> None:
    config = CollectConfig(environment=REACH, episodes_per_task=3, **PLAIN)
    assert config.tasks == ("reach",)
    plans = plan_episodes(config)
    recorder = Recorder(config, str(tmp_path / "episodes"))
    for plan in plans:
        assert plan.caption in ("reach the green block", "go to the green block")
        recorder.record(plan)
    folders = sorted((tmp_path / "episodes").iterdir())
    made = assemble(tmp_path / "set", folders, environment(REACH))
    assert made["depth_error"] is None
    info = json.loads((tmp_path / "set" / "meta" / "info.json").read_text())
    assert info["fps"] == 20
    assert info["features"]["action"]["names"] == ["x", "y"]
    assert not [name for name in info["features"] if "depth" in name or "camera_pose" in name]

    source = LeRobotSource(SourceConfig(path=str(tmp_path / "set")))
    clips = list(source.list_clips())
    assert [clip.task for clip in clips] == ["reach"] * 3
    assert json.loads(clips[0].extra)["environment"] == "reach"
    recording = source.open(clips[0])
    images = recording.read_frames([0, 1], 1 << 20)
    assert images.shape == (2, 48, 48, 3)
    brightest = images.astype(int).max((1, 2))
    assert np.abs(brightest - (220, 200, 95)).max() < 20  # a red and a green block on grey


def test_what_the_environment_lacks_is_refused_by_the_settings() -> None:
    with pytest.raises(ValueError, match="perturbed_share: reach has no perturbation factors"):
        CollectConfig(environment=REACH, perturbed_share=0.5)
    with pytest.raises(ValueError, match="moving_camera_share: reach has no moving camera"):
        CollectConfig(environment=REACH, moving_camera_share=0.2)
    with pytest.raises(ValueError, match="max_steps must be in"):
        CollectConfig(environment=REACH, **{**PLAIN, "max_steps": 41})


def test_defaults_are_those_of_the_environment() -> None:
    config = load_config(CollectConfig, None, {"environment": REACH})
    assert (config.perturbed_share, config.moving_camera_share, config.max_steps) == (0, 0, 40)
    usual = CollectConfig()
    assert (usual.perturbed_share, usual.moving_camera_share, usual.max_steps) == (0.5, 0.2, 200)
    short = replace(environment(REACH), default_steps={"collect": 9})
    assert (short.steps_for("collect"), short.steps_for("evaluate")) == (9, 40)


def test_the_recipe_of_the_default_environment_is_that_of_before_there_were_others() -> None:
    assert config_digest(CollectConfig().recipe()) == "33dc355c4f216c99"
    assert CollectConfig(environment=REACH, **PLAIN).recipe()["environment"] == REACH


def test_a_rate_that_recordings_cannot_say_is_refused(tmp_path: Path) -> None:
    words = ["--env", "class:point_reacher:PointReacher[control_hz=12.4]"]
    words += ["--perturbed_share", "0", "--output", str(tmp_path / "set")]
    with pytest.raises(UserError, match=r"12\.4 times a second.*: 12 is more than 2 % off"):
        collect_job.main(words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", ["0", "-2"])
def test_a_number_of_cpus_that_nobody_has_is_refused(number: str) -> None:
    with pytest.raises(UserError, match="--num-cpus: must be at least 1"):
        collect_job.main(["--num-cpus", number])
