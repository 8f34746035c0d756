"""Settings and the command line: every mistake is one line that names the setting."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from checkout import REPOSITORY

from dynaflip.errors import UserError
from dynaflip.platform.ablation import AblationConfig
from dynaflip.platform.cli import config_parser, parse_config
from dynaflip.platform.config_loader import config_digest, flatten, load_config, to_dict, to_yaml
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.evaluation.rollout_config import RolloutConfig
from dynaflip.platform.paths import output_path
from dynaflip.platform.sweep.config import SweepJobConfig
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.triplets.config import PreprocessConfig


@dataclass(frozen=True)
class Part:
    weight: float = 1.0
    names: tuple[str, ...] = ("a", "b")

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight: must be at least 0 (got {self.weight})")


@dataclass(frozen=True)
class Whole:
    part: Part = field(default_factory=Part)
    rate: float = 1e-4
    levels: tuple[int, ...] = (3,)
    steps: int = 3
    name: str | None = None


def test_defaults_file_and_command_line_in_this_order(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("part:\n  weight: 2\nrate: 1e-3\nsteps: 5\n")
    config = load_config(Whole, str(file), {"steps": "7", "part.names": '["x"]'})
    assert config == Whole(Part(2.0, ("x",)), 1e-3, (3,), 7)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x, y", ("x", "y")),
        ("[x, y]", ("x", "y")),
        ('["x"]', ("x",)),
        ("x", ("x",)),
        ("none", ()),
        ("key=log(0.1,10)", ("key=log(0.1,10)",)),
    ],
)
def test_a_list_is_written_with_commas_or_brackets(text: str, names: tuple[str, ...]) -> None:
    config = load_config(Whole, None, {"part.names": text, "levels": "1,5"})
    assert (config.part.names, config.levels) == (names, (1, 5))


def test_resolved_settings_read_back_as_they_were(tmp_path: Path) -> None:
    config = load_config(Whole, None, {"part.weight": "0.25", "name": "n"})
    file = tmp_path / "resolved.yaml"
    file.write_text(to_yaml(config))
    assert load_config(Whole, str(file), {}) == config
    assert config_digest(config) != config_digest(Whole())
    assert flatten(to_dict(config))["part.weight"] == 0.25


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"part.weigth": "1"}, "there is no setting part.weigth; did you mean part.weight?"),
        ({"weight": "1"}, "did you mean part.weight?"),
        ({"part.weight": "-1"}, "part.weight: must be at least 0 (got -1.0)"),
        ({"part.weight": "much"}, "part.weight: input should be a valid number"),
        ({"levels": "1,two"}, "levels.1: input should be a valid integer"),
        ({"steps": "2.5"}, "steps: input should be a valid integer"),
    ],
)
def test_a_wrong_setting_is_named(overrides: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(Whole, None, overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("part:\n  wieght: 1\n", "no setting part.wieght; did you mean part.weight?"),
        ("part: 3\n", "part is a section"),
        ("- a\n", "must hold `key: value` lines"),
        ("a: [1\n", "line 2 is not valid YAML"),
        ("part:\n  weight: 1\n  weight: 2\n", "line 3 gives weight twice"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(Whole, str(file), {})
    assert said in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_flag_twice_and_a_flag_without_value_are_refused() -> None:
    for words, said in [(["--steps", "1", "--steps=2"], "twice"), (["--steps"], "needs a value")]:
        with pytest.raises(UserError, match=said):
            parse_config(config_parser("", Whole), Whole, words, {})


def test_defaults_are_shown_as_they_can_be_typed() -> None:
    shown = config_parser("", PreprocessConfig).format_help()
    assert "--align_depth                        true" in shown
    assert "--source.cameras                     []" in shown
    assert "platform/triplets/config.py" in shown


def test_a_negative_number_is_a_value_and_not_a_flag() -> None:
    _, config = parse_config(config_parser("", Whole), Whole, ["--rate", "-1e-3"], {})
    assert config.rate == -1e-3


def test_a_submitted_job_refuses_a_relative_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert output_path("out", tmp_path, setting="output") == str(Path.cwd() / "out")
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(UserError, match="temporary copy"):
        output_path("out", tmp_path, setting="output")
    assert output_path("/abs/out", tmp_path, setting="output") == "/abs/out"
    assert output_path("s3://b/out", tmp_path, setting="output") == "s3://b/out"
    assert output_path(None, tmp_path, setting="output") == str(tmp_path)


def test_a_jobs_mistake_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "jobs/pretrain.py", "--objective.volum", "1"],
        cwd=REPOSITORY,
        env={**os.environ, "DYNAFLIP_HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 2
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "did you mean objective.volume?" in errors[0]


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "jobs" / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_config_that_is_offered_is_read(path: Path) -> None:
    classes = {
        "demo_collect": CollectConfig,
        "demo_triplets": PreprocessConfig,
        "demo_sweep": SweepJobConfig,
        "ablate": AblationConfig,
        "finetune": RolloutConfig,
        "headline": RolloutConfig,
        "headline_collect": CollectConfig,
    }
    assert load_config(classes.get(path.stem, PretrainConfig), str(path), {})
