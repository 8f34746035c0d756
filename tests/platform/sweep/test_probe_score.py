"""The score that ranks trials, and when a winner is better than noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from labelled_frames import labelled_frames, write_labelled_frames
from optuna.trial import FrozenTrial

from dynaflip.errors import UserError
from dynaflip.eval.labelled_frames import LabelledFrames
from dynaflip.platform.sweep.confirmation import (
    confirmation_table,
    confirmed_of,
    seed_noise,
    student_interval,
    verdict,
)
from dynaflip.platform.sweep.finish import difference_with_noise
from dynaflip.platform.sweep.frames import digest_of, read_frames, write_frames
from dynaflip.platform.sweep.probe_score import FrameErrors, ProbeScore
from dynaflip.platform.sweep.trial_score import TrialScore


class Where(torch.nn.Module):
    """Features that say where the bright square is; ``blind`` ones say nothing."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.blind:
            return images.float().mean((1, 2, 3))[:, None]
        grey = images.float().mean(-1)
        bright = (grey > 0.8 * grey.amax((1, 2), keepdim=True)).float()
        dark = (grey < 0.3 * grey.amax((1, 2), keepdim=True)).float()
        side = torch.arange(images.shape[1]).float()
        parts = [
            m.sum(d) @ side / m.sum((1, 2)).clamp(min=1) for m in (bright, dark) for d in (1, 2)
        ]
        return torch.stack(parts, 1)


class Model(torch.nn.Module):
    """A model as the score sees it."""

    def __init__(self, blind: bool = False) -> None:
        super().__init__()
        self.image = Where(blind)


def test_features_that_say_where_things_are_score_better(tmp_path: Path) -> None:
    probes = ProbeScore(write_labelled_frames(tmp_path / "frames.npz"), folds=3, batch_size=16)
    score = TrialScore(probes, None)
    seeing, blind = score(Model()), score(Model(blind=True))
    for name in ("score/perturbed_cm", "score/unperturbed_cm"):
        assert seeing[name] < 0.5 * blind[name]
    assert tuple(seeing) == score.names
    errors = probes.errors(Where())
    frames = labelled_frames()
    assert len(errors.error_cm) == (frames.condition != "train").sum()
    assert errors.perturbed.sum() == (frames.condition == "light").sum()


def test_a_model_in_training_is_left_in_training(tmp_path: Path) -> None:
    probes = ProbeScore(write_labelled_frames(tmp_path / "frames.npz"), folds=3, batch_size=16)
    model = Model().train()
    TrialScore(probes, None)(model)
    assert model.training
    assert model.image.training


