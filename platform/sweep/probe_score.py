"""The score of a trial: probe error under perturbation, in cm (lower is better).

Losses with different weights are not comparable, nor is retrieval by a run's own energy. So the
frozen features are tested on something that the weights do not define: a ridge probe, fitted on
unperturbed training frames, predicts the positions of hand and object in images with one ``dev``
factor perturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynaflip.eval.expert_views import UNPERTURBED as PLAIN
from dynaflip.eval.intervals.cluster_bootstrap import Interval, paired_difference
from dynaflip.eval.labelled_frames import POSITIONS, embed
from dynaflip.eval.metrics.probes import errors_cm, fit_probe
from dynaflip.platform.sweep.config import METRIC, PERTURBED, UNPERTURBED
from dynaflip.platform.sweep.frames import TRAIN, read_frames

if TYPE_CHECKING:
    from dynaflip.encoders.image import ImageEncoder


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

    def gap_of(self, others: Sequence[FrameErrors]) -> Interval:
        """The others' mean error under perturbation minus this one's, in cm, over episodes."""
        here = self.perturbed
        mean_cm = np.mean([errors.error_cm for errors in others], axis=0)
        return paired_difference(mean_cm[here], self.error_cm[here], self.episode[here])


@dataclass(frozen=True)
class ProbeScore:
    """Scores encoders on a file of labelled frames; pickles as a path and settings."""

    frames: Path
    folds: int
    batch_size: int

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
