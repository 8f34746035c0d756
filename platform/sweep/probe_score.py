"""The score of a trial: probe error under perturbation, in cm (lower is better).

Losses with different weights are not comparable, nor is retrieval by a run's own energy. So the
frozen features are tested on something that the weights do not define: a ridge probe, fitted on
unperturbed training frames, predicts the positions of hand and object in images with one ``dev``
factor perturbed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynaflip.eval.expert_views import UNPERTURBED as PLAIN
from dynaflip.eval.labelled_frames import POSITIONS, embed
from dynaflip.eval.metrics.probes import errors_cm, fit_probe
from dynaflip.platform.sweep.config import METRIC, PERTURBED, UNPERTURBED
from dynaflip.platform.sweep.frames import TRAIN, read_frames

if TYPE_CHECKING:
    from dynaflip.encoders.image import ImageEncoder
    from dynaflip.encoders.model import DynaFLIP


@dataclass(frozen=True)
class FrameErrors:
    """Probe errors of M test frames, mean of hand and object."""

    error_cm: np.ndarray  # (M,)
    episode: np.ndarray  # (M,) str
    perturbed: np.ndarray  # (M,) bool: one factor changed; else unperturbed

    def metrics(self) -> dict[str, float]:
        """Mean errors by :data:`METRIC`, cm."""
        return {
            METRIC[PERTURBED]: float(self.error_cm[self.perturbed].mean()),
            METRIC[UNPERTURBED]: float(self.error_cm[~self.perturbed].mean()),
        }


class ProbeScore:
    """Scores models on a file of labelled frames; pickles as a path and settings."""

    def __init__(self, frames: Path, folds: int, batch_size: int) -> None:
        """Set the file and the probes' settings; frames are read at the first score."""
        self.frames, self.folds, self.batch_size = frames, folds, batch_size

    def __call__(self, model: DynaFLIP) -> dict[str, float]:
        """Metrics of a model in training, whose mode is restored."""
        was_training = model.training
        try:
            return self.errors(model.image).metrics()
        finally:
            model.train(was_training)

    def errors(self, encoder: ImageEncoder) -> FrameErrors:
        """Errors of the encoder's probes on each test frame."""
        frames = read_frames(self.frames)
        features = embed(encoder, frames.images, self.batch_size)
        fitted = frames.condition == TRAIN
        train, test = frames.where(fitted), frames.where(~fitted)
        total_cm = np.zeros(len(test))
        for target in POSITIONS:
            probe = fit_probe(
                features[fitted],
                train.truth(target),
                train.task,
                train.episode,
                folds=self.folds,
            )
            predicted_m = probe.predict(features[~fitted], test.task)
            total_cm += errors_cm(predicted_m, test.truth(target))
        return FrameErrors(total_cm / len(POSITIONS), test.episode, test.condition != PLAIN)
