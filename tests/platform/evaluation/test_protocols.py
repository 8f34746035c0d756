"""Named protocols: what they set, what a run may call itself, and which encoders they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from checkout import REPOSITORY
from tiny_rollouts import encoder_folder

from dynaflip.errors import UserError
from dynaflip.eval.envs.metaworld_tasks import ENVIRONMENT
from dynaflip.platform.config_loader import load_config
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.encoders_under_test import (
    TRAINED,
    Encoder,
    EncoderUnderTest,
    encoder_at,
)
from dynaflip.platform.evaluation.protocols import (
    change_lines,
    described,
    label_of,
    protocol_names,
    read_protocol,
    settings_below,
)
from dynaflip.platform.evaluation.unseen import check_unseen, tasks_in

OWN = "class:tests.eval.outside_environment:ENVIRONMENT"


def of(name: str, **overrides: object) -> RolloutConfig:
    """The settings of ``--protocol NAME`` with flags."""
    return load_config(
        RolloutConfig, None, overrides, below=settings_below(read_protocol(name), name)
    )


def test_the_headline_is_the_file_that_its_numbers_came_from() -> None:
    file = load_config(RolloutConfig, str(REPOSITORY / "jobs/configs/headline.yaml"), {})
    protocol = read_protocol("headline")
    config = of("headline")
    assert RolloutConfig(**{**vars(config), "protocol": ""}) == file
    # What the protocol repeats is what it extends.
    assert protocol.settings["tasks"] == ["r3m5"]


def test_the_second_headline_differs_in_its_read_out_alone() -> None:
    first, second = of("headline"), of("headline2")
    assert second.readout == "spatial_softmax"
    assert replace(second, readout="pooled", protocol=first.protocol) == first
    file = load_config(RolloutConfig, str(REPOSITORY / "jobs/configs/headline2.yaml"), {})
    assert replace(second, protocol="") == file


def test_every_protocol_says_what_it_runs_and_what_for() -> None:
    names = protocol_names()
    assert names == ["headline", "few_demos", "headline2", "unseen_environment", "unseen_tasks"]
    stated = {"split", "environment", "tasks", "factors", "levels", "seeds", "episodes"}
    for name in names:
        protocol = read_protocol(name)
        assert protocol.question
        assert protocol.use
        assert protocol.not_for
        text = protocol.path.read_text().partition("settings:")[2]
        for key in (*stated, "demonstrations", "baselines"):
            assert f"  {key}:" in text, (name, key)
        assert described(protocol)[0] == name
    assert of("few_demos").fewer_demonstrations == (5, 10)
    assert of("unseen_tasks").unseen == "tasks"


def test_an_environment_that_is_not_here_is_refused_when_the_protocol_is_run() -> None:
    config = of("unseen_environment", environment=OWN, episodes=2)
    assert (config.unseen, config.tasks, config.horizon_steps) == ("environment", ("reach",), 40)
    # Its tasks, factors and horizon are those of the environment, and no further changes.
    assert label_of(config) == "unseen_environment, changed: environment, episodes"


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        ({}, "few_demos"),
        ({"encoder": "other", "environments": 3, "experiment": "x"}, "few_demos"),
        ({"baselines": "initialization,imagenet,random", "encoders": '["a=/b"]'}, "few_demos"),
        ({"baselines": "initialization"}, "few_demos, changed: baselines"),
        ({"split": "dev"}, "few_demos, changed: split"),
        ({"tasks": "hammer,assembly,bin-picking,button-press-topdown,drawer-open"}, "few_demos"),
        ({"episodes": "2", "tasks": "reach"}, "few_demos, changed: tasks, episodes"),
        ({"fewer_demonstrations": "5"}, "few_demos, changed: fewer_demonstrations"),
        ({"diffusion.steps": "5"}, "few_demos"),  # of a head that it has not
        ({"behaviour_cloning.chunk": "8"}, "few_demos, changed: behaviour_cloning.chunk"),
    ],
)
def test_a_run_bears_the_name_alone_where_nothing_that_matters_is_changed(
    overrides: dict[str, object], label: str
) -> None:
    assert label_of(of("few_demos", **overrides)) == label


def test_changes_are_told_and_settings_without_a_protocol_have_no_name() -> None:
    assert change_lines(of("few_demos", split="dev")) == [
        "changed: split is dev, few_demos has test"
    ]
    assert label_of(of("few_demos"), "imitation") == "few_demos, changed: suite"
    assert label_of(RolloutConfig()) == ""
    assert change_lines(RolloutConfig(protocol="headline"))  # the name alone sets nothing


def test_a_protocol_of_one_s_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    about = "about: {question: q, for: f, not_for: n, pretraining: p}\n"
    path.write_text(about + "settings: {tasks: [reach], behaviour_cloning: {steps: 7}}\n")
    config = of(str(path), **{"behaviour_cloning.chunk": "2"})
    assert (config.behaviour_cloning.steps, config.behaviour_cloning.chunk) == (7, 2)
    assert label_of(config) == "mine, changed: behaviour_cloning.chunk"
    path.write_text(about + "settings: {taskz: [reach]}\n")
    with pytest.raises(UserError, match="did you mean tasks"):
        of(str(path))
    path.write_text("settings: {}\n")
    with pytest.raises(UserError, match="about must hold question, for, not_for, pretraining"):
        read_protocol(str(path))
    with pytest.raises(UserError, match="there is no nope; known: headline, few_demos"):
        read_protocol("nope")


@pytest.mark.parametrize("text", ["0", "25", "5,5"])
def test_numbers_of_demonstrations_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="fewer_demonstrations"):
        load_config(RolloutConfig, None, {"fewer_demonstrations": text})


def test_an_encoder_that_has_seen_an_evaluated_task_is_refused_with_both_lists(
    tmp_path: Path,
) -> None:
    folder = str(encoder_folder(tmp_path / "encoder"))  # pretrained on drawer-open-v3
    tested = [EncoderUnderTest(TRAINED, (encoder_at(folder),))]
    config = of("unseen_tasks", encoder=folder)
    with pytest.raises(UserError) as refused:
        check_unseen(config, tested)
    said = str(refused.value)
    assert "has seen 1 of the evaluated tasks (drawer-open-v3)" in said
    assert "evaluated are assembly-v3, bin-picking-v3" in said
    assert "it was pretrained on drawer-open-v3" in said
    check_unseen(of("unseen_tasks", encoder=folder, tasks="hammer,reach"), tested)
    check_unseen(RolloutConfig(encoder=folder), tested)
    # Another task of the environment is enough to have seen the environment.
    here = of("unseen_environment", environment="metaworld", tasks="reach")
    with pytest.raises(UserError, match=r"has seen the environment metaworld.*drawer-open-v3"):
        check_unseen(here, tested)
    check_unseen(of("unseen_environment", environment=OWN), tested)


def test_an_encoder_without_a_record_is_refused_and_a_model_of_others_is_not(
    tmp_path: Path,
) -> None:
    import json

    folder = encoder_folder(tmp_path / "encoder")
    described = json.loads((folder / "config.json").read_text())
    del described["info"]["caption_groups"]
    (folder / "config.json").write_text(json.dumps(described))
    encoder = Encoder("mine", str(folder), "digest")
    config = of("unseen_tasks")
    with pytest.raises(UserError, match="mine does not record what it was pretrained on"):
        check_unseen(config, [EncoderUnderTest(TRAINED, (encoder,))])
    check_unseen(config, [EncoderUnderTest("dinov2", (encoder,))])


def test_tasks_are_found_by_id_and_by_any_of_their_captions() -> None:
    tasks = ("drawer-open-v3", "hammer-v3", "reach-v3")
    caption = ENVIRONMENT.captions["hammer-v3"][-1]
    groups = ["Drawer-Open", caption.upper() + "!", "fold the towel"]
    seen = tasks_in(groups, ENVIRONMENT, tasks)
    assert seen == {"drawer-open-v3": ["Drawer-Open"], "hammer-v3": [caption.upper() + "!"]}


def test_the_recordings_that_are_offered_hold_the_evaluated_tasks_out() -> None:
    path = REPOSITORY / "jobs" / "configs" / "unseen_tasks_collect.yaml"
    collected = load_config(CollectConfig, str(path), {})
    evaluated = ENVIRONMENT.tasks_of(of("unseen_tasks").tasks)
    assert tasks_in(collected.tasks, ENVIRONMENT, evaluated) == {}
    headline = load_config(CollectConfig, str(path.with_name("headline_collect.yaml")), {})
    assert len(collected.tasks) == len(headline.tasks)
    assert collected.episodes_per_task == headline.episodes_per_task
