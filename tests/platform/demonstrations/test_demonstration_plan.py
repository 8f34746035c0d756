"""What is collected: a function of seed and index, and of the pretraining split alone."""

from __future__ import annotations

import dataclasses

import pytest

from dynaflip.errors import UserError
from dynaflip.eval.envs.metaworld_tasks import CAPTIONS
from dynaflip.eval.perturbations import SPLITS, belongs_to, unseen_factors
from dynaflip.platform.demonstrations.config import CollectConfig
from dynaflip.platform.demonstrations.plan import plan_episodes


def test_all_that_is_drawn_belongs_to_pretraining_and_to_no_other_split() -> None:
    config = CollectConfig(episodes_per_task=60)
    plans = plan_episodes(config)
    assert len(plans) == 60 * len(config.tasks)
    for plan in plans:
        drawn = {**plan.factors, "layout_seed": plan.layout_seed}
        assert [s for s in SPLITS if belongs_to(drawn, s)] == ["pretrain"], drawn
        assert not {*plan.factors} & {*unseen_factors()}
        for factor, value in plan.factors.items():  # each of them, not only the layout
            assert [s for s in SPLITS if belongs_to({factor: value}, s)] == ["pretrain"]


def test_no_setting_chooses_another_split() -> None:
    names = {field.name for field in dataclasses.fields(CollectConfig)}
    assert not {name for name in names if "split" in name or "level" in name or "factor" in name}


def test_an_episode_depends_on_seed_and_index_alone() -> None:
    few = plan_episodes(CollectConfig(episodes_per_task=2))
    many = plan_episodes(CollectConfig(episodes_per_task=9))
    assert many[: len(few)] == few
    assert plan_episodes(CollectConfig(seed=1, episodes_per_task=2)) != few


def test_shares_are_what_is_asked_for() -> None:
    plans = plan_episodes(CollectConfig(episodes_per_task=100))
    perturbed = sum("light_gain" in plan.factors for plan in plans) / len(plans)
    moving = sum(plan.moving_camera for plan in plans) / len(plans)
    assert perturbed == pytest.approx(0.5, abs=0.05)
    assert moving == pytest.approx(0.2, abs=0.05)
    assert all(("path" in p.factors.get("camera", {})) == p.moving_camera for p in plans)
    none = plan_episodes(CollectConfig(perturbed_share=0, moving_camera_share=0))
    assert all(plan.factors == {} for plan in none)


def test_default_tasks_have_several_phrasings() -> None:
    assert len(CollectConfig().tasks) >= 12
    for task in CollectConfig().tasks:
        assert len({*CAPTIONS[task]}) >= 3
    every = [caption for captions in CAPTIONS.values() for caption in captions]
    assert len(every) == len({*every})  # a caption means one task


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": ("fly-v3",)}, "fly-v3"),
        ({"tasks": ("drawer-open-v3", "drawer-open-v3")}, "tasks"),
        ({"episodes_per_task": 0}, "episodes_per_task"),
        ({"image_px": 33}, "image_px"),
        ({"perturbed_share": 1.5}, "perturbed_share"),
        ({"action_noise": -0.1}, "action_noise"),
        ({"max_steps": 501}, "max_steps"),
    ],
)
def test_mistakes_are_named(settings: dict, said: str) -> None:
    with pytest.raises((UserError, ValueError), match=said):
        CollectConfig(**settings)


def test_every_task_has_its_share_of_perturbed_and_of_moving_episodes() -> None:
    config = CollectConfig(episodes_per_task=12, perturbed_share=0.5, moving_camera_share=0.25)
    for task in config.tasks:
        plans = [plan for plan in plan_episodes(config) if plan.task == task]
        assert sum(bool(set(plan.factors) - {"camera"}) for plan in plans) == 6
        assert sum(plan.moving_camera for plan in plans) == 3
