"""Evaluation jobs: equal for every encoder, never of pretraining's split, named by their recipe."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_rollouts import encoder_folder, tiny

from dynaflip import plugins
from dynaflip.errors import UserError
from dynaflip.eval import perturbations
from dynaflip.eval.envs.metaworld_tasks import ENVIRONMENT, TASK_SETS
from dynaflip.eval.expert_views import ALL_FACTORS
from dynaflip.eval.perturbations import Factor, belongs_to
from dynaflip.eval.policies.config import BehaviourCloningConfig, DiffusionConfig, EndToEndConfig
from dynaflip.eval.policies.readouts.config import AttentiveConfig, SpatialSoftmaxConfig
from dynaflip.platform.evaluation.attention import shown_conditions
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.evaluation.demonstrations import DemonstrationSet
from dynaflip.platform.evaluation.encoders_under_test import (
    Encoder,
    EncoderUnderTest,
    resolve_encoders,
)
from dynaflip.platform.evaluation.plan import Condition, EvaluationJob, conditions_of, plan_jobs
from dynaflip.platform.evaluation.probe_config import ViewsConfig

TESTED = [
    EncoderUnderTest("trained", (Encoder("a", "/a", "digest-a"), Encoder("b", "/b", "digest-b"))),
    EncoderUnderTest("random", (Encoder("c", "/c", "digest-c"),)),
]


def jobs_of(config: RolloutConfig) -> list[EvaluationJob]:
    shown = {
        task: DemonstrationSet(task, f"/{task}", f"digest-{task}", 25) for task in TASK_SETS["r3m5"]
    }
    return plan_jobs(config, TESTED, shown)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_initial_state_belongs_to_its_split_and_is_the_same_for_every_encoder(
    split: str,
) -> None:
    config = tiny(
        Path("x"), split=split, factors=(), all_at_once=True, levels=(1, 3, 5), episodes=4
    )
    by_place: dict[tuple, list] = {}
    for job in jobs_of(config):
        for start in job.starts:
            drawn = {**start.factors, "layout_seed": start.layout_seed}
            other = "test" if split == "dev" else "dev"
            assert belongs_to(drawn, split)
            assert not belongs_to(drawn, other)
            assert not belongs_to(drawn, "pretrain")
        by_place.setdefault((job.task, job.condition), []).append(job.starts)
    assert len(by_place) == 5 * (1 + 11 * 3)
    for starts in by_place.values():
        assert len(starts) == 4  # encoders x seeds
        assert all(other == starts[0] for other in starts)


def test_each_policy_has_its_pretraining_seed() -> None:
    jobs = jobs_of(tiny(Path("x"), seeds=2))
    used = {(j.under_test, j.policy.seed): j.policy.encoder.digest for j in jobs}
    assert [used["trained", k] for k in range(2)] == ["digest-a", "digest-b"]
    assert {used["random", k] for k in range(2)} == {"digest-c"}


def test_policies_and_pretraining_seeds_that_do_not_match_are_refused(tmp_path: Path) -> None:
    folders = [str(encoder_folder(tmp_path / name, seed)) for seed, name in enumerate("ab")]
    config = tiny(Path(",".join(folders)), seeds=3, baselines=())
    with pytest.raises(UserError, match="trained has 2 pretraining seeds; give --seeds 2"):
        resolve_encoders(config)
    # Promotion would take it for the initialisation.
    weaker = replace(config, encoders=(f"initialization={folders[0]}",))
    with pytest.raises(UserError, match="initialization is the name of a baseline that is built"):
        resolve_encoders(weaker)
    tested = resolve_encoders(replace(config, seeds=2, baselines=("initialization", "imagenet")))
    assert [len(entry.encoders) for entry in tested[:3]] == [2, 2, 1]


def test_a_digest_changes_with_what_a_result_depends_on_and_with_nothing_else() -> None:
    config = tiny(Path("x"))
    first = jobs_of(config)[1]
    assert first.condition.factor == "light_tint"
    same = replace(config, environments=7, experiment="other", check_harness=False)
    assert jobs_of(same)[1].digest() == first.digest()
    for change in (
        {"seed": 1},
        {"horizon_steps": 61},
        {"image_px": 48},
        {"split": "test"},
        {"episodes": 3},
        {"head": "diffusion"},
        {"readout": "attentive"},
        {"readout": "spatial_softmax"},
        {"readout": "spatial_softmax", "spatial_softmax": SpatialSoftmaxConfig(maps=8)},
        {"proprioception": (False,)},
        {"multitask": True},
        {
            "adaptation": "lora",
            "behaviour_cloning": BehaviourCloningConfig(hidden_dim=16, layers=1),
        },
        {"behaviour_cloning": replace(config.behaviour_cloning, steps=51)},
    ):
        assert jobs_of(replace(config, **change))[1].digest() != first.digest(), change
    assert len({job.digest() for job in jobs_of(config)}) == len(jobs_of(config))


def test_settings_without_a_read_out_are_digested_as_before_there_was_one() -> None:
    from dynaflip.renames import first_settings

    pooled, attentive = RolloutConfig(), RolloutConfig(readout="attentive")
    assert {"readout", "readout_settings", "attentive"}.isdisjoint(first_settings(pooled))
    assert first_settings(attentive)["readout"] == "attentive"


def test_a_read_out_s_settings_are_those_of_its_section_or_by_name() -> None:
    chosen = RolloutConfig(readout="attentive", attentive=AttentiveConfig(width=8, heads=2))
    own = {"scales": 1, "width": 8, "heads": 2, "queries": 1}
    assert chosen.settings_of_readout() == own
    assert jobs_of(chosen)[0].policy.readout_settings == own
    outside = RolloutConfig(readout="class:a:B", readout_settings={"bottom": True})
    assert outside.settings_of_readout() == {"bottom": True}


def test_conditions_are_unperturbed_then_factors_by_level_then_all() -> None:
    config = RolloutConfig(factors=("camera",), levels=(1, 3))
    names = [condition.name for condition in conditions_of(config)]
    assert names == ["none", "camera-1", "camera-3", "all-1", "all-3"]


def test_tasks_are_the_environment_s_and_an_empty_list_takes_its_recommendation() -> None:
    assert RolloutConfig().tasks == ENVIRONMENT.tasks_for("evaluate")
    assert set(ENVIRONMENT.tasks_to_promote_on()) <= set(ENVIRONMENT.tasks)
    with pytest.raises(UserError, match=r"no task or set juggle; sets: r3m5.*assembly-v3"):
        RolloutConfig(tasks=("juggle",))


BARE_ENVIRONMENT = """
from dynaflip.eval.envs.base import EnvironmentSpec

