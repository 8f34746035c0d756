"""Cells: equal for every encoder, never of pretraining's split, named by what they depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_rollouts import encoder_folder, tiny

from dynaflip.errors import UserError
from dynaflip.eval.envs.metaworld_task_sets import TASK_SETS, tasks_of
from dynaflip.eval.envs.metaworld_tasks import KNOWN_TASKS
from dynaflip.eval.perturbations import belongs_to
from dynaflip.eval.policies.config import BehaviourCloningConfig
from dynaflip.platform.evaluation.demonstrations import DemonstrationSet
from dynaflip.platform.evaluation.encoders_under_test import Arm, Encoder, resolve_arms
from dynaflip.platform.evaluation.plan import Cell, conditions_of, plan_cells
from dynaflip.platform.evaluation.rollout_config import RolloutConfig

VARIANTS = [
    Arm("trained", (Encoder("a", "/a", "digest-a"), Encoder("b", "/b", "digest-b"))),
    Arm("random", (Encoder("c", "/c", "digest-c"),)),
]


def cells_of(config: RolloutConfig) -> list[Cell]:
    shown = {
        task: DemonstrationSet(task, f"/{task}", f"digest-{task}", 25) for task in TASK_SETS["r3m5"]
    }
    return plan_cells(config, VARIANTS, shown)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_initial_state_belongs_to_its_split_and_is_the_same_for_every_arm(split: str) -> None:
    config = tiny(
        Path("x"), split=split, factors=(), all_at_once=True, levels=(1, 3, 5), episodes=4
    )
    by_place: dict[tuple, list] = {}
    for cell in cells_of(config):
        for start in cell.starts:
            drawn = {**start.factors, "layout_seed": start.layout_seed}
            other = "test" if split == "dev" else "dev"
            assert belongs_to(drawn, split)
            assert not belongs_to(drawn, other)
            assert not belongs_to(drawn, "pretrain")
        by_place.setdefault((cell.task, cell.condition), []).append(cell.starts)
    assert len(by_place) == 5 * (1 + 11 * 3)
    for starts in by_place.values():
        assert len(starts) == 4  # arms x seeds
        assert all(other == starts[0] for other in starts)


def test_each_policy_has_its_pretraining_seed() -> None:
    cells = cells_of(tiny(Path("x"), seeds=2))
    used = {(c.arm, c.policy.seed): c.policy.encoder.digest for c in cells}
    assert [used["trained", k] for k in range(2)] == ["digest-a", "digest-b"]
    assert {used["random", k] for k in range(2)} == {"digest-c"}


def test_policies_and_pretraining_seeds_that_do_not_match_are_refused(tmp_path: Path) -> None:
    folders = [str(encoder_folder(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    config = tiny(Path(",".join(folders)), seeds=3, baselines=())
    with pytest.raises(UserError, match="trained has 2 pretraining seeds; give --seeds 2"):
        resolve_arms(config)
    # Promotion would take it for the initialisation.
    weaker = replace(config, arms=(f"initialization={folders[0]}",))
    with pytest.raises(UserError, match="initialization is the name of an arm that is made here"):
        resolve_arms(weaker)
    arms = resolve_arms(replace(config, seeds=2, baselines=("initialization", "imagenet")))
    assert [len(arm.encoders) for arm in arms[:3]] == [2, 2, 1]


def test_a_digest_changes_with_what_a_result_depends_on_and_with_nothing_else() -> None:
    config = tiny(Path("x"))
    first = cells_of(config)[1]
    assert first.condition.factor == "light_tint"
    same = replace(config, environments=7, experiment="other", check_harness=False)
    assert cells_of(same)[1].digest() == first.digest()
    for change in (
        {"seed": 1},
        {"horizon_steps": 61},
        {"image_px": 48},
        {"split": "test"},
        {"episodes": 3},
        {"head": "diffusion"},
        {"proprioception": (False,)},
        {"multitask": True},
        {
            "adaptation": "lora",
            "behaviour_cloning": BehaviourCloningConfig(hidden_dim=16, layers=1),
        },
        {"behaviour_cloning": replace(config.behaviour_cloning, steps=51)},
    ):
        assert cells_of(replace(config, **change))[1].digest() != first.digest(), change
    assert len({cell.digest() for cell in cells_of(config)}) == len(cells_of(config))


def test_conditions_are_unperturbed_then_factors_by_level_then_all() -> None:
    config = RolloutConfig(factors=("camera",), levels=(1, 3))
    names = [condition.name for condition in conditions_of(config)]
    assert names == ["none", "camera-1", "camera-3", "all-1", "all-3"]


def test_suites_name_tasks_that_can_be_demonstrated_and_unknown_ones_list_those() -> None:
    for tasks in TASK_SETS.values():
        assert set(tasks) <= set(KNOWN_TASKS)
    assert [len(TASK_SETS[name]) for name in ("r3m5", "mt10", "mw15")] == [5, 10, 15]
    assert tasks_of(["r3m5", "hammer", "reach-v3"], KNOWN_TASKS)[-2:] == ("hammer-v3", "reach-v3")
    with pytest.raises(UserError, match=r"no task or set juggle; sets: r3m5.*assembly-v3"):
        tasks_of(["juggle"], KNOWN_TASKS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"factors": ("fog",)}, "factors: there is no fog"),
        ({"levels": (6,)}, "levels: there is no 6"),
        ({"levels": (3, 3)}, "levels: 3 stands there twice"),
        ({"factors": ("camera", "camera")}, "factors: camera stands there twice"),
        (
            {"adaptation": "full", "behaviour_cloning": BehaviourCloningConfig(steps=9)},
            "behaviour_cloning.steps is of frozen encoders; .* set end_to_end's",
        ),
        ({"split": "pretrain"}, "split must be one of dev, test"),
        ({"baselines": ("clip",)}, "baselines: there is no clip; known: initialization"),
        ({"arms": ("no uri",)}, "must read NAME=URI"),
        ({"arms": ("flow+time=a",)}, "the name 'flow\\+time' may hold letters"),
        ({"horizon_steps": 501}, "horizon_steps must be at most 500"),
        ({"episodes": 0}, "episodes must be at least 1"),
        ({"head": "transformer"}, "head must be one of"),
        ({"adaptation": "half"}, "adaptation must be one of frozen, lora, full"),
        ({"adaptation": "full", "head": "diffusion"}, "goes with head behaviour_cloning"),
        ({"proprioception": ()}, "proprioception must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RolloutConfig(**change)
