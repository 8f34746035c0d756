"""A policy head from outside is fitted, saved, loaded and acts; its settings are checked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from outside_environment import ENVIRONMENT

from dynaflip.errors import UserError
from dynaflip.eval.perturbations import layout_seed
from dynaflip.eval.policies.base import Demonstrations
from dynaflip.eval.policies.config import BehaviourCloningConfig, settings_to_hash
from dynaflip.eval.policies.encoder_policy import EncoderPolicy
from dynaflip.eval.policies.registry import head_settings, policy_head
from dynaflip.eval.rollout import EpisodeStart, roll_out

LINEAR = "class:outside_head:HEAD"


def positions(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 → (B, 5): where red is, where green is, and 1."""
    found = []
    for channel, other in ((0, 1), (1, 0)):
        mask = ((images[..., channel] > 150) & (images[..., other] < 100)).float()
        rows, columns = mask.sum(2), mask.sum(1)
        place = torch.arange(images.shape[1]) / images.shape[1]
        total = mask.sum((1, 2)).clamp(min=1)
        found += [(columns * place).sum(1) / total, (rows * place).sum(1) / total]
    return torch.stack([*found, torch.ones(len(images))], 1)


def demonstrations(episodes: int) -> Demonstrations:
    scene = ENVIRONMENT.open("reach", height_px=48, width_px=48)
    images, proprioception, actions, episode = [], [], [], []
    for index in range(episodes):
        scene.reset(layout_seed("pretrain", index))
        for _ in range(6):
            images.append(scene.rgb())
            proprioception.append(scene.proprioception())
            # Slow enough that no component is clipped: linear in the positions.
            actions.append((0.5 * (scene.object - scene.hand)).astype(np.float32))
            episode.append(index)
            scene.step(actions[-1])
    return Demonstrations(
        features=positions(torch.from_numpy(np.stack(images))).numpy(),
        proprioception=np.stack(proprioception),
        actions=np.stack(actions),
        episode=np.array(episode),
    )


def test_an_outsiders_head_without_a_norm_learns_is_saved_and_solves_the_task() -> None:
    head, settings = policy_head(LINEAR), head_settings(LINEAR, {"penalty": 1e-4})
    fitted = head.fit(demonstrations(60), settings, use_proprioception=False, seed=0)
    loaded = head.load(fitted.state_dict(), settings)
    policy = EncoderPolicy(positions, loaded, use_proprioception=False)
    scenes = [ENVIRONMENT.open("reach", height_px=48, width_px=48) for _ in range(4)]
    starts = [EpisodeStart(layout_seed("dev", index), {}) for index in range(8)]
    results = roll_out(scenes, starts, policy, horizon_steps=40, steps_after_success=0)
    assert sum(result.success_ever for result in results) >= 6


@pytest.mark.parametrize("name", ["behaviour_cloning", "diffusion"])
@pytest.mark.parametrize("norm", ["batch", "std_floor"])
def test_built_in_heads_are_loaded_from_their_own_weights(name: str, norm: str) -> None:
    head = policy_head(name)
    small = {"input_norm": norm, "hidden_dim": 16, "steps": 5}
    settings = head_settings(name, small)
    shown = demonstrations(3)
    fitted = head.fit(shown, settings, use_proprioception=True, seed=0)
    inputs = torch.from_numpy(shown.inputs(True))
    assert fitted.plan(inputs).shape[-1] == 2  # as wide as the demonstrated actions
    loaded = head.load(fitted.state_dict(), settings)
    assert torch.equal(loaded.plan(inputs), fitted.plan(inputs))


def test_mistakes_in_a_heads_settings_are_named() -> None:
    with pytest.raises(UserError, match=r"head_settings\.penalti: head .* it has: penalty"):
        head_settings(LINEAR, {"penalti": 1})
    with pytest.raises(UserError, match="head_settings: penalty must not be negative"):
        head_settings(LINEAR, {"penalty": -1.0})
    with pytest.raises(UserError, match="no policy head 'difusion'; did you mean diffusion"):
        policy_head("difusion")
    with pytest.raises(UserError, match="is a type, not a PolicyHead"):
        policy_head("class:outside_head:LinearSettings")


def test_policies_that_were_fitted_before_a_value_was_renamed_are_found_again() -> None:
    values = {"input_norm": "std_floor", "chunk": 16}
    assert settings_to_hash(values) == {"input_norm": "floored", "chunk": 16}
    assert settings_to_hash({"input_norm": "batch"}) == {"input_norm": "batch"}
    assert BehaviourCloningConfig.RENAMED_VALUES["input_norm"]["floored"] == "std_floor"


def test_the_old_word_of_a_renamed_norm_works_with_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dynaflip.platform.config_loader import load_config
    from dynaflip.platform.evaluation.config import RolloutConfig

    given = {"behaviour_cloning.input_norm": "floored", "diffusion.input_norm": "batch"}
    config = load_config(RolloutConfig, None, given)
    assert config.behaviour_cloning.input_norm == "std_floor"
    assert "input_norm floored is now std_floor" in capsys.readouterr().err
