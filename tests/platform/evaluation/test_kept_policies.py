"""A policy's folder acts as the evaluation's own policy did, and says what does not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkout import REPOSITORY
from test_light_use import bare
from tiny_rollouts import encoder_folder

import dynaflip
from dynaflip.errors import UserError
from dynaflip.eval.rollout import Observation
from dynaflip.platform.evaluation import cache
from dynaflip.platform.evaluation.demonstrations import DemonstrationFrames, DemonstrationSet
from dynaflip.platform.evaluation.encoders_under_test import Encoder, encoder_at, load
from dynaflip.platform.evaluation.kept_policies import policy_name, write_policy_of
from dynaflip.platform.evaluation.plan import Condition, EvaluationJob, PolicySpec
from dynaflip.platform.evaluation.policy_fits import (
    encode_demonstrations,
    fit_end_to_end_policy,
    fit_policy,
    fitted_policy,
)

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
STATES = RNG.normal(size=(8, 4)).astype(np.float32)
ACTIONS = RNG.uniform(-1, 1, (8, 4)).astype(np.float32)
FRAMES = DemonstrationFrames(IMAGES, STATES, ACTIONS, np.arange(8) // 4)
CLONING = {"hidden_dim": 8, "layers": 1, "steps": 20, "batch_size": 4, "chunk": 2}
OWN_HEAD = "class:outside_head:HEAD"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return encoder_at(str(encoder_folder(tmp_path_factory.mktemp("policy") / "encoder")))


Keep = Callable[..., tuple[Path, EvaluationJob]]


@pytest.fixture
def keep(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keep:
    """Fit a policy and write its folder."""
    monkeypatch.setenv("DYNAFLIP_HOME", str(tmp_path / "home"))

    def fit_and_write(tasks: tuple[str, ...] = ("reach-v3",), **changes: Any) -> Any:
        settings: dict[str, Any] = {
            "encoder": encoder,
            "demonstrations": tuple(DemonstrationSet(task, "", task, 2) for task in tasks),
            "head": "behaviour_cloning",
            "head_settings": CLONING,
            "use_proprioception": True,
            "seed": 1,
            "adaptation": "frozen",
            "end_to_end": {},
        }
        spec = PolicySpec(**{**settings, **changes})
        job = EvaluationJob(
            "trained", spec, tasks[0], Condition("none", 0), (), 10, 5, 32, 1, False
        )
        if spec.adaptation == "frozen":
            parts = [FRAMES] * len(tasks)
            fitted = fit_policy(spec, encode_demonstrations(load(encoder), parts, spec))
        else:
            fitted = fit_end_to_end_policy(spec, FRAMES)
        cache.save_policy(spec.digest(), fitted)
        name = policy_name(job)
        write_policy_of(tmp_path / "policies", name, job, set())
        return tmp_path / "policies" / name, job

    return fit_and_write


def own_actions(job: EvaluationJob, task: str = "reach-v3") -> np.ndarray:
    """Those of the evaluation's own policy."""
    spec = job.policy
    policy = fitted_policy(spec, cache.load_policy(spec.digest()), load(spec.encoder), task)
    return policy.act(Observation(IMAGES, STATES))


