"""Policies learn what they are shown, repeat themselves, and refuse a cheating encoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dynaflip.errors import UserError
from dynaflip.eval.policies.base import Demonstrations
from dynaflip.eval.policies.behaviour_cloning import fit_behaviour_cloning
from dynaflip.eval.policies.config import BehaviourCloningConfig, DiffusionConfig
from dynaflip.eval.policies.diffusion import DiffusionPolicy, fit_diffusion
from dynaflip.eval.policies.encoder_policy import EncoderPolicy, check_encoder, features_of
from dynaflip.eval.rollout import Observation

QUICK = BehaviourCloningConfig(hidden_dim=64, steps=250, batch_size=64, lr=5e-3)


def demonstrations(number: int = 400) -> Demonstrations:
    """Actions that are a smooth function of the features and of the gripper."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(number, 6)).astype(np.float32)
    proprioception = rng.normal(size=(number, 4)).astype(np.float32)
    actions = np.tanh(features[:, :4] + 0.5 * proprioception[:, [3]]).astype(np.float32)
    return Demonstrations(features, proprioception, actions, np.arange(number) // 50)


def test_behaviour_cloning_learns_the_demonstrated_actions_and_repeats_itself() -> None:
    shown = demonstrations()
    inputs = torch.from_numpy(shown.inputs(True))
    fitted = fit_behaviour_cloning(shown, QUICK, use_proprioception=True, seed=0)
    error = float((fitted.plan(inputs)[:, 0] - torch.from_numpy(shown.actions)).abs().mean())
    mean = np.abs(shown.actions - shown.actions.mean(0)).mean()
    assert error < 0.3 * mean
    again = fit_behaviour_cloning(shown, QUICK, use_proprioception=True, seed=0)
    assert torch.equal(again.plan(inputs), fitted.plan(inputs))
    other = fit_behaviour_cloning(shown, QUICK, use_proprioception=True, seed=1)
    assert not torch.equal(other.plan(inputs), fitted.plan(inputs))


@pytest.mark.parametrize("head", ["behaviour_cloning", "diffusion"])
def test_a_near_constant_feature_does_no_harm_with_a_std_floor(head: str) -> None:
    """Its tiny std is noise; under perturbation it takes values as large as the others'."""
    shown = demonstrations()
    constant = 1e-6 * np.random.default_rng(1).normal(size=(400, 4)).astype(np.float32)
    shown = replace(shown, features=np.concatenate([shown.features, constant], 1))
    perturbed = shown.inputs(True)
    perturbed[:, 6:10] = 0.05
    errors = {}
    for norm in ("batch", "std_floor"):
        if head == "diffusion":
            settings = DiffusionConfig(
                input_norm=norm, chunk=1, execute=1, hidden_dim=64, blocks=1, steps=600, lr=3e-3
            )
            fitted = fit_diffusion(shown, settings, use_proprioception=True, seed=0)
        else:
            cloning = replace(QUICK, input_norm=norm)
            fitted = fit_behaviour_cloning(shown, cloning, use_proprioception=True, seed=0)
        plan = fitted.plan(torch.from_numpy(perturbed))[:, 0].numpy()
        errors[norm] = np.abs(plan - shown.actions).mean()
    mean = np.abs(shown.actions - shown.actions.mean(0)).mean()
    assert errors["std_floor"] < 0.6 * mean
    if head == "behaviour_cloning":  # the denoiser's own bounds hide what it is told
        assert errors["batch"] > mean


def test_behaviour_cloning_foresees_the_actions_that_follow() -> None:
    time = np.tile(np.linspace(0, 1, 40, dtype=np.float32), 10)[:, None]
    shown = Demonstrations(
        features=np.concatenate([time, 1 - time], 1),
        proprioception=np.zeros((400, 4), np.float32),
        actions=np.repeat(np.sin(6 * time), 4, 1),
        episode=np.arange(400) // 40,
    )
    config = replace(QUICK, chunk=5, steps=600)
    fitted = fit_behaviour_cloning(shown, config, use_proprioception=False, seed=0)
    plan = fitted.plan(torch.from_numpy(shown.inputs(False)[:30])).numpy()
    assert plan.shape == (30, 5, 4)
    wanted = np.stack([shown.actions[i : i + 5] for i in range(30)])
    held = np.abs(wanted[:, :1] - wanted).mean()  # what repeating the first action would miss
    assert np.abs(plan - wanted).mean() < 0.5 * held


def test_proprioception_counts_only_where_it_is_given() -> None:
    shown = demonstrations()
    blind = fit_behaviour_cloning(shown, QUICK, use_proprioception=False, seed=0)
    assert shown.inputs(False).shape[1] == 6
    inputs = torch.from_numpy(shown.inputs(False))
    error = float((blind.plan(inputs)[:, 0] - torch.from_numpy(shown.actions)).abs().mean())
    seeing = fit_behaviour_cloning(shown, QUICK, use_proprioception=True, seed=0)
    inputs = torch.from_numpy(shown.inputs(True))
    better = float((seeing.plan(inputs)[:, 0] - torch.from_numpy(shown.actions)).abs().mean())
    assert better < 0.7 * error


def test_diffusion_finds_one_of_two_demonstrated_ways_and_not_their_mean() -> None:
    rng = np.random.default_rng(0)
    number = 600
    way = rng.choice([-0.8, 0.8], size=(number // 20, 1)).repeat(20, 0).astype(np.float32)
    shown = Demonstrations(
        features=np.ones((number, 3), np.float32) + 0.01 * rng.normal(size=(number, 3)),
        proprioception=np.zeros((number, 4), np.float32),
        actions=np.repeat(way, 4, 1),
        episode=np.arange(number) // 20,
    )
    config = DiffusionConfig(chunk=4, execute=2, hidden_dim=64, blocks=2, steps=500, batch_size=128)
    fitted = fit_diffusion(shown, config, use_proprioception=False, seed=0)
    inputs = torch.from_numpy(shown.inputs(False)[:64])
    plan = fitted.plan(inputs)
    assert plan.shape == (64, 2, 4)
    assert float(plan.abs().max()) <= 1
    assert torch.equal(plan, fitted.plan(inputs))
    # Its samples lie at a mode; squared error would put them in between, at zero.
    samples = torch.cat([_sample(fitted, inputs, seed) for seed in range(6)])
    assert float((samples.abs() - 0.8).abs().mean()) < 0.25
    assert float(samples.max()) > 0.5
    assert float(samples.min()) < -0.5


def _sample(policy: DiffusionPolicy, inputs: torch.Tensor, seed: int) -> torch.Tensor:
    """Plans from other starting noise, by the training's own process."""
    config = policy.config
    noise = torch.randn(len(inputs), config.chunk, 4, generator=torch.Generator().manual_seed(seed))
    return policy.denoise(noise, inputs)


def test_chunks_do_not_run_over_the_end_of_an_episode() -> None:
    actions = np.arange(6, dtype=np.float32)[:, None].repeat(4, 1)
    shown = Demonstrations(
        np.zeros((6, 2), np.float32),
        np.zeros((6, 4), np.float32),
        actions,
        np.array([0] * 3 + [1] * 3),
    )
    assert shown.chunks(1)[:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert shown.chunks(3)[:, :, 0].tolist() == [
        [0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 5], [4, 5, 5], [5, 5, 5],
    ]  # fmt: skip


class Flat:
    """Features that are the image's mean colour."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((1, 2)) / 255


def test_an_encoder_that_knows_more_than_its_image_is_refused() -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    check_encoder(Flat(), images)

    class Peeking(Flat):
        """Reads a simulator's state on the side."""

        state = 0.0

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            self.state += 1.0  # whatever moves in the simulator
            return super().__call__(images) + self.state

    with pytest.raises(UserError, match="may read its image alone"):
        check_encoder(Peeking(), images)

    class BatchAware(Flat):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            features = super().__call__(images)
            return features - features.mean(0)

    with pytest.raises(UserError, match="may read its image alone"):
        check_encoder(BatchAware(), images)


def test_an_encoder_that_peeks_only_while_it_acts_is_caught_at_the_end_of_a_cell() -> None:
    shown = demonstrations()
    head = fit_behaviour_cloning(
        Demonstrations(shown.features[:, :3], shown.proprioception, shown.actions, shown.episode),
        QUICK,
        use_proprioception=False,
        seed=0,
    )
    object_x_m = [0.0]

    class Sly(Flat):
        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return super().__call__(images) + object_x_m[0]

    policy = EncoderPolicy(Sly(), head, use_proprioception=False)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    assert policy.act(Observation(images, np.zeros((2, 4), np.float32))).shape == (2, 1, 4)
    policy.check_features()
    object_x_m[0] = 0.3
    with pytest.raises(UserError, match="same image gave other features"):
        policy.check_features()


def test_an_encoder_that_fails_says_which_shape_it_got() -> None:
    images = np.zeros((2, 8, 10, 3), np.uint8)

    def broken(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(UserError, match=r"\(2, 8, 10, 3\).*cannot be multiplied"):
        features_of(broken, images)
    with pytest.raises(UserError, match=r"features of shape \(2, 8\), not|shape \(2, 10, 3\)"):
        features_of(lambda p: p[:, 0].float(), images)
    with pytest.raises(UserError, match="not finite"):
        features_of(lambda p: torch.full((2, 3), float("nan")), images)


@pytest.mark.parametrize("mode", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_an_encoder_learns_with_its_policy_and_is_an_ordinary_one_afterwards(mode: str) -> None:
    from dynaflip.encoders.config import ImageConfig
    from dynaflip.encoders.image import build_image_encoder
    from dynaflip.eval.policies.config import EndToEndConfig
    from dynaflip.eval.policies.end_to_end import fit_end_to_end

    rng = np.random.default_rng(0)
    # In order, as the frames of an episode are alike.
    brightness = np.sort(rng.uniform(0.1, 0.9, 64)).astype(np.float32)
    images = (255 * brightness[:, None, None, None] * np.ones((1, 32, 32, 3))).astype(np.uint8)
    actions = np.repeat(2 * brightness[:, None] - 1, 4, 1)
    torch.manual_seed(0)
    encoder = build_image_encoder(ImageConfig(image_px=32)).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder, head = fit_end_to_end(
        encoder,
        images,
        None,
        actions[:, None],
        BehaviourCloningConfig(hidden_dim=32, layers=1, lr=1e-2),
        EndToEndConfig(steps=40, batch_size=32),
        mode=mode,
        seed=0,
    )
    assert encoder.state_dict().keys() == before.keys()
    moved = [n for n, v in encoder.state_dict().items() if not torch.equal(v, before[n])]
    assert moved
    if mode == "lora":  # depthwise filters have no linear map over channels
        assert not [name for name in moved if "depthwise" in name]
    with torch.no_grad():
        features = encoder(torch.from_numpy(images))
        plan = head.plan(features)[:, 0].numpy()
    spread = features.var(0)
    live = spread > 0.01 * spread.max()
    share = (head.norm.running_var / spread)[live].median()
    assert share == pytest.approx(1, abs=0.1), "BatchNorm acts on the spread of all frames"
    assert np.abs(plan - actions).mean() < 0.8 * np.abs(actions - actions.mean()).mean()
