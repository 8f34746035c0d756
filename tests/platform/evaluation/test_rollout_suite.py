"""A whole policy evaluation on real Ray, in the real simulator: right, resumable, comparable."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from checkout import REPOSITORY
from tiny_rollouts import compared, encoder_folder, tiny

from dynaflip.errors import UserError
from dynaflip.platform.tracking.store import client

if TYPE_CHECKING:
    from dynaflip.platform.evaluation.config import RolloutConfig
    from dynaflip.platform.evaluation.outcome import Outcome

pytestmark = [pytest.mark.ray, pytest.mark.sim]


@pytest.fixture(scope="module")
def module_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts")
    previous = os.environ["DYNAFLIP_HOME"]
    os.environ["DYNAFLIP_HOME"] = str(folder / "home")
    yield folder
    os.environ["DYNAFLIP_HOME"] = previous


def command(encoder: Path) -> list[str]:
    """What a user types for the settings of :func:`tiny`."""
    words = [sys.executable, "jobs/evaluate.py", "--suite", "rollouts", "--encoder", str(encoder)]
    words += ["--baselines", "initialization", "--tasks", "reach", "--seeds", "2"]
    words += ["--factors", '["light_tint"]', "--all_at_once", "false", "--episodes", "2"]
    words += ["--demonstrations", "3", "--image_px", "32", "--horizon_steps", "60"]
    words += ["--steps_after_success", "5", "--environments", "2", "--check_harness", "true"]
    words += ["--behaviour_cloning.hidden_dim", "16", "--behaviour_cloning.layers", "1"]
    return [*words, "--behaviour_cloning.steps", "50"]


@pytest.mark.integration
def test_a_killed_evaluation_goes_on_to_the_table_of_an_uninterrupted_one_and_is_right(
    module_home: Path, ray_cluster: None
) -> None:
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts

    encoder = encoder_folder(module_home / "encoder")
    home = module_home / "home"
    killed = subprocess.Popen(
        command(encoder),
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    cells = home / "evaluation" / "cells"
    deadline = time.monotonic() + 240
    while not list(cells.glob("*.json")) and killed.poll() is None:
        assert time.monotonic() < deadline, "no job was finished"
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    (begun,) = tracking.newest_run_names("policies")
    run_id = tracking.find_run(begun).run_id
    assert b"episodes: 2" in tracking.read_artifact(run_id, "config.yaml"), "a run without config"
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert before

    outcome = Rollouts().run(tiny(encoder))
    after = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert before.items() <= after.items(), "a finished job was run again"
    # Encoders of equal weights share jobs: trained is its own initialisation here.
    assert len(after) == 3 * 2 * 2

    name = "success_ever/proprioception/in_distribution"
    assert outcome.metrics[f"{name}/scripted_expert"] == 1
    assert outcome.metrics[f"{name}/random_policy"] < 1
    assert outcome.metrics[f"{name}/initialization/trained_minus_this"] == 0
    assert any("one pretraining seed" in note for note in outcome.notes)
    assert any("held out of pretraining: reach-v3" in note for note in outcome.notes)

    policies = home / "evaluation" / "policies"
    fitted = {path: path.read_bytes() for path in policies.iterdir()}
    for path in [*sorted(cells.iterdir())[::3], *fitted]:
        path.unlink()
    again = Rollouts().run(tiny(encoder))
    assert again.rows().equals(outcome.rows())
    assert again.table == outcome.table
    for path in policies.iterdir():
        assert path.read_bytes() == fitted[path], "fitted to other weights by the same seed"

    run = client().get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["perturbation_split"] == "dev"
    assert "test_look" not in run.data.tags
    # A network of random weights looks everywhere about evenly.
    assert 0 < outcome.metrics["gaze/robot/trained"] < 1
    assert outcome.metrics["gaze/robot/trained"] == outcome.metrics["gaze/robot/initialization"]
    page = outcome.report.read_text()
    assert page.count("data:image/webp") == 2, "unperturbed and perturbed, encoders side by side"
    assert outcome.verdict[0] in page.replace("&#x27;", "'")
    assert page.index(outcome.verdict[0][:20]) < page.index("<img") < page.index("<table")
    assert "http" not in page
    failed = outcome.rows().filter(~pl.col("success_ever"))
    assert failed["nearest_m"].is_not_null().all()
    assert (failed["nearest_m"] <= failed["end_m"]).all()
    assert "How failures ended" in outcome.table
    assert re.search(r"reach-v3, [^<]*</b><br>trained \(.*policy of seed 0, layout \d+", page)


def _with_one_policy(outcome: Outcome, folder: Path) -> str:
    """Id of a run with an evaluation's first policy alone: a version that was one of several."""
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.rollout_run import EPISODES_FILE, KIND

    run = tracking.open_run("dynaflip-evaluate", "one-policy", {"kind": KIND})
    settings = tracking.read_artifact(outcome.run_id, "config.yaml")
    run.log_text(str(settings, "utf-8"), "config.yaml")
    outcome.rows().filter(pl.col("seed") == 0).write_parquet(folder / EPISODES_FILE)
    run.log_file(folder / EPISODES_FILE)
    run.end("FINISHED")
    return run.run_id


