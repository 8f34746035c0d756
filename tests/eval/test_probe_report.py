"""Scores of encoders whose answer is known, and the tables and images of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynaflip.eval import plots
from dynaflip.eval.labelled_frames import LabelledFrames, concatenate, embed, raw_pixels
from dynaflip.eval.metrics.probe_report import MEAN, ProbeReport, score_probes

EPISODES, FRAMES = 6, 5


def frames(condition: str, seed: int) -> LabelledFrames:
    rng = np.random.default_rng(seed)
    number = 2 * EPISODES * FRAMES
    return LabelledFrames(
        images=rng.integers(0, 255, size=(number, 24, 24, 3), dtype=np.uint8),
        hand_m=rng.normal(scale=0.1, size=(number, 3)),
        object_m=rng.normal(scale=0.05, size=(number, 3)),
        joints_rad=rng.normal(scale=0.5, size=(number, 7)),
        task=np.repeat(["door", "drawer"], EPISODES * FRAMES),
        episode=np.array([f"{condition}{i // FRAMES}" for i in range(number)]),
        condition=np.full(number, condition),
    )


def features(of: LabelledFrames, noise_m: float, shift: float) -> np.ndarray:
    """Positions and joints, seen with noise, and shifted wherever the image is perturbed."""
    seen = np.hstack([of.hand_m, of.object_m, of.joints_rad])
    noise = np.random.default_rng(7).normal(scale=noise_m, size=seen.shape)
    return seen + noise + shift * (of.condition == "all")[:, None]


@pytest.fixture(scope="module")
def report() -> ProbeReport:
    train, test = frames("train", 0), concatenate([frames("none", 1), frames("all", 2)])
    robust = [features(of, 0.001, 0.0) for of in (train, test)]
    brittle = [features(of, 0.001, 0.3) for of in (train, test)]
    given = {"trained": (robust[0], robust[1]), "initial": (brittle[0], brittle[1])}
    groups = {"none": ("none",), "all": ("all",), "both": ("none", "all")}
    return score_probes(train, test, given, compared=("trained", "initial"), groups=groups, folds=3)


def test_brittle_features_fail_under_perturbation_alone(report: ProbeReport) -> None:
    for target in ("hand", "object", "joints"):
        for encoder in ("trained", "initial"):
            assert report.score(target, "none", encoder).error.value < 1
        assert report.score(target, "all", "trained").error.value < 1
        assert report.score(target, "all", "initial").error.value > 5
        assert report.score(target, "none", MEAN).error.value > 5
        gap = report.difference(target, "all").error
        assert gap.low < gap.value < gap.high < -5
        assert report.difference(target, "none").error.clusters == 2 * EPISODES


def test_grouped_conditions_are_scored_over_all_their_frames(report: ProbeReport) -> None:
    parts = [report.score("hand", c, "initial") for c in ("none", "all")]
    both = report.score("hand", "both", "initial")
    assert both.frames == sum(part.frames for part in parts)
    assert both.error.value == pytest.approx(np.mean([p.error.value for p in parts]))


def test_metrics_are_finite_and_complete(report: ProbeReport) -> None:
    metrics = report.metrics()
    assert np.isfinite(list(metrics.values())).all()
    assert len(metrics) == 3 * 3 * (3 + 1) * 3  # targets, conditions, encoders + gap, bounds
    assert metrics["probe/hand/all/difference_cm"] < 0


def test_images_are_drawn(report: ProbeReport) -> None:
    figure = plots.probe_figure(report, ("trained", "initial"))
    assert len(figure.axes) == 3
    both = concatenate([frames("none", 1), frames("all", 2)])
    both = LabelledFrames(*[*vars(both).values()][:5], np.tile(["a", "b"], 60), both.condition)
    sheet, conditions = plots.contact_sheet(both, tasks=2)
    assert conditions == ["none", "all"]
    assert sheet.shape == (2 * 24, 2 * 24, 3)


def test_embedding_is_frozen_and_in_order() -> None:
    class Encoder(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return images.float().mean((1, 2))

    images = frames("none", 3).images
    found = embed(Encoder().train(), images, batch_size=7)
    np.testing.assert_allclose(found, images.mean((1, 2)), rtol=1e-5)


def test_raw_pixels_are_the_image_itself() -> None:
    images = np.full((2, 32, 32, 3), 255, np.uint8)
    images[1] = 0
    found = raw_pixels(images, 16)
    assert found.shape == (2, 16 * 16 * 3)
    assert found.mean(1).tolist() == [1.0, 0.0]