def test_frames_are_read_as_written_and_damage_is_one_clear_line(tmp_path: Path) -> None:
    frames, path = labelled_frames(), tmp_path / "frames.npz"
    write_frames(frames, path)
    assert digest_of(read_frames(path)) == digest_of(frames)
    with pytest.raises(UserError, match="there is no file"):
        read_frames(tmp_path / "none.npz")
    for without, said in (
        ("train", "no frames of condition 'train'"),
        ("none", "no frames of condition 'none'"),
        ("light", "no perturbed frames"),
    ):
        write_frames(frames.where(frames.condition != without), path)
        with pytest.raises(UserError, match=said):
            read_frames(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(UserError, match="holds no labelled frames"):
        read_frames(path)
    assert isinstance(frames, LabelledFrames)


def confirming_trials(scores: dict[int, list[float]]) -> list[FrozenTrial]:
    study = optuna.create_study()
    for setting, values in scores.items():
        for seed, value in enumerate(values):
            trial = study.ask()
            for key, attr in {"setting": setting, "seed": seed, "name": f"c{seed}"}.items():
                trial.set_user_attr(key, attr)
            study.tell(trial, value)
    return study.get_trials()


def test_a_setting_is_judged_by_seeds_that_did_not_choose_it() -> None:
    trials = confirming_trials({0: [5.0, 5.2, 5.4], 7: [4.0, 4.2, 4.4], 3: [4.9, 5.6, 5.5]})
    confirmed = confirmed_of(trials, [0, 7, 3])
    assert [c.setting for c in confirmed] == [7, 0, 3]
    # Paired by seed the difference is exact, though the seeds' spread is wide.
    assert confirmed[0].difference.high == pytest.approx(-1.0)
    assert confirmed[0].score.low < 4.0 < 4.4 < confirmed[0].score.high
    assert "better beyond noise" in verdict(confirmed)
    assert "not better" not in verdict(confirmed)
    assert [row[0] for row in confirmation_table(confirmed)][1:] == [
        "trial-007",
        "paper's weights",
        "trial-003",
    ]
    noisy = confirmed_of(confirming_trials({0: [5.0, 5.2, 5.4], 7: [4.0, 6.2, 4.9]}), [0, 7])
    assert "not better beyond noise" in verdict(noisy)
    assert "no trial's weights" in verdict(confirmed_of(trials, [0, 3]))


def test_student_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        found = student_interval(list(rng.normal(3, 2, 3)))
        inside += found.low <= 3 <= found.high
    assert 925 <= inside <= 975
    assert np.isnan(student_interval([1.0]).low)
    assert np.isnan(student_interval([]).value)


def test_an_alias_moves_for_a_gap_beyond_the_noise_of_episodes_and_of_seeds() -> None:
    rng = np.random.default_rng(0)
    episode = np.repeat([f"e{i}" for i in range(20)], 5)
    shared = rng.gamma(4, 1.5, 100)

    def errors(less_cm: float) -> FrameErrors:
        own = shared - less_cm + rng.normal(0, 0.2, 100)
        return FrameErrors(own, episode, np.ones(100, bool))

    ours, theirs = [errors(1.0) for _ in range(3)], errors(0.0)
    gap, half = difference_with_noise(ours, theirs, noise=0.1, freedom=6)
    assert gap == pytest.approx(-1, abs=0.1)
    assert gap + half < 0
    # The same gap between seeds that differ by as much is luck.
    assert gap + difference_with_noise(ours, theirs, noise=1.0, freedom=6)[1] > 0
    assert difference_with_noise(ours[:1], theirs, noise=float("nan"), freedom=0)[1] == np.inf


def test_the_spread_of_seeds_is_pooled_over_settings() -> None:
    confirmed = confirmed_of(confirming_trials({0: [1.0, 3.0], 1: [10.0, 12.0]}), [0, 1])
    assert seed_noise(confirmed) == (pytest.approx(np.sqrt(2)), 2)


@pytest.mark.slow
@pytest.mark.ray
def test_a_trial_by_policy_fails_as_often_as_in_the_evaluation(
    home: Path, ray_cluster: None, tmp_path: Path
) -> None:
    from dynaflip.encoders.checkpoint import save_folder
    from dynaflip.encoders.config import FlowConfig, ImageConfig, ModelConfig
    from dynaflip.encoders.model import DynaFLIP
    from dynaflip.eval.envs.registry import environment
    from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest, encoder_at
    from dynaflip.platform.evaluation.plan import plan_jobs
    from dynaflip.platform.evaluation.schedule import open_pool, run_jobs
    from dynaflip.platform.sweep.config import PolicyScoreConfig
    from dynaflip.platform.sweep.policy_score import policy_score

    flow = FlowConfig(width=16, layers=1, heads=2, channels=8, cnn_layers=2)
    image = ImageConfig(image_px=64)
    config = ModelConfig(image=image, flow=flow, embedding_dim=16, hidden_dim=16)
    save_folder(tmp_path / "encoder", DynaFLIP(config).eval(), {"run_name": "untrained"})
    score = policy_score(
        PolicyScoreConfig(
            tasks=("button-press-topdown-v3",), episodes=4, demonstrations=4, image_px=64
        )
    )
    failed = score(tmp_path / "encoder")
    under_test = EncoderUnderTest("trained", (encoder_at(str(tmp_path / "encoder")),))
    jobs = plan_jobs(score.config, [under_test], score.demonstrations)
    with open_pool(environment(score.config.environment)) as pool:
        results = run_jobs(jobs, pool)
    expected = [
        np.mean(result.success_ever)
        for job, result in zip(jobs, results, strict=True)
        if job.condition.factor != "none"
    ]
    assert len(expected) == 2
    assert failed == pytest.approx(100 * (1 - np.mean(expected)))


def test_the_policy_is_scored_on_dev_and_its_settings_are_checked() -> None:
    from dynaflip.platform.sweep.config import PolicyScoreConfig

    assert PolicyScoreConfig().rollouts().split == "dev"
    with pytest.raises(ValueError, match="factors: there is no factor 'rain'"):
        PolicyScoreConfig(factors=("rain",))
    assert PolicyScoreConfig(factors=()).factors == ("light_gain", "table_colour")


def test_the_digest_of_a_policys_score_is_that_of_version_0_1() -> None:
    """Sweeps of before a value was renamed are resumed, and their trials start new sweeps."""
    from dynaflip.platform.config_loader import config_digest
    from dynaflip.platform.sweep.config import PolicyScoreConfig

    assert config_digest(PolicyScoreConfig().recipe()) == "381d1489632db0ea"