DIFFUSION = {"hidden_dim": 8, "blocks": 1, "steps": 20, "chunk": 4, "execute": 2}
END_TO_END = {"steps": 2, "batch_size": 4, "lora_rank": 2}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_proprioception": False},
        {"head": "diffusion", "head_settings": DIFFUSION},
        {"readout": "attentive", "readout_settings": {"width": 8, "heads": 2, "scales": 2}},
        {
            "adaptation": "lora",
            "head_settings": {"hidden_dim": 8, "layers": 1},
            "end_to_end": END_TO_END,
        },
    ],
    ids=["cloning", "image-only", "diffusion", "attentive", "lora"],
)
def test_a_loaded_policy_acts_as_the_evaluations_own(keep: Keep, changes: dict[str, Any]) -> None:
    folder, job = keep(**changes)
    policy = dynaflip.load_policy(folder)
    actions = policy.act(IMAGES, STATES)
    np.testing.assert_array_equal(actions, own_actions(job))
    one = policy.act(torch.from_numpy(IMAGES[3]), torch.from_numpy(STATES[3]), task="reach-v3")
    assert one.shape == actions.shape[1:]
    np.testing.assert_allclose(one, actions[3], atol=1e-5)
    described = policy.description
    assert len(described.actions) == actions.shape[2]
    assert (len(described.proprioception) == 4) == job.policy.use_proprioception
    assert folder.name == f"reach-v3-seed1{'' if job.policy.use_proprioception else '-image-only'}"
    adapted = described.encoder_digest != job.policy.encoder.digest
    assert adapted == (job.policy.adaptation != "frozen")


def test_a_policy_of_several_tasks_is_told_which(keep: Keep) -> None:
    tasks = ("reach-v3", "drawer-open-v3")
    folder, job = keep(tasks)
    policy = dynaflip.load_policy(folder)
    for task in tasks:
        found = policy.act(IMAGES, STATES, task)
        np.testing.assert_array_equal(found, own_actions(job, task))
    assert not np.array_equal(found, policy.act(IMAGES, STATES, tasks[0]))
    known = "this policy knows reach-v3, drawer-open-v3"
    with pytest.raises(UserError, match=f"task: give one; {known}"):
        policy.act(IMAGES, STATES)
    with pytest.raises(UserError, match=f"task: there is no push; {known}"):
        policy.act(IMAGES, STATES, "push")


def test_a_copied_folder_acts_where_only_the_base_is_installed(keep: Keep, tmp_path: Path) -> None:
    folder, job = keep()
    copied = tmp_path / "elsewhere" / "my_policy"
    shutil.copytree(folder, copied)
    (shared,) = folder.parent.glob("encoder-*")
    shutil.copytree(shared, copied / "encoder")
    for name, array in (("images", IMAGES), ("states", STATES)):
        np.save(tmp_path / f"{name}.npy", array)
    code = (
        "import numpy as np, dynaflip\n"
        "policy = dynaflip.load_policy(sys.argv[1])\n"
        "actions = policy.act(np.load('images.npy'), np.load('states.npy'))\n"
        "np.save('actions.npy', actions)\n"
        "try:\n    dynaflip.load_policy('runs:/some-run/policies/reach-v3-seed0')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    result: subprocess.CompletedProcess[str] = bare(code, str(copied), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "actions.npy"), own_actions(job), atol=1e-5)
    assert "dynaflip export runs:/some-run/policies/reach-v3-seed0 FOLDER" in result.stdout


def test_inputs_that_do_not_fit_are_one_line(keep: Keep) -> None:
    policy = dynaflip.load_policy(keep()[0])
    for image, state, line in (
        (IMAGES / 255.0, STATES, "image: must be uint8 .*not float64"),
        (IMAGES[0, 0], STATES[0], r"image: must have the shape \(H, W, 3\).*not \(32, 3\)"),
        (IMAGES.transpose(0, 3, 1, 2), STATES, r"image: .*not \(8, 3, 32, 32\)"),
        (
            IMAGES,
            None,
            r"proprioception: this policy was fitted with it; give \(8, 4\) of hand_x_m",
        ),
        (IMAGES[0], STATES, r"proprioception: must have the shape \(4,\) .*not \(8, 4\)"),
        (IMAGES[0], STATES[0] * np.nan, "proprioception: has values that are not finite"),
    ):
        with pytest.raises(UserError, match=line) as caught:
            policy.act(image, state)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="task: there is no push; this policy knows reach-v3"):
        policy.act(IMAGES, STATES, "push")


