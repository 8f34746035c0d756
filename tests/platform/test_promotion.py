"""Promotion by evidence: only the better one, by the right sign, on enough of everything."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_rollouts import compared, encoder_folder

from dynaflip.errors import UserError
from dynaflip.eval.envs.metaworld_tasks import TASK_SETS
from dynaflip.eval.perturbations import FACTORS
from dynaflip.platform.evaluation.config import RolloutConfig
from dynaflip.platform.tracking.store import client

NAME = "promotion-test"
CONFIG = RolloutConfig(split="test", all_at_once=False, baselines=("initialization",))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    previous = os.environ["DYNAFLIP_HOME"]
    os.environ["DYNAFLIP_HOME"] = str(tmp_path / "home")
    yield tmp_path
    os.environ["DYNAFLIP_HOME"] = previous


def evaluated(
    folder: Path,
    inside: float,
    outside: float,
    *,
    config: RolloutConfig = CONFIG,
    tasks: tuple[str, ...] = TASK_SETS["r3m5"],
    factors: tuple[str, ...] = FACTORS,
    level: int = 3,
    recorded: str | None = None,
    simulator: str | None = None,
) -> tuple[str, str]:
    """A registered version and the run that found it to succeed that often on ``test``.

    ``recorded`` is the list of factors that there were; None, as runs of before have it: no list.

    Its initialisation succeeds in 0.5 of the episodes in distribution and 0.2 out of it. Layouts
    are as hard for all, and a policy's luck is its own.
    """
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.encoders_under_test import weights_digest
    from dynaflip.platform.evaluation.evaluation_run import FACTORS_TAG
    from dynaflip.platform.evaluation.plan import ROLLOUT_VERSION
    from dynaflip.platform.evaluation.rollout_run import (
        EPISODES_FILE,
        KIND,
        SIMULATOR_TAG,
        VERSION_TAG,
    )
    from dynaflip.platform.promotion import RUN_TAG
    from dynaflip.platform.tracking import registry

    number = len(list(folder.glob("encoder-*")))
    encoder = encoder_folder(folder / f"encoder-{number}", seed=number)
    maker = tracking.open_run("dynaflip-pretrain", f"maker-{number}", {"kind": "pretrain"})
    version = str(registry.register(encoder, maker, name=NAME))
    maker.end("FINISHED")
    digest = weights_digest(f"models:/{NAME}/{version}")
    shape = (len(tasks), config.episodes)
    hardness = np.stack(  # of a condition the same, whichever others there are
        [np.random.default_rng(c).random(shape) for c in range(1 + len(factors))], axis=1
    )
    rows = []
    for arm, rates in (("trained", (inside, outside)), ("initialization", (0.5, 0.2))):
        for seed in range(config.seeds):
            luck = np.random.default_rng([number, seed, len(arm)]).normal(0, 0.02, hardness.shape)
            for t, task in enumerate(tasks):
                for c, factor in enumerate(("none", *factors)):
                    won = hardness[t, c] + luck[t, c] < rates[factor != "none"]
                    rows += [
                        {
                            "arm": arm, "encoder": arm, "seed": seed, "task": task, "episode": e,
                            "encoder_digest": digest if arm == "trained" else "initial",
                            "proprioception": True, "factor": factor,
                            "level": 0 if factor == "none" else level, "layout_seed": e,
                            "success_ever": bool(won[e]), "success_last": bool(won[e]), "steps": 9,
                        }
                        for e in range(config.episodes)
                    ]  # fmt: skip
    tags = {"kind": KIND, VERSION_TAG: ROLLOUT_VERSION}
    tags |= {} if recorded is None else {FACTORS_TAG: recorded}
    tags |= {} if simulator is None else {SIMULATOR_TAG: simulator}
    run = tracking.open_run("dynaflip-evaluate", f"policies-{number}", tags)
    run.log_settings(config)
    pl.DataFrame(rows).write_parquet(folder / EPISODES_FILE)
    run.log_file(folder / EPISODES_FILE)
    run.end("FINISHED")
    client().set_model_version_tag(NAME, version, RUN_TAG, run.run_id)
    return version, run.run_name


def champion() -> str | None:
    from dynaflip.platform.tracking import registry

    return registry.version_of_alias(NAME, "champion")


def test_the_better_one_is_promoted_over_the_worse_and_not_the_other_way(store: Path) -> None:
    from dynaflip.platform.promotion import promote
    from dynaflip.platform.tracking import registry

    good, good_run = evaluated(store, inside=0.5, outside=0.4)
    first = promote(NAME, good)
    assert first.promoted, first.explanation
    assert champion() == good
    evidence = json.loads(registry.version_tags(NAME, good)["champion_evidence"])
    gain, low, high = evidence["differences"]["out of distribution"]
    assert 0.1 < low < gain < high < 0.3
    assert evidence["instead_of"] is None
    assert evidence["tasks"] == list(TASK_SETS["r3m5"])
    assert set(evidence["conditions"]) == {f"{factor}-3" for factor in FACTORS}

    worse, worse_run = evaluated(store, inside=0.5, outside=0.3)
    refused = promote(NAME, worse)
    assert not refused.promoted
    assert "must be above 0" in refused.explanation
    assert champion() == good
    for runs, sign, verdict in (((good_run, worse_run), "+", "better"),
                                ((worse_run, good_run), "-", "worse")):  # fmt: skip
        (row,) = [line for line in compared(*runs).splitlines() if "out of distribution" in line]
        assert row.split()[-1] == verdict
        assert f" {sign}1" in row

    best, best_run = evaluated(store, inside=0.5, outside=0.6)
    shown = compared(good_run, worse_run, best_run).splitlines()
    rows = [line.split() for line in shown if line.strip().startswith("out of distribution")]
    assert [row[3] for row in rows] == [worse_run, best_run]
    verdicts = [" ".join(row[-2:]) for row in rows]  # plain, and with Holm's correction
    assert verdicts == ["better better", "worse worse"]
    assert promote(NAME, best).promoted, "equal in distribution is enough"
    assert champion() == best
    evidence = json.loads(registry.version_tags(NAME, best)["champion_evidence"])
    assert evidence["instead_of"] == good


def test_a_comparison_has_a_page_and_a_run_that_begin_with_its_verdict(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dynaflip.jobs import evaluate
    from dynaflip.platform import tracking

    small = {"tasks": ("drawer-open-v3",), "factors": ("light_tint", "camera")}
    (_, good), (_, worse), (_, same) = (
        evaluated(store, inside=0.5, outside=outside, **small) for outside in (0.8, 0.3, 0.8)
    )
    assert evaluate.main(["compare", good, worse, same]) == 0
    printed = capsys.readouterr().out.splitlines()
    (verdict,) = [line for line in printed if line.startswith("Out of distribution on test, ")]
    assert f"more often than dynaflip-encoder@candidate ({worse}) [" in verdict
    assert verdict.endswith("holds with Holm's correction for 2 comparisons): better.")
    unclear = [line for line in printed if line.startswith("Not distinguishable: ")]
    assert [worse in line for line in unclear] == [False, True, False], "in distribution none is"
    (path,) = [line.removeprefix("report: ") for line in printed if line.startswith("report: ")]
    page = html.unescape(Path(path).read_text())
    assert page.index(f'class="verdict">{verdict}') < page.index("<img") < page.index("<table")
    assert f"camera, over dynaflip-encoder@candidate ({same}): +" in page
    run = tracking.find_run(Path(path).stem)
    assert run is not None
    assert run.tags["mlflow.note.content"].startswith(f"**{verdict}**")
    assert tracking.read_artifact(run.run_id, Path(path).name) is not None


def test_what_is_lost_in_distribution_is_not_made_up_for_out_of_it(store: Path) -> None:
    from dynaflip.platform.promotion import promote

    version, _ = evaluated(store, inside=0.35, outside=0.6)
    refused = promote(NAME, version)
    assert not refused.promoted
    assert "in distribution -1" in refused.explanation
    assert champion() is None


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        ({"tasks": ("drawer-open-v3",)}, "assembly-v3, bin-picking-v3"),
        ({"factors": ("light_tint", "camera")}, "distractors-3, floor-3"),
        ({"level": 1}, "camera-3, distractors-3"),
        ({"config": replace(CONFIG, episodes=5)}, "20 episodes per job"),
        ({"config": replace(CONFIG, adaptation="lora")}, "frozen encoders"),
    ],
    ids=["tasks", "factors", "level", "episodes", "tuned"],
)
def test_narrow_evidence_is_refused(store: Path, change: dict, lacks: str) -> None:
    from dynaflip.platform.promotion import promote

    version, _ = evaluated(store, inside=0.6, outside=0.6, **change)
    with pytest.raises(UserError, match=f"lack {lacks}") as refused:
        promote(NAME, version)
    assert "--env metaworld --tasks '[\"" in str(refused.value), "what to type there"
    assert champion() is None


def test_a_new_factor_leaves_an_old_champion_s_evidence_valid(store: Path) -> None:
    from dynaflip.platform.promotion import promote
    from dynaflip.platform.tracking import registry

    old, _ = evaluated(store, inside=0.5, outside=0.4)
    assert promote(NAME, old).promoted, "a run without a list has the factors of its time"
    more = (*FACTORS, "fog")
    without, _ = evaluated(store, inside=0.5, outside=0.6, recorded=",".join(more))
    with pytest.raises(UserError, match="lack fog-3"):
        promote(NAME, without)
    better, _ = evaluated(store, inside=0.5, outside=0.6, factors=more, recorded=",".join(more))
    assert promote(NAME, better).promoted
    evidence = json.loads(registry.version_tags(NAME, better)["champion_evidence"])
    assert set(evidence["conditions"]) == {f"{factor}-3" for factor in FACTORS}, "what both have"
    assert evidence["factors"] == list(more)


def test_policies_of_many_tasks_are_pairs_where_they_learnt_the_same_tasks(store: Path) -> None:

    many = replace(CONFIG, multitask=True)
    _, five = evaluated(store, inside=0.5, outside=0.4, config=many)
    _, ten = evaluated(store, inside=0.5, outside=0.4, config=replace(many, tasks=("mt10",)))
    with pytest.raises(UserError, match=r"has tasks \['assembly-v3'"):
        compared(five, ten)


def test_runs_whose_episodes_are_no_pairs_are_refused(store: Path) -> None:
    from dynaflip.platform.evaluation.compare import paired_groups
    from dynaflip.platform.evaluation.rollout_run import SIMULATOR_TAG, read_evaluation

    _, mine = evaluated(store, inside=0.5, outside=0.4)
    _, theirs = evaluated(store, inside=0.5, outside=0.4)
    found = read_evaluation(mine)
    of_two = replace(found, episodes=found.episodes.filter(pl.col("seed") < 2))
    with pytest.raises(UserError, match=r"2 policies of these weights, policies-1 3: .* no pairs"):
        paired_groups(of_two, read_evaluation(theirs), proprioception=True)
    for run, simulator in ((mine, "mujoco 3.2.0"), (theirs, "mujoco 3.3.0")):
        assert "out of distribution" in compared(mine, theirs)
        run_id = read_evaluation(run).run_id
        client().set_tag(run_id, SIMULATOR_TAG, simulator)
    with pytest.raises(UserError, match=r"rolled out in mujoco 3.2.0, policies-1 in mujoco 3.3.0"):
        compared(mine, theirs)


def test_versions_of_another_simulator_or_environment_are_no_pairs(store: Path) -> None:
    from dynaflip.platform.promotion import promote

    old, old_run = evaluated(store, inside=0.5, outside=0.4, simulator="metaworld 3.0")
    assert promote(NAME, old).promoted
    new, new_run = evaluated(store, inside=0.5, outside=0.6, simulator="metaworld 3.1")
    both = r"in metaworld 3\.\d, .* in metaworld 3\.\d: their episodes are no pairs"
    with pytest.raises(UserError, match=both):
        promote(NAME, new)
    with pytest.raises(UserError, match=both):
        compared(old_run, new_run)
    assert champion() == old


def test_a_class_of_the_users_own_is_promoted_where_they_name_it_again(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynaflip.platform.evaluation.compare import comparison_sections, read_runs
    from dynaflip.platform.promotion import promote

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "eval"))
    own = "class:outside_environment:ENVIRONMENT"
    config = RolloutConfig(
        split="test", environment=own, all_at_once=False, baselines=("initialization",)
    )
    fog = ("class:outside_environment:FOG",)
    made = {"config": config, "tasks": ("reach",), "factors": fog, "recorded": ",".join(fog)}
    first, first_run = evaluated(store, inside=0.5, outside=0.5, **made)
    second, second_run = evaluated(store, inside=0.5, outside=0.9, **made)
    line = f"if it is yours, add --environment {own}"
    for attempt in (
        lambda: promote(NAME, first),
        lambda: comparison_sections(read_runs(first_run, [second_run])),
    ):
        with pytest.raises(UserError, match=line):
            attempt()
    with pytest.raises(UserError, match=f"ran in {own}, not in metaworld"):
        promote(NAME, first, environment="metaworld")
    with pytest.raises(UserError, match=f"ran in {own}, not in metaworld"):
        comparison_sections(read_runs(first_run, [second_run], "metaworld"))
    assert comparison_sections(read_runs(second_run, [first_run], own))
    assert promote(NAME, second, environment=own).promoted
    assert champion() == second
