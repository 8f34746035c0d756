"""Score several encoders with probes under the same conditions, on the same frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynaflip.eval.intervals.cluster_bootstrap import Interval, cluster_mean, paired_difference
from dynaflip.eval.labelled_frames import TARGETS, UNITS, LabelledFrames
from dynaflip.eval.metrics.probes import FOLDS, Probe, errors_cm, errors_deg, fit_probe

MEAN = "mean"  # the training mean of the task: what no features are worth


@dataclass(frozen=True)
class Score:
    """Mean error of one encoder at one target under one condition."""

    target: str  # hand | object | joints
    condition: str
    encoder: str
    error: Interval  # over episodes, in the target's unit
    frames: int


@dataclass(frozen=True)
class Difference:
    """Error of one encoder less another's on the same frames; negative is better."""

    target: str
    condition: str
    encoder: str
    against: str
    error: Interval


@dataclass(frozen=True)
class ProbeReport:
    """All scores, paired differences, and the probes' own choices."""

    scores: list[Score]
    differences: list[Difference]
    probes: dict[tuple[str, str], Probe]  # (encoder, target)
    conditions: list[str]

    def score(self, target: str, condition: str, encoder: str) -> Score:
        """One score by its names."""
        wanted = (target, condition, encoder)
        return next(s for s in self.scores if (s.target, s.condition, s.encoder) == wanted)

    def difference(self, target: str, condition: str) -> Difference:
        """One paired difference by its names."""
        wanted = (target, condition)
        return next(d for d in self.differences if (d.target, d.condition) == wanted)

    def difference_from(self, target: str, condition: str, against: str) -> Difference:
        """One paired difference from a further encoder, by its names."""
        wanted = (target, condition, against)
        return next(d for d in self.differences if (d.target, d.condition, d.against) == wanted)

    def metrics(self) -> dict[str, float]:
        """``probe/<target>/<condition>/<encoder>_<unit>`` and ``…/difference_…``, with bounds.

        The difference from a further encoder is ``…/difference_from_<encoder>_…``.
        """
        flat: dict[str, float] = {}
        main = self.differences[0].against if self.differences else ""
        named = [(s, s.encoder) for s in self.scores] + [
            (d, "difference" if d.against == main else f"difference_from_{d.against}")
            for d in self.differences
        ]
        for entry, who in named:
            name, unit = f"probe/{entry.target}/{entry.condition}/{who}", UNITS[entry.target]
            flat[f"{name}_{unit}"] = entry.error.value
            flat[f"{name}_low_{unit}"] = entry.error.low
            flat[f"{name}_high_{unit}"] = entry.error.high
        return {key: value for key, value in flat.items() if np.isfinite(value)}


def score_probes(
    train: LabelledFrames,
    test: LabelledFrames,
    features: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    compared: tuple[str, str],
    further: Sequence[str] = (),
    groups: dict[str, tuple[str, ...]] | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> ProbeReport:
    """Fit a probe for each encoder and target on ``train``, and test it on ``test``.

    Args:
        train: unperturbed training frames.
        test: frames of every condition; tasks that are in ``train``.
        features: encoder → (features of train (N, D), features of test (M, D)).
        compared: (encoder, the one it is compared with), pair by pair.
        further: encoders that the first of these is compared with, too.
        groups: rows of the report: name → conditions whose frames are scored together
            under it; by default each condition by itself.
        folds: of the cross-validation that chooses penalties.
        seed: seeds the bootstrap over episodes.
    """
    groups = groups or {name: (name,) for name in dict.fromkeys(test.condition.tolist())}
    probes: dict[tuple[str, str], Probe] = {}
    scores: list[Score] = []
    differences: list[Difference] = []
    for target in TARGETS:
        truth = test.truth(target)
        errors_of = errors_deg if UNITS[target] == "deg" else errors_cm
        errors = {}
        for encoder, (of_train, of_test) in features.items():
            fitted = fit_probe(
                of_train, train.truth(target), train.task, train.episode, folds=folds
            )
            probes[encoder, target] = fitted
            errors[encoder] = errors_of(fitted.predict(of_test, test.task), truth)
            errors[MEAN] = errors_of(fitted.mean(test.task), truth)
        for condition, members in groups.items():
            here = np.isin(test.condition, members)
            episodes = test.episode[here]
            for encoder, error in errors.items():
                interval = cluster_mean(error[here], episodes, seed=seed)
                scores.append(Score(target, condition, encoder, interval, int(here.sum())))
            first, *others = (*compared, *further)
            for other in others:
                gap = paired_difference(
                    errors[first][here], errors[other][here], episodes, seed=seed
                )
                differences.append(Difference(target, condition, first, other, gap))
    return ProbeReport(scores, differences, probes, list(groups))