def test_folders_that_do_not_fit_are_one_line(keep: Keep, tmp_path: Path) -> None:
    folder, _job = keep()
    (shared,) = folder.parent.glob("encoder-*")

    def refused(line: str) -> None:
        with pytest.raises(UserError, match=line):
            dynaflip.load_policy(folder)

    other = encoder_folder(tmp_path / "other", seed=7)
    shutil.copytree(other, folder / "encoder")
    refused("is the encoder .* and the policy in .* was fitted on")
    shutil.rmtree(folder / "encoder")
    shared.rename(tmp_path / "away")
    refused("has no encoder: neither encoder/ in it nor encoder-.* beside it")
    (tmp_path / "away").rename(shared)

    path = folder / "policy.json"
    described = json.loads(path.read_text())
    for change, line in (
        ({"format_version": 9}, "has format 9; this code reads 1"),
        ({"encoder_digest": "../../x"}, "encoder_digest is no digest"),
        ({"head": "nothing_like_it"}, "head: there is no policy head 'nothing_like_it'"),
        ({"head_settings": {**CLONING, "hidden_dim": 9}}, "does not fit policy.json"),
        ({"readout": "class:os:system"}, "readout: .* may not choose which code runs"),
    ):
        path.write_text(json.dumps({**described, **change}))
        refused(line)
    path.write_text(json.dumps({k: v for k, v in described.items() if k != "tasks"}))
    refused("lacks tasks; the file is incomplete")
    path.unlink()
    refused(r"holds no policy\.json")
    with pytest.raises(UserError, match="does not exist"):
        dynaflip.load_policy(tmp_path / "nowhere")


def test_a_head_of_ones_own_is_named_by_its_owner(
    keep: Keep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "tests" / "eval")
    folder, job = keep(head=OWN_HEAD, head_settings={})
    with pytest.raises(UserError, match=f"load_policy\\(folder, head='{OWN_HEAD}'\\)"):
        dynaflip.load_policy(folder)
    with pytest.raises(UserError, match=r"head: the policy in .* has class:outside_head"):
        dynaflip.load_policy(folder, head="diffusion")
    policy = dynaflip.load_policy(folder, head=OWN_HEAD)
    np.testing.assert_array_equal(policy.act(IMAGES, STATES), own_actions(job))


@pytest.mark.integration
def test_a_registered_policy_loads_and_is_no_encoder(keep: Keep, tmp_path: Path) -> None:
    from dynaflip.jobs import export, register
    from dynaflip.platform import tracking
    from dynaflip.platform.tracking.store import client

    folder, job = keep()
    run = tracking.open_run("dynaflip-evaluate", "evaluation", {"kind": "policies"})
    run.log_folder(folder.parent, "policies")
    run.end("FINISHED")
    uri = f"runs:/evaluation/policies/{folder.name}"
    assert register.main([uri, "reacher", "--alias", "robot"]) == 0
    assert register.main([uri, "reacher"]) == 0
    for named in ("models:/reacher/1", "models:/reacher@robot", "models:/reacher/latest"):
        policy = dynaflip.load_policy(named)
        np.testing.assert_array_equal(policy.act(IMAGES, STATES), own_actions(job))
    assert export.main(["models:/reacher/2", str(tmp_path / "exported")]) == 0
    np.testing.assert_array_equal(
        dynaflip.load_policy(tmp_path / "exported").act(IMAGES, STATES), own_actions(job)
    )
    with pytest.raises(UserError, match=r"models:/reacher/7 does not exist"):
        dynaflip.load_policy("models:/reacher/7")
    with pytest.raises(UserError, match=r"models:/reacher/1.* is a policy; .*load_policy"):
        dynaflip.load_encoder("models:/reacher/1")
    store = client()
    store.create_registered_model("encoders")
    store.create_model_version("encoders", str(tmp_path), run.run_id)
    with pytest.raises(UserError, match=r"it is an encoder; load it by dynaflip\.load_encoder"):
        dynaflip.load_policy("models:/encoders/1")
    with pytest.raises(UserError, match="encoders is a model of encoders"):
        register.main([uri, "encoders"])
