"""All results of an evaluation as one tidy table: a row an encoder, task, factor, level, seed and
metric, with its interval; ``results.parquet`` of the MLflow run, and beside the report.

Every suite writes the same columns, so that tables of several runs are concatenated and filtered.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from scipy import stats

from dynaflip.eval.expert_views import UNPERTURBED
from dynaflip.eval.intervals.hierarchical_bootstrap import LEVEL
from dynaflip.platform.evaluation.plan import EvaluationJob

if TYPE_CHECKING:
    from dynaflip.eval.metrics.probe_report import ProbeReport
    from dynaflip.platform import tracking

RESULTS_FILE = "results.parquet"
SCHEMA = {
    "suite": pl.String,
    "run": pl.String,  # name of the MLflow run
    "split": pl.String,
    "environment": pl.String,
    "encoder": pl.String,  # name in the tables
    "weights": pl.String,  # URI, folder, or hub id with its commit
    "digest": pl.String,  # of weights and preprocessing
    "proprioception": pl.Boolean,
    "demonstrations": pl.Int64,  # per task, that the policy was trained on
    "task": pl.String,
    "factor": pl.String,
    "level": pl.Int64,  # 0 where nothing is perturbed
    "seed": pl.Int64,  # of the policy
    "metric": pl.String,
    "unit": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,  # 95 %; null where there is a single unit
    "high": pl.Float64,
    "count": pl.Int64,  # initial states, transitions or episodes behind the value
    "chance": pl.Float64,  # what a blind guess gives, where there is one
}
_EPISODES = (
    "arm", "encoder_digest", "proprioception", "demonstrations", "task", "factor", "level", "seed",
)  # fmt: skip


def policy_results(
    table: pl.DataFrame, jobs: list[EvaluationJob], measures: tuple[str, ...], **about: str
) -> pl.DataFrame:
    """Rows of policies: a mean over initial states, with its interval over these alone.

    Args:
        table: a row per episode, of :func:`dynaflip.platform.evaluation.results.episode_table` or
            :func:`dynaflip.platform.evaluation.suites.imitation.imitation_table`.
        jobs: all of the evaluation.
        measures: columns of the values, in [0, 1].
        about: ``suite``, ``run``, ``split`` and ``environment``.
    """
    weights = {job.policy.encoder.digest: job.policy.encoder.name for job in jobs}
    rows: list[dict[str, Any]] = []
    for key, episodes in table.group_by(*_EPISODES, maintain_order=True):
        name, digest, *rest = key
        place = dict(zip(_EPISODES[2:], rest, strict=True))
        named = {**about, "encoder": name, "weights": weights[str(digest)], "digest": digest}
        for measure in measures:
            values = episodes[measure].cast(pl.Float64).to_numpy()
            low, high = state_interval(values)
            row = {**named, **place, "metric": measure, "unit": "share", "value": values.mean()}
            rows.append({**row, "low": low, "high": high, "count": len(values)})
    return _frame(rows)


def state_interval(values: np.ndarray) -> tuple[float | None, float | None]:
    """Interval of the mean of one policy's values in [0, 1] over independent initial states (E,).

    Student's, as :func:`dynaflip.eval.intervals.hierarchical_bootstrap.success_rate` has it for a
    single seed and task, in closed form. Where all values are alike it is Clopper and Pearson's
    bound of how many others may have been missed; None for one state.
    """
    number, mean = len(values), float(values.mean())
    if number < 2:
        return None, None
    error = float(values.std(ddof=1)) / np.sqrt(number)
    if error > 0:
        half = float(stats.t.ppf((1 + LEVEL) / 2, number - 1)) * error
    else:
        half = 1 - ((1 - LEVEL) / 2) ** (1 / number)
    return max(mean - half, 0.0), min(mean + half, 1.0)


def probe_results(
    retrieval: dict[str, dict[str, float]],
    report: ProbeReport | None,
    weights: dict[str, tuple[str, str]],
    level: int,
    **about: str,
) -> pl.DataFrame:
    """Rows of retrieval and of probes; tasks are pooled and no policy has a seed, so both are null.

    Args:
        retrieval: name of a model → its metrics.
        report: of the probes; None where there are none.
        weights: name of an encoder → its URI and its digest.
        level: of the perturbation.
        about: ``suite``, ``run``, ``split`` and ``environment``.
    """
    rows: list[dict[str, Any]] = []

    def named(name: str) -> dict[str, Any]:
        uri, digest = weights.get(name, (None, None))
        return {**about, "encoder": name, "weights": uri, "digest": digest}

    for name, metrics in retrieval.items():
        for key in (key for key in metrics if key.endswith("/top1")):
            scope = key.removesuffix("/top1")
            row = {**named(name), "factor": UNPERTURBED, "level": 0, "metric": key}
            row |= {"unit": "share", "value": metrics[key], "chance": metrics[f"{scope}/chance"]}
            row |= {end: metrics.get(f"{scope}/{end}") for end in ("low", "high")}
            rows.append({**row, "count": int(metrics[f"{scope}/queries"])})
    for score in report.scores if report is not None else []:
        from dynaflip.eval.labelled_frames import UNITS
        from dynaflip.eval.plots import RECORDED

        plain = score.condition in (UNPERTURBED, RECORDED)
        row = {**named(score.encoder), "factor": score.condition, "level": 0 if plain else level}
        row |= {"metric": f"probe/{score.target}", "unit": UNITS[score.target]}
        error = score.error
        row |= {"value": error.value, "count": error.clusters}
        rows.append({**row, "low": _finite(error.low), "high": _finite(error.high)})
    return _frame(rows)


def save_results(frame: pl.DataFrame, report: Path, run: tracking.Run) -> Path:
    """Write the table beside the report and log it; the path of the file.

    Args:
        frame: of this module.
        report: path of the HTML report.
        run: the evaluation's open run.
    """
    path = report.with_suffix(".parquet")
    frame.write_parquet(path)
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / RESULTS_FILE
        named.write_bytes(path.read_bytes())
        run.log_file(named)
    return path


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
