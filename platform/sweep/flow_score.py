"""The objective ``flow_probe``: held-out 3D flow that frozen features leave unexplained.

It needs the sweep's own triplets alone: no simulator, no labels. A fresh ridge is fitted for each
model, on the same windows (:mod:`dynaflip.eval.metrics.flow_probe`). In percent: 100
is what predicting the training mean leaves, and lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynaflip.errors import UserError
from dynaflip.eval.intervals.cluster_bootstrap import Interval, cluster_ratio
from dynaflip.eval.metrics.flow_probe import FlowErrors, flow_errors
from dynaflip.platform.evaluation.flow_frames import (
    FlowFrames,
    read_flow_file,
    read_flow_frames,
    write_flow_frames,
)
from dynaflip.platform.evaluation.flow_probe_config import FlowProbeConfig
from dynaflip.platform.sweep.config import FLOW_PROBE, METRIC

if TYPE_CHECKING:
    from dynaflip.platform.training.data.index import TripletIndex

FILE = "flow_frames.npz"  # in the sweep's folder


@dataclass(frozen=True)
class UnexplainedFlow:
    """An encoder's errors on the held-out windows, as the sweep's other scores are read."""

    errors: FlowErrors

    def metrics(self) -> dict[str, float]:
        """By the name of :data:`METRIC`."""
        return {METRIC[FLOW_PROBE]: self.errors.unexplained_percent()}

    def gap_of(self, others: Sequence[UnexplainedFlow]) -> Interval:
        """The others' mean share unexplained minus this one's, in percent, over recordings."""
        mean = np.mean([other.errors.left for other in others], axis=0)
        gap = cluster_ratio(mean - self.errors.left, self.errors.mean)
        return Interval(100 * gap.value, 100 * gap.low, 100 * gap.high, gap.clusters)


@dataclass(frozen=True)
class FlowScore:
    """Scores encoders on a file of windows; pickles as a path and settings."""

    path: Path
    folds: int
    batch_size: int

    def errors(self, encoder: Any) -> UnexplainedFlow:
        """Errors of a fresh probe on the encoder's features."""
        frames = read_flow_file(self.path)
        features = frames.features(encoder, self.batch_size)
        return UnexplainedFlow(flow_errors(frames.windows, features, self.folds))


def make_flow_frames(index: TripletIndex, config: FlowProbeConfig, folder: Path) -> FlowFrames:
    """Write the windows that all trials are scored on into the sweep's folder.

    Raises:
        UserError: a score on these triplets would mean nothing.
    """
    frames = read_flow_frames(index, config)
    reason = frames.windows.why_meaningless()
    if reason is not None:
        raise UserError(f"sweep.objectives {FLOW_PROBE}: {index.folder}: {reason}")
    write_flow_frames(frames, folder / FILE)
    return frames