ENVIRONMENT = EnvironmentSpec(
    name="bare", make=print, captions={"reach": ("reach the block",), "push": ("push it",)},
    action_names=("x", "y"), proprioception_names=("x", "y"), control_hz=20.0, horizon_steps=40,
    camera="top",
)
"""


def test_an_environment_without_factors_has_one_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare_environment.py").write_text(BARE_ENVIRONMENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "class:bare_environment:ENVIRONMENT"
    config = RolloutConfig(environment=name, seeds=2, episodes=2)
    assert (config.horizon_steps, ViewsConfig(environment=name).horizon_steps) == (40, 40)
    assert (RolloutConfig().horizon_steps, ViewsConfig().horizon_steps) == (150, 150)
    assert config.tasks == ("reach", "push")
    assert [condition.name for condition in conditions_of(config)] == ["none"]
    shown = {task: DemonstrationSet(task, "/x", "d", 25, name) for task in config.tasks}
    assert shown["push"].caption == "push it"
    jobs = plan_jobs(config, TESTED, shown)
    assert len(jobs) == len({job.digest() for job in jobs}) == 8
    with pytest.raises(ValueError, match="horizon_steps must be at most 40: bare ends there"):
        RolloutConfig(environment=name, horizon_steps=41)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"factors": ("fog",)}, "factors: there is no factor 'fog'"),
        ({"levels": (6,)}, "levels: there is no 6"),
        ({"levels": (3, 3)}, "levels: 3 is given twice"),
        ({"factors": ("camera", "camera")}, "factors: camera is given twice"),
        (
            {"adaptation": "full", "behaviour_cloning": BehaviourCloningConfig(steps=9)},
            "behaviour_cloning.steps is for frozen encoders; .* set end_to_end's",
        ),
        ({"split": "pretrain"}, "split must be one of dev, test"),
        ({"baselines": ("clip",)}, "baselines: there is no clip; known: initialization"),
        ({"encoders": ("no uri",)}, "must read NAME=URI"),
        ({"encoders": ("flow+time=a",)}, "the name 'flow\\+time' may hold letters"),
        ({"horizon_steps": 501}, "horizon_steps must be at most 500"),
        ({"environment": "nowhere"}, "environment: there is no environment 'nowhere'"),
        ({"episodes": 0}, "episodes must be at least 1"),
        (
            {"head": "transformer"},
            "head: there is no policy head 'transformer'; known: behaviour_cl",
        ),
        ({"head_settings": {"width": 3}}, "head_settings: head behaviour_cloning has a section"),
        ({"adaptation": "half"}, "adaptation must be one of frozen, lora, full"),
        ({"adaptation": "full", "head": "diffusion"}, "goes with head behaviour_cloning"),
        ({"readout": "attention"}, "readout: there is no readout 'attention'.*known: pooled, "),
        ({"readout_settings": {"maps": 3}}, "read-out pooled has no settings"),
        (
            {"readout": "attentive", "readout_settings": {"width": 8}},
            "readout_settings: read-out attentive has a section of that name",
        ),
        (
            {"attentive": AttentiveConfig(width=8)},
            "attentive is read with readout attentive alone, not pooled",
        ),
        (
            {"readout": "attentive", "spatial_softmax": SpatialSoftmaxConfig(maps=8)},
            "spatial_softmax is read with readout spatial_softmax alone, not attentive",
        ),
        (
            {"readout": "attentive", "adaptation": "lora"},
            "readout attentive reads frozen .*lora with readout pooled",
        ),
        ({"proprioception": ()}, "proprioception must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RolloutConfig(**change)


def test_policies_of_different_read_outs_are_no_pairs() -> None:
    import polars as pl

    from dynaflip.platform.evaluation.compare import check_same_protocol
    from dynaflip.platform.evaluation.rollout_run import FinishedEvaluation

    def finished(name: str, **changes: object) -> FinishedEvaluation:
        settings = asdict(tiny(Path("x"), **changes))
        return FinishedEvaluation(name, name, settings, pl.DataFrame(), "", "3", "", ())

    old = finished("old")
    for added in ("readout", "readout_settings", "attentive", "spatial_softmax"):
        del old.settings[added]  # of before there were read-outs
    check_same_protocol(old, finished("new"))
    attentive = finished("a", readout="attentive")
    check_same_protocol(attentive, attentive)
    with pytest.raises(UserError, match="old has readout pooled, a attentive"):
        check_same_protocol(old, attentive)
    other = finished("b", readout="attentive", attentive=AttentiveConfig(width=8))
    with pytest.raises(UserError, match=r"a has attentive .*'width': 64.* b .*'width': 8"):
        check_same_protocol(attentive, other)
    with pytest.raises(UserError, match="new has source None, own mine: their episodes are no"):
        check_same_protocol(finished("new"), finished("own", source="mine"))
    moved = replace(finished("moved", source="there"), recordings={"reach": "a", "push": "b"})
    here = replace(finished("here", source="here"), recordings={"reach": "a"})
    check_same_protocol(moved, here)  # the same recordings at another place
    with pytest.raises(UserError, match=r"moved learnt reach from other recordings \(a\).* \(c\)"):
        check_same_protocol(moved, replace(here, recordings={"reach": "c"}))


def test_the_highest_level_is_shown_whatever_their_order() -> None:
    def job(factor: str, level: int) -> Any:
        return SimpleNamespace(condition=Condition(factor, level))

    def shown(*conditions: tuple[str, int]) -> list[tuple[str, int]]:
        jobs = [job("none", 0), *(job(*one) for one in conditions)]
        return [(one.factor, one.level) for one in shown_conditions(jobs)[1:]]

    assert shown(("light", 5), ("light", 3)) == [("light", 5)]
    assert shown(("light", 5), ("camera", 3)) == [("camera", 3)]
    together = (ALL_FACTORS, 5), (ALL_FACTORS, 3)
    assert shown(*together, ("camera", 5)) == [(ALL_FACTORS, 5)]


def test_the_code_of_own_heads_and_factors_is_part_of_what_a_result_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "edited_meanwhile.py"
    monkeypatch.syspath_prepend(tmp_path)
    head, factor = "class:edited_meanwhile:HEAD", "class:edited_meanwhile:FOG"
    fog = Factor(lambda value: {"u": value["u"]}, lambda env, value, amount: None)
    monkeypatch.setitem(perturbations.FACTOR_TABLE._loaded, factor, fog)

    def digests(**changes: Any) -> tuple[str, str]:
        plugins._source_of.cache_clear()  # as a new process
        config = tiny(Path("x"), all_at_once=False, **changes)
        job = jobs_of(config)[-1]
        return job.policy.digest(), job.digest()

    file.write_text("A = 1\n")
    by_head, by_factor, built_in = digests(head=head), digests(factors=(factor,)), digests()
    file.write_text("A = 2\n")
    assert digests(head=head)[0] != by_head[0]
    policy, job = digests(factors=(factor,))
    assert policy == by_factor[0]
    assert job != by_factor[1]
    assert digests() == built_in


def test_batches_of_one_are_refused_where_a_batch_norms() -> None:
    for make in (BehaviourCloningConfig, DiffusionConfig, EndToEndConfig):
        with pytest.raises(ValueError, match="batch_size"):
            make(batch_size=1)
    assert BehaviourCloningConfig(batch_size=1, input_norm="std_floor").batch_size == 1
