"""Policies of the suite ``offline`` on features and on tokens, and as they are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_rollouts import encoder_folder

import dynaflip
from dynaflip.errors import UserError
from dynaflip.eval.policies.config import BehaviourCloningConfig, DiffusionConfig
from dynaflip.eval.policies.policy_folder import read_description
from dynaflip.eval.policies.readouts.config import AttentiveConfig, SpatialSoftmaxConfig
from dynaflip.eval.policies.recipe import PolicyRecipe
from dynaflip.platform.actor_pool import ActorPool
from dynaflip.platform.evaluation import offline_features, offline_worker
from dynaflip.platform.evaluation.encoder_config import EncoderActorConfig
from dynaflip.platform.evaluation.encoder_service import EncoderService
from dynaflip.platform.evaluation.encoders_under_test import (
    Encoder,
    EncoderUnderTest,
    encoder_at,
)
from dynaflip.platform.evaluation.offline_config import OfflineConfig
from dynaflip.platform.evaluation.offline_data import OfflineData, read_offline
from dynaflip.platform.evaluation.offline_features import _path, example_images
from dynaflip.platform.evaluation.offline_kept import write_offline_policy
from dynaflip.platform.evaluation.offline_plan import evaluation_digest, plan_offline, version_tag
from dynaflip.platform.evaluation.offline_run import OfflineResult, fit_and_test
from dynaflip.platform.evaluation.offline_tokens import (
    _save_fit,
    fit_on_tokens,
    token_fits,
    training_of,
)
from dynaflip.platform.evaluation.offline_worker import (
    ActJob,
    Fitted,
    OfflineWorker,
    TokenFitJob,
    decode_frames,
    inputs_of,
    scale_of,
)
from dynaflip.platform.triplets.clips import ClipRejected
from tests.platform.evaluation.own_robot import CONSTANT, own_robot
from tests.platform.triplets.odd_lerobot import KEY

CLONING = BehaviourCloningConfig(hidden_dim=8, layers=1, steps=20, batch_size=8, chunk=2)
DIFFUSION = DiffusionConfig(hidden_dim=8, blocks=1, steps=20, batch_size=8, chunk=4, execute=2)
ATTENTIVE = AttentiveConfig(width=8, heads=2, scales=2)
WRIST = "observation.images.wrist"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return encoder_at(str(encoder_folder(tmp_path_factory.mktemp("offline") / "encoder")))


def read(folder: Path, *, cameras: int = 1, **changes: Any) -> tuple[OfflineConfig, OfflineData]:
    """The sound set through one camera or two."""
    odd = own_robot("v2.1")
    if cameras == 2:
        odd.info["features"][WRIST] = odd.info["features"][KEY]
        odd.videos[WRIST] = [255 - frames for frames in odd.videos[KEY]]
    settings: dict[str, Any] = {
        "source": str(odd.write(folder)),
        "heldout_share": 0.4,
        "frames_per_episode": 5,
        "factors": ("light",),
        "all_at_once": False,
        "behaviour_cloning": CLONING,
    }
    config = OfflineConfig(**{**settings, **changes})
    return config, read_offline(config)


def recipe_of(config: OfflineConfig) -> PolicyRecipe:
    reads = config.settings_of_readout()
    return PolicyRecipe(config.head, config.settings_of_head(), config.readout, reads, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"readout": "attentive", "attentive": ATTENTIVE, "cameras_seen": 2},
        {"readout": "attentive", "attentive": ATTENTIVE, "head": "diffusion"},
        {"readout": "spatial_softmax", "spatial_softmax": SpatialSoftmaxConfig(maps=4, scales=2)},
    ],
    ids=["attentive-two-cameras", "attentive-diffusion", "spatial-softmax"],
)
def test_a_kept_policy_on_tokens_acts_as_the_evaluation_did(
    tmp_path: Path, encoder: Encoder, changes: dict[str, Any]
) -> None:
    changes = dict(changes)
    cameras = changes.pop("cameras_seen", 1)
    if changes.get("head") == "diffusion":
        changes["diffusion"] = DIFFUSION
    config, data = read(tmp_path / "set", cameras=cameras, **changes)
    assert len(data.cameras) == cameras
    recipe, worker = recipe_of(config), OfflineWorker()
    scales = config.settings_of_readout()["scales"]
    training = training_of(config, data, None, recipe, scales)
    job = TokenFitJob("trained", encoder, (0, 1))
    fits = worker.fit_on_tokens(job, training)
    if config.readout == "spatial_softmax":
        again = worker.fit_on_tokens(job, training).tensors[1]
        assert all((again[name] == tensor).all() for name, tensor in fits.tensors[1].items())
    assert len(fits.tensors[0]["readout.grids"]) == cameras * scales

    plan, episode = plan_offline(config, data), data.heldout[0]
    fitted = {
        ("trained", seed): Fitted("trained", seed, encoder, tensors)
        for seed, tensors in fits.tensors.items()
    }
    wanted = tuple(fitted)
    act = ActJob(data.source, episode, config.image_px, plan.of(episode), wanted)
    found = worker.act(act, training, fitted)
    assert isinstance(found, dict)
    assert set(found["trained", 0]) == {"none", "light-3"}
    if config.head == "behaviour_cloning":  # a diffusion policy of 20 steps is at its bounds
        assert not np.array_equal(found["trained", 0]["none"], found["trained", 0]["light-3"])

    scale, entry = scale_of(data.train, "mine"), EncoderUnderTest("trained", (encoder,))
    policies = {key: one.tensors for key, one in fitted.items()}
    result = OfflineResult(None, scale, recipe, None, policies, [])  # type: ignore[arg-type]
    write_offline_policy(tmp_path / "kept", config, data, entry, result, 1, set())
    (folder,) = tmp_path.glob("kept/*-seed1")
    policy = dynaflip.load_policy(folder)
    images = decode_frames(data.source, episode, config.image_px)
    views = dict(zip(data.cameras, images, strict=True))
    actions = policy.act(views if cameras > 1 else images[0], episode.proprioception)
    np.testing.assert_allclose(
        actions[:, 0], scale.from_unit(found["trained", 1]["none"]), rtol=1e-4, atol=1e-3
    )
    # In the robot's own units, the entry that never moves among them.
    assert actions.shape[2] == 5
    assert (actions[..., CONSTANT] == 7).all()
    assert policy.description.control_hz == data.fps
    assert policy.description.actions == tuple(f"action[{n}]" for n in range(5))
    if cameras > 1:
        with pytest.raises(UserError, match="image: this policy sees 2 cameras; give a dict"):
            policy.act(images[0], episode.proprioception)
        with pytest.raises(UserError, match="image: has top; this policy sees"):
            policy.act({"top": images[0]}, episode.proprioception)


def test_predicted_actions_are_those_of_the_next_rows(tmp_path: Path) -> None:
    config, data = read(tmp_path)
    inputs = inputs_of(data.train, scale_of(data.train, "mine"), None)
    chunks = inputs.chunks(3)
    scale, first = scale_of(data.train, "mine"), data.train[0]
    assert first.frames[:2] == (0, 2)
    for frame, number in enumerate(first.frames):
        rows = np.minimum(np.arange(number, number + 3), len(first.recorded) - 1)
        np.testing.assert_array_equal(chunks[frame], scale.to_unit(first.recorded[rows]))
    # A policy of one action is what it was; of several, results are no pairs with earlier ones.
    assert version_tag(config).startswith("2, ")
    assert version_tag(OfflineConfig(source="mine")).startswith("1, ")


def test_what_a_readout_does_not_read_is_refused() -> None:
    for changes, said in (
        ({"attentive": ATTENTIVE}, "attentive is read with readout attentive alone, not pooled"),
        ({"readout": "nothing"}, "readout"),
        ({"readout_settings": {"maps": 3}}, "read-out pooled has no settings"),
        (
            {"readout": "attentive", "readout_settings": {"maps": 3}},
            "read-out attentive has a section",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            OfflineConfig(source="mine", **changes)  # type: ignore[arg-type]


def test_episodes_that_cannot_be_decoded_are_left_out_and_said(
    tmp_path: Path, encoder: Encoder
) -> None:
    config, data = read(tmp_path, readout="spatial_softmax")
    broken = data.train[0]
    (video,) = tmp_path.rglob(f"*{broken.index:06d}.mp4")
    video.write_bytes(b"no video")
    training = training_of(config, data, None, recipe_of(config), 1)
    fits = OfflineWorker().fit_on_tokens(TokenFitJob("trained", encoder, (0,)), training)
    assert list(fits.lost) == [broken.digest()]


@pytest.mark.ray
@pytest.mark.parametrize("readout", ["pooled", "attentive"])
def test_encoder_actors_give_what_workers_give(
    tmp_path: Path,
    encoder: Encoder,
    ray_cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    readout: str,
) -> None:
    reads = {"attentive": ATTENTIVE} if readout == "attentive" else {}
    config, data = read(tmp_path / "set", readout=readout, seeds=1, **reads)
    there = replace(config, encoder_actor=EncoderActorConfig(device="cpu", batch=8))
    tested, plan = [EncoderUnderTest("trained", (encoder,))], plan_offline(config, data)
    found, asked = [], []
    for number, one in enumerate((config, there)):
        monkeypatch.setenv("DYNAFLIP_HOME", str(tmp_path / f"home-{number}"))
        with (
            EncoderService(one.encoder_actor) as service,
            ActorPool(OfflineWorker, job="test") as pool,
        ):
            found.append(fit_and_test(one, data, plan, tested, pool, service).table)
            actors = service.for_a_job()
            asked.append(actors is not None and ray_get(actors.actors[0].usage.remote()).images)
    assert not asked[0]
    assert asked[1] > 0
    assert found[0].drop("action_error", "squared").equals(found[1].drop("action_error", "squared"))
    for name in ("action_error", "squared"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-3)


def test_results_in_half_precision_are_apart(tmp_path: Path, encoder: Encoder) -> None:
    config, data = read(tmp_path)
    half = replace(config, encoder_actor=EncoderActorConfig(device="cpu", precision="float16"))
    actors = replace(config, encoder_actor=EncoderActorConfig(device="cpu", batch=8))
    plan, tested = plan_offline(config, data), [EncoderUnderTest("trained", (encoder,))]
    digests = [evaluation_digest(one, data, plan, tested) for one in (config, actors, half)]
    assert digests[0] == digests[1] != digests[2]
    paths = [
        {_path(one, encoder.digest, episode.digest(), {}) for episode in data.train}
        for one in (config, actors, half)
    ]
    assert paths[0] == paths[1]
    assert paths[0].isdisjoint(paths[2])
    scale = scale_of(data.train, "mine")
    tensors = {"weight": torch.zeros(1)}
    result = OfflineResult(None, scale, recipe_of(half), None, {("trained", 0): tensors}, [])  # type: ignore[arg-type]
    write_offline_policy(tmp_path / "kept", half, data, tested[0], result, 0, set())
    (folder,) = tmp_path.glob("kept/*-seed0")
    assert read_description(folder).precision == "float16"


def test_a_reading_that_may_work_later_is_not_kept_as_a_lack(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = read(tmp_path, readout="spatial_softmax")
    training = training_of(config, data, None, recipe_of(config), 1)

    def offline(*_: Any) -> Any:
        raise ClipRejected("network", "the store answers no more")

    monkeypatch.setattr(offline_worker, "decode_frames", offline)
    with pytest.raises(UserError, match=r"cannot be read now .the store answers no more.*run the"):
        OfflineWorker().fit_on_tokens(TokenFitJob("trained", encoder, (0,)), training)


def test_policies_that_learnt_from_different_episodes_are_no_pairs(
    home: Path, tmp_path: Path, encoder: Encoder
) -> None:
    config, data = read(tmp_path, readout="spatial_softmax", seeds=2)
    training = training_of(config, data, None, recipe_of(config), 1)
    tested = [EncoderUnderTest("trained", (encoder,))]
    _, files = token_fits(config, data, training, tested)
    for (_, seed), path in files.items():
        lost = {data.train[0].digest(): "damaged"} if seed else {}
        _save_fit(path, {"weight": torch.zeros(1)}, lost)
    with (
        ActorPool(OfflineWorker, job="test") as pool,
        pytest.raises(UserError, match="0 could not be decoded for some, and 1 for others"),
    ):
        fit_on_tokens(config, data, training, tested, pool)


def test_the_report_shows_an_episode_that_can_still_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, data = read(tmp_path)
    plan, gone = plan_offline(config, data), {data.heldout[0].digest()}
    whole = example_images(config, data, plan)

    def some(source: Any, episode: Any, image_px: int) -> Any:
        if episode.recording_id in {e.recording_id for e in data.heldout if e.digest() in gone}:
            raise ClipRejected("decode", "damaged")
        return decode_frames(source, episode, image_px)

    monkeypatch.setattr(offline_features, "decode_frames", some)
    other = example_images(config, data, plan)
    assert other.shape == whole.shape
    assert not np.array_equal(other, whole)
    gone |= {episode.digest() for episode in data.heldout}
    assert example_images(config, data, plan) is None


def ray_get(reference: Any) -> Any:
    import ray

    return ray.get(reference)
