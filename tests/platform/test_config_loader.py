"""Settings and the command line: every mistake is one line that names the setting."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from checkout import REPOSITORY

from dynaflip import renames
from dynaflip.errors import UserError
from dynaflip.platform.ablation import AblationConfig
from dynaflip.platform.cli import config_parser, parse_config
from dynaflip.platform.config_loader import config_digest, flatten, load_config, to_dict, to_yaml
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.evaluation.config import RolloutConfig
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


@dataclass(frozen=True)
class Moved:
    """Settings that were renamed: a value, a section, and words of a list."""

    RENAMED: ClassVar[dict[str, str]] = {"portion": "part", "pace": "rate", "rows": "buffer_mb"}
    RESCALED: ClassVar[dict[str, float]] = {"rows": 0.1}
    RENAMED_VALUES: ClassVar[dict[str, dict[str, str]]] = {"kinds": {"gaze": "saliency"}}

    part: Part = field(default_factory=Part)
    parts: tuple[Part, ...] = ()
    rate: float = 0.5
    kinds: tuple[str, ...] = ()
    buffer_mb: float = 3.0


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning has been printed yet."""
    monkeypatch.setattr(renames, "_warned", set())


@pytest.mark.usefixtures("warned")
def test_old_names_work_with_one_warning_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("portion: {weight: 2}\npace: 3\nkinds: [gaze]\nrows: 2048\n")
    new = Moved(Part(2.0), rate=3.0, kinds=("saliency",), buffer_mb=204.8)
    for _ in range(2):
        assert load_config(Moved, str(file), {}) == new
    assert capsys.readouterr().err.splitlines() == [
        f"warning: {file}: portion is now part; the old name works until 0.3",
        f"warning: {file}: pace is now rate; the old name works until 0.3",
        f"warning: {file}: kinds gaze is now saliency; the old value works until 0.3",
        f"warning: {file}: rows 2048 is now buffer_mb 204.8; the old name works until 0.3",
    ]
    words = ["--portion.weight", "2", "--pace=3", "--kinds", "gaze", "--rows", "2048"]
    _, config = parse_config(config_parser("", Moved), Moved, words, {})
    assert config == new
    assert capsys.readouterr().err.splitlines() == [
        "warning: --portion.weight is now --part.weight; the old name works until 0.3",
        "warning: --pace is now --rate; the old name works until 0.3",
        "warning: --kinds gaze is now saliency; the old value works until 0.3",
        "warning: --rows is now --buffer_mb; the old name works until 0.3",
    ]


@pytest.mark.usefixtures("warned")
def test_saved_settings_are_read_without_a_warning_and_keep_their_digest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("portion: {weight: 2}\nkinds: [gaze]\n")
    config = load_config(Moved, str(file), {}, saved=True)
    assert config == Moved(Part(2.0), kinds=("saliency",))
    old = {
        "portion": to_dict(Part(2.0)),
        "parts": [],
        "pace": 0.5,
        "kinds": ["gaze"],
        "rows": 30,
    }
    assert config_digest(config) == config_digest(old)
    assert renames.current_settings(Moved, old) == to_dict(config)
    assert capsys.readouterr().err == ""


def test_a_setting_under_both_names_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("pace: 3\nrate: 2\n")
    with pytest.raises(UserError, match=r"c\.yaml: pace is the old name of rate; give one"):
        load_config(Moved, str(file), {})
    words = ["--pace", "3", "--rate", "2"]
    with pytest.raises(UserError, match="--pace is the old name of --rate; give one"):
        parse_config(config_parser("", Moved), Moved, words, {})


def test_errors_list_present_names_alone() -> None:
    with pytest.raises(UserError) as caught:
        load_config(Moved, None, {"nonsense": "1"})
    assert str(caught.value).endswith(
        "known: part.weight, part.names, parts, rate, kinds, buffer_mb"
    )


@pytest.mark.usefixtures("warned")
def test_a_jobs_own_flag_by_its_old_name(capsys: pytest.CaptureFixture[str]) -> None:
    parser = config_parser("", Whole)
    parser.add_argument("--variant")
    args, config = parse_config(
        parser, Whole, ["--arm", "full", "--steps=4"], {}, renamed={"arm": "variant"}
    )
    assert (args.variant, config.steps) == ("full", 4)
    assert renames.current_word("--suite", "metaworld", {"metaworld": "rollouts"}) == "rollouts"
    assert capsys.readouterr().err.splitlines() == [
        "warning: --arm is now --variant; the old name works until 0.3",
        "warning: --suite metaworld is now rollouts; the old value works until 0.3",
    ]
    with pytest.raises(UserError, match="--arm is the old name of --variant; give one"):
        renames.current_flags(["--arm=a", "--variant", "b"], {"arm": "variant"})


def test_a_flag_twice_and_a_flag_without_value_are_refused() -> None:
    for words, said in [(["--steps", "1", "--steps=2"], "twice"), (["--steps"], "needs a value")]:
        with pytest.raises(UserError, match=said):
            parse_config(config_parser("", Whole), Whole, words, {})


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
        "headline2": RolloutConfig,
        "headline_collect": CollectConfig,
        "unseen_tasks_collect": CollectConfig,
    }
    assert load_config(classes.get(path.stem, PretrainConfig), str(path), {})


@dataclass(frozen=True)
class Placed:
    """A section whose place sets other defaults than its class."""

    SHORT: ClassVar[dict[str, tuple[str, ...]]] = {"w": ("own.part.weight", "plain.weight")}

    own: Whole = field(default_factory=lambda: Whole(steps=9, part=Part(names=("here",))))
    plain: Part = field(default_factory=Part)


def test_a_place_keeps_its_own_defaults_where_another_of_its_settings_is_given() -> None:
    config = load_config(Placed, None, {"own.rate": "0.5"})
    assert (config.own.steps, config.own.rate) == (9, 0.5)
    assert load_config(Placed, None, {"own.steps": "3"}).own.steps == 3


def test_a_short_flag_sets_all_that_it_stands_for() -> None:
    _, config = parse_config(config_parser("", Placed), Placed, ["--w", "4"], {})
    assert (config.own.part.weight, config.plain.weight) == (4.0, 4.0)
    assert config.own.steps == 9
    with pytest.raises(UserError, match=r"--plain\.weight is given twice"):
        parse_config(config_parser("", Placed), Placed, ["--w", "4", "--plain.weight=2"], {})
    assert "--own.part.weight, --plain.weight" in config_parser("", Placed).format_help()
