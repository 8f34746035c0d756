"""Scores of a trial's frozen features: those that the sweep's objectives ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dynaflip.eval.intervals.cluster_bootstrap import Interval
from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.config import FLOW_PROBE, METRIC, PERTURBED, UNPERTURBED, SweepConfig
from dynaflip.platform.sweep.flow_score import FILE, FlowScore
from dynaflip.platform.sweep.probe_score import ProbeScore

if TYPE_CHECKING:
    from dynaflip.encoders.model import DynaFLIP


class Errors(Protocol):
    """An encoder's errors on test frames or recordings."""

    def metrics(self) -> dict[str, float]:
        """By the names of :data:`METRIC`."""

    def gap_of(self, others: Sequence[Any]) -> Interval:
        """The others' mean error minus this one's, paired, in the score's unit."""


@dataclass(frozen=True)
class TrialScore:
    """Scores a model in training, or a saved encoder; plain data, which Ray sends to trials."""

    probes: ProbeScore | None  # on labelled frames
    flow: FlowScore | None  # on the triplets

    def __call__(self, model: DynaFLIP) -> dict[str, float]:
        """Metrics of a model in training, whose mode is restored."""
        was_training = model.training
        try:
            return self.metrics(model.image)
        finally:
            model.train(was_training)

    def metrics(self, encoder: Any) -> dict[str, float]:
        """Metrics of an encoder by the names of :data:`METRIC`."""
        found: dict[str, float] = {}
        for score in (self.probes, self.flow):
            if score is not None:
                found |= score.errors(encoder).metrics()
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its metrics."""
        of_probes = () if self.probes is None else (METRIC[PERTURBED], METRIC[UNPERTURBED])
        return of_probes if self.flow is None else (*of_probes, METRIC[FLOW_PROBE])

    def ranking_errors(self, encoder: Any, objective: str) -> Errors:
        """The encoder's errors by the objective that ranks."""
        score = self.flow if objective == FLOW_PROBE else self.probes
        assert score is not None, "the ranking objective is scored"
        return score.errors(encoder)


def needs_labelled_frames(config: SweepConfig) -> bool:
    """True if an objective is scored on labelled frames."""
    return bool({PERTURBED, UNPERTURBED} & set(config.objectives))


def trial_score(config: SweepConfig, folder: Path) -> TrialScore:
    """The score of a sweep's trials, on the files in its folder."""
    score = config.score
    probes = flow = None
    if needs_labelled_frames(config):
        probes = ProbeScore(folder / folders.FRAMES, score.folds, score.batch_size)
    if FLOW_PROBE in config.objectives:
        flow = FlowScore(folder / FILE, score.flow_probe.folds, score.batch_size)
    return TrialScore(probes, flow)