@pytest.mark.integration
def test_runs_are_compared_in_pairs_and_promotion_asks_for_test(
    module_home: Path, ray_cluster: None
) -> None:
    from dynaflip.platform import tracking
    from dynaflip.platform.evaluation.evaluation_run import JOBS_TAG, count_test_evaluations
    from dynaflip.platform.evaluation.rollout_run import KIND
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts
    from dynaflip.platform.promotion import RUN_TAG, promote
    from dynaflip.platform.tracking import registry

    encoder = encoder_folder(module_home / "encoder")
    run = tracking.open_run("dynaflip-pretrain", "maker", {"kind": "pretrain"})
    registered = _registered(encoder, run, module_home / "registered")
    uri = f"models:/{registry.DEFAULT_NAME}/{registered}"
    on_dev = Rollouts().run(tiny(encoder, check_harness=False))
    shown = compared(on_dev.run_name, on_dev.run_id)
    assert "+0.0" in shown
    assert "not distinguishable" in shown
    with pytest.raises(UserError, match=r"has not been evaluated on test; run python"):
        promote(registry.DEFAULT_NAME, str(registered))

    on_test = Rollouts().run(tiny(Path(uri), split="test", check_harness=False))
    tags = client().get_run(on_test.run_id).data.tags
    assert tags["test_look"] == "1"
    assert count_test_evaluations(tags[JOBS_TAG], KIND) == 1, (
        "the same jobs are the same evaluation"
    )
    assert count_test_evaluations("others", KIND) == 2
    on_maker = client().list_artifacts(run.run_id, "evaluation")
    assert [artifact.path for artifact in on_maker] == [f"evaluation/{on_test.report.name}"]
    assert any("evaluation 1 on the test split" in note for note in on_test.notes)
    with pytest.raises(UserError, match="split"):
        compared(on_dev.run_name, on_test.run_name)
    with pytest.raises(UserError, match=r"lack assembly-v3, .*camera.*headline\.yaml"):
        promote(registry.DEFAULT_NAME, str(registered))
    scored = registry.version_tags(registry.DEFAULT_NAME, str(registered))
    name = "success_ever/proprioception/out_of_distribution"
    assert float(scored[f"test/{name}"]) == on_test.metrics[f"{name}/trained"]
    assert scored["policies_test_number"] == "2"
    assert registry.version_of_alias(registry.DEFAULT_NAME, "champion") is None

    headline = {"policies_test_breadth": "whole", RUN_TAG: "headline"}
    for key, value in headline.items():
        client().set_model_version_tag(registry.DEFAULT_NAME, str(registered), key, value)
    Rollouts().run(tiny(Path(uri), split="test", check_harness=False))
    kept = registry.version_tags(registry.DEFAULT_NAME, str(registered))
    assert kept.items() >= headline.items(), "narrow evidence in the place of the headline's"

    forced = promote(registry.DEFAULT_NAME, str(registered), force="a test of the alias")
    assert forced.promoted
    assert registry.version_of_alias(registry.DEFAULT_NAME, "champion") == str(registered)
    evidence = registry.version_tags(registry.DEFAULT_NAME, str(registered))["champion_evidence"]
    assert "a test of the alias" in evidence
    other = encoder_folder(module_home / "other", seed=5)
    maker = tracking.open_run("dynaflip-pretrain", "other-maker", {"kind": "pretrain"})
    borrowed = str(_registered(other, maker, module_home / "other-registered"))
    client().set_model_version_tag(registry.DEFAULT_NAME, borrowed, RUN_TAG, on_test.run_id)
    with pytest.raises(UserError, match="has evaluated other weights than those of"):
        promote(registry.DEFAULT_NAME, borrowed)
    with pytest.raises(UserError, match="does not exist"):
        promote(registry.DEFAULT_NAME, "99")
    alone = _with_one_policy(on_test, module_home)
    client().delete_registered_model_alias(registry.DEFAULT_NAME, "champion")
    client().set_model_version_tag(registry.DEFAULT_NAME, str(registered), RUN_TAG, alone)
    with pytest.raises(UserError, match="one-policy has 1 policy of its weights"):
        promote(registry.DEFAULT_NAME, str(registered))
    with pytest.raises(UserError, match="no run nothing-like-it"):
        compared("nothing-like-it", on_dev.run_name)


