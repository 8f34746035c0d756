"""Settings explain themselves: help, commented YAML and the reference page, from one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import settings_reference
from checkout import REPOSITORY

from dynaflip.checks import Limits, at_least, limits_of, one_of, within
from dynaflip.platform.ablation import AblationConfig
from dynaflip.platform.cli import config_parser, parse_config
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.settings_docs import sections, undocumented
from dynaflip.platform.settings_text import commented_yaml, help_text
from dynaflip.platform.sweep.config import SweepJobConfig
from dynaflip.platform.training.config import PretrainConfig
from dynaflip.platform.triplets.config import PreprocessConfig, SourceConfig
from dynaflip.plugins import load_object

CLASSES = [load_object(target) for target in settings_reference.JOBS.values()]
OF_FILE = {
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


@dataclass(frozen=True)
class Part:
    """A part of the settings."""

    kind: str = "a"
    """Which of the kinds, with a compound that ends the line: half-
    open."""

    share: float = 0.5
    count: int | None = None
    """How many."""

    def __post_init__(self) -> None:
        one_of(self, ("a", "b"), "kind")
        within(self, 0, 1, "share", ends="(]")
        at_least(self, 1, "count")


@dataclass(frozen=True)
class Whole:
    """All settings.

    More about them.
    """

    part: Part = field(default_factory=Part)
    names: tuple[str, ...] = ("x: y", "#z")
    """Names, as :class:`Part` has them."""


@dataclass(frozen=True)
class Wider(Whole):
    """All settings, and one more."""

    text: str = "no"
    """A word that YAML would read as false."""


def test_limits_and_choices_are_those_of_the_checks() -> None:
    assert limits_of(Part) == {
        "kind": Limits(choices=("a", "b")),
        "share": Limits("in (0, 1]"),
        "count": Limits("at least 1"),
    }


def test_a_setting_has_its_type_limits_default_and_meaning() -> None:
    outer, part = sections(Wider)
    assert (outer.key, part.key) == ("", "part")
    assert [one.key for one in outer.settings] == ["names", "text"]
    assert outer.settings[0].meaning == "Names, as `Part` has them."
    assert part.meaning == "A part of the settings."
    kind, share, count = part.settings
    assert kind.meaning == "Which of the kinds, with a compound that ends the line: half-open."
    assert kind.facts() == "a | b; default a"
    assert share.facts() == "number; in (0, 1]; default 0.5"
    assert count.facts() == "whole number or none; at least 1; default none"
    assert undocumented(Wider) == ["part.share"]


@dataclass(frozen=True)
class Outsider:
    """Settings of somebody's own suite, which have no default."""

    path: str
    part: Part


def test_settings_that_must_be_given_are_shown_as_such() -> None:
    outer, part = sections(Outsider)
    assert outer.settings[0].facts() == "text; (required)"
    assert [one.default for one in part.settings] == ["a", "0.5", "none"]
    assert "--path" in help_text(Outsider, 80)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_has_a_docstring(cls: type) -> None:
    assert undocumented(cls) == []


def test_help_explains_each_setting_within_the_terminal() -> None:
    text = help_text(Wider, 80)
    assert "\npart: A part of the settings.\n  --part.kind       " in text
    assert "  a | b; default a\n      Which of the kinds, with a compound" in text
    assert max(len(line) for line in help_text(PretrainConfig, 80).splitlines()) <= 80


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_printed_settings_are_read_back(cls: type, tmp_path: Path) -> None:
    file = tmp_path / "printed.yaml"
    file.write_text(commented_yaml(cls()))
    assert load_config(cls, str(file), {}) == cls()


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "jobs" / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_file_that_is_offered_prints_and_is_read_back(path: Path, tmp_path: Path) -> None:
    cls = OF_FILE.get(path.stem, PretrainConfig)
    config = load_config(cls, str(path), {})
    file = tmp_path / "printed.yaml"
    file.write_text(commented_yaml(config))
    assert load_config(cls, str(file), {}) == config


def test_awkward_values_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "printed.yaml"
    for config in (
        Wider(Part(share=1e-5), (), "a: b # c"),
        PreprocessConfig(sources=(SourceConfig("/a", weight=2.0), SourceConfig("s3://b"))),
        PretrainConfig(triplets="é\n"),
    ):
        file.write_text(commented_yaml(config))
        assert load_config(type(config), str(file), {}) == config


def test_print_config_shows_flags_and_variant_and_does_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--part.kind", "b", "--print_config"]
    with pytest.raises(SystemExit) as left:
        parse_config(config_parser("", Wider), Wider, words, {}, adjust=lambda _, config: config)
    assert left.value.code == 0
    assert "  # [a | b; default a]\n  kind: b\n" in capsys.readouterr().out


def test_the_reference_page_is_up_to_date() -> None:
    assert settings_reference.PAGE.read_text(encoding="utf-8") == settings_reference.page(), (
        "run `make docs`"
    )
