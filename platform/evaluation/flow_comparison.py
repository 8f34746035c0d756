"""Share of held-out 3D flow that frozen features explain, of several encoders on the same windows.

Part of the suite ``probes``: it reads triplets alone, so it needs neither simulator nor labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dynaflip.eval.expert_views import UNPERTURBED
from dynaflip.eval.intervals.cluster_bootstrap import Interval
from dynaflip.eval.metrics.flow_probe import FlowErrors, explained_metrics, flow_errors
from dynaflip.platform.evaluation.flow_frames import read_flow_frames
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig
from dynaflip.platform.evaluation.report.tables import INITIAL, TRAINED, Section

if TYPE_CHECKING:
    import polars as pl

    from dynaflip.encoders.model import DynaFLIP
    from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest

RANDOM = "random"
NOTE = (
    "Flow explained: a fresh ridge from frozen features of frame t to the motion that follows, the "
    "mean velocity of the tracked points in each of 4 x 4 parts of the image, camera frame of t; "
    "fitted on training recordings, tested on held-out ones. 0 is predicting the training mean of "
    "the source's camera, 100 is exact. Captions are not read."
)


@dataclass(frozen=True)
class FlowComparison:
    """Errors of every encoder, the trained one first."""

    errors: dict[str, FlowErrors]
    seed: int
    windows: int  # held out

    def metrics(self) -> dict[str, float]:
        """``flow_probe/<encoder>_percent`` and differences, with bounds."""
        return explained_metrics(self.errors, TRAINED, self.seed)

    def section(self) -> Section:
        """A row an encoder."""
        recordings = len(self.errors[TRAINED].mean)
        section = Section(
            f"Flow probe: held-out flow explained, in {self.windows} windows of {recordings} "
            "recordings (the training mean: 0)",
            columns=("", "explained %", f"{TRAINED} minus it, points"),
        )
        for name, errors in self.errors.items():
            gap = "" if name == TRAINED else _percent(self._gap(name), "+")
            section.rows.append([name, _percent(errors.explained(self.seed)), gap])
        return section

    def results(self, weights: dict[str, tuple[str, str]], **about: str) -> pl.DataFrame:
        """Rows of the tidy table; arguments as of :func:`.results_table.probe_results`."""
        import polars as pl

        from dynaflip.platform.evaluation.results_table import SCHEMA

        rows: list[dict[str, Any]] = []
        for name, errors in self.errors.items():
            share = errors.explained(self.seed)
            uri, digest = weights.get(name, (None, None))
            row: dict[str, Any] = {**about, "encoder": name, "weights": uri, "digest": digest}
            row |= {"factor": UNPERTURBED, "level": 0, "metric": "flow_probe", "unit": "share"}
            row |= {"value": share.value, "low": share.low, "high": share.high, "chance": 0.0}
            rows.append({**row, "count": self.windows})
        return pl.DataFrame(rows, schema=SCHEMA)

    def _gap(self, name: str) -> Interval:
        return self.errors[TRAINED].more_than(self.errors[name], self.seed)


def compare_flow(
    trained: DynaFLIP,
    initial: DynaFLIP,
    others: Sequence[EncoderUnderTest],
    config: ProbeSuiteConfig,
) -> FlowComparison | str:
    """Score the trained encoder, its initialisation, random weights and others; or why not.

    Args:
        trained, initial: the model under test, and as it was before its first step.
        others: further encoders.
        config: resolved settings.
    """
    from dynaflip.platform.evaluation.encoders_under_test import load
    from dynaflip.platform.evaluation.initialisation import initialisation_of
    from dynaflip.platform.training.data.index import read_index

    assert config.triplets is not None
    frames = read_flow_frames(read_index(config.triplets), config.flow_probe)
    reason = frames.windows.why_meaningless()
    if reason is not None:
        return reason
    device = next(trained.parameters()).device
    image = replace(trained.config.image, pretrained=False)
    models: dict[str, Any] = {TRAINED: trained.image, INITIAL: initial.image}
    blind = initialisation_of(trained, replace(trained.config, image=image))
    models[RANDOM] = blind.image.to(device)
    errors = {}
    for name, encoder in (*models.items(), *((one.name, one) for one in others)):
        network = encoder if name in models else load(encoder.encoders[0]).to(device)
        features = frames.features(network, config.batch_size)
        errors[name] = flow_errors(frames.windows, features, config.flow_probe.folds)
    return FlowComparison(errors, config.seed, int(frames.windows.heldout.sum()))


def _percent(share: Interval, sign: str = "") -> str:
    form = f"{sign}.1f"
    value = f"{100 * share.value:{form}}"
    if share.low != share.low:  # NaN: one recording has no interval
        return value
    return f"{value} [{100 * share.low:{form}}, {100 * share.high:{form}}]"