@pytest.mark.integration
@pytest.mark.parametrize(
    "change",
    [
        {"head": "diffusion"},
        {"multitask": True, "tasks": ("reach", "button-press-topdown")},
        {"adaptation": "lora"},
        {"adaptation": "full", "baselines": ("random",)},  # its random baseline is from scratch
    ],
    ids=["diffusion", "multitask", "lora", "full"],
)
def test_other_policies_than_cloning_on_a_frozen_encoder_go_the_same_way(
    module_home: Path, ray_cluster: None, change: dict
) -> None:
    from dynaflip.eval.policies.config import (
        BehaviourCloningConfig,
        DiffusionConfig,
        EndToEndConfig,
    )
    from dynaflip.platform.evaluation.suites.rollouts import Rollouts

    brief = {
        "diffusion": DiffusionConfig(hidden_dim=16, blocks=1, steps=50),
        "end_to_end": EndToEndConfig(steps=20, lora_rank=2),
        "check_harness": False,
        "seeds": 1,
    }
    if "adaptation" in change:  # steps are of frozen encoders' policies
        brief["behaviour_cloning"] = BehaviourCloningConfig(hidden_dim=16, layers=1)
    config = tiny(encoder_folder(module_home / "encoder"), **brief, **change)
    outcome = Rollouts().run(config)
    page = outcome.report.read_text()
    assert config.adaptation in page.split("</h1>")[0]
    assert ("Saliency on robot" in page) == (config.adaptation == "frozen")
    episodes = len(config.tasks) * 2 * len(("trained", "other")) * config.episodes
    assert len(outcome.rows()) == episodes
    (held_out,) = [note for note in outcome.notes if "held out" in note]
    assert "reach-v3" in held_out
    again = Rollouts().run(replace(config, keep_policies=False))
    assert again.table == outcome.table
    assert not client().list_artifacts(again.run_id, "policies")
    _check_kept(config, outcome, module_home / f"exported-{config.head}-{config.adaptation}")


def _check_kept(config: RolloutConfig, outcome: Outcome, exported: Path) -> None:
    """The run's policy, loaded and exported, begins an episode as the run's own did."""
    import dynaflip
    from dynaflip.eval.envs.registry import environment
    from dynaflip.eval.rollout import Observation
    from dynaflip.jobs import export
    from dynaflip.platform.evaluation import cache
    from dynaflip.platform.evaluation.encoders_under_test import load
    from dynaflip.platform.evaluation.plan import prepare
    from dynaflip.platform.evaluation.policy_fits import fitted_policy

    name = "multitask-seed0" if config.multitask else "reach-v3-seed0"
    uri = f"runs:/{outcome.run_name}/policies/{name}"
    (note,) = [note for note in outcome.notes if "dynaflip.load_policy" in note]
    assert f'dynaflip.load_policy("{uri}")' in note
    assert ('.act(image, proprioception, task="' in note) == config.multitask
    assert export.main([uri, str(exported)]) == 0

    job = next(job for job in prepare(config)[1] if job.under_test == "trained")
    spec, px = job.policy, config.image_px
    own = fitted_policy(spec, cache.load_policy(spec.digest()), load(spec.encoder), job.task)
    scene = environment(config.environment).open(job.task, height_px=px, width_px=px)
    scene.reset(job.starts[0].layout_seed)
    image, state = scene.rgb(), scene.proprioception()
    scene.close()
    expected = own.act(Observation(image[None], state[None].astype(np.float32)))[0]
    for place in (uri, exported):
        actions = dynaflip.load_policy(place).act(image, state, job.task)
        np.testing.assert_array_equal(actions, expected)

    with pytest.raises(UserError, match=f"has no policy nothing; it has: {name}"):
        dynaflip.load_policy(uri.replace(name, "nothing"))
    with pytest.raises(UserError, match="there is no run nothing"):
        dynaflip.load_policy(uri.replace(outcome.run_name, "nothing"))


def _registered(encoder: Path, run, folder: Path) -> int:
    """The encoder as a registered version that its run made."""
    import json
    import shutil

    from dynaflip.platform.tracking import registry

    shutil.copytree(encoder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["info"]["mlflow_run_id"] = run.run_id
    (folder / "config.json").write_text(json.dumps(config))
    version = registry.register(folder, run)
    run.end("FINISHED")
    return version
