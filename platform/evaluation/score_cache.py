"""Scores of the suite ``probes`` in MLflow: logged, and read back when nothing has changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.encoders.checkpoint import CONFIG
from dynaflip.errors import UserError
from dynaflip.eval.envs.registry import DEFAULT_ENVIRONMENT, environment
from dynaflip.eval.expert_views import RENDER_VERSION
from dynaflip.platform import tracking
from dynaflip.platform.config_loader import config_digest
from dynaflip.platform.evaluation.config import TUNING_SPLIT
from dynaflip.platform.evaluation.encoders_under_test import EncoderUnderTest, resolve_others
from dynaflip.platform.evaluation.outcome import Outcome
from dynaflip.platform.evaluation.probe_config import ProbeSuiteConfig
from dynaflip.platform.evaluation.results_table import save_results
from dynaflip.platform.paths import default_data, default_triplets, home, input_path
from dynaflip.platform.tracking import registry
from dynaflip.platform.tracking.version_card import add_result
from dynaflip.platform.triplets.schema import read_manifest
from dynaflip.renames import first_settings

if TYPE_CHECKING:
    import polars as pl

_SIMULATOR_TAG = "simulator"  # as of rollouts
_FLOW_TAG = "flow_probe"  # of scores from when there was one: whether it is shown

# Metrics that a registered version shows as tags.
_HEADLINES = (
    "trained/retrieval/task/top1",
    "trained/retrieval/task/chance",
    "probe/hand/one/trained_cm",
    "probe/hand/one/initial_cm",
    "probe/hand/all/trained_cm",
    "probe/hand/all/initial_cm",
    "probe/object/one/trained_cm",
    "probe/object/one/initial_cm",
    "probe/object/all/trained_cm",
    "probe/object/all/initial_cm",
)


def find_score(config: ProbeSuiteConfig) -> Outcome | None:
    """The newest finished score of these weights on these triplets with these settings, if any.

    Raises:
        UserError: the encoder or the triplets do not exist.
    """
    folder = registry.resolve(config.encoder)
    config = resolved(config)
    assert config.triplets is not None
    others = resolve_others(config)
    digest = score_digest(config, folder, read_manifest(config.triplets), others)
    run = tracking.find_finished({"kind": "evaluate", "score_digest": digest})
    if run is None:
        return None
    if now := _simulator(config):
        before = run.tags.get(_SIMULATOR_TAG, now)  # of before it was recorded
        if before != now:
            print(f"a score of these weights is of {before}, not of {now}: they are scored anew")
            return None
    if _FLOW_TAG not in run.tags:
        print("a score of these weights is of before the flow probe: they are scored anew")
        return None
    table = tracking.read_artifact(run.run_id, "table.txt")
    report = home() / "reports" / f"{run.run_name}.html"
    if table is None or not report.is_file():
        return None
    results = report.with_suffix(".parquet")
    return Outcome(
        table.decode(),
        run.run_name,
        run.run_id,
        metrics=run.metrics,
        report=report,
        results=results if results.is_file() else None,  # of before there were any
    )


def resolved(config: ProbeSuiteConfig) -> ProbeSuiteConfig:
    """The settings with the paths of data and triplets filled in."""
    return dataclasses.replace(
        config,
        data=input_path(config.data, default_data()),
        triplets=input_path(config.triplets, default_triplets()),
    )


def score_digest(
    config: ProbeSuiteConfig,
    folder: Path,
    manifest: dict[str, Any],
    others: Sequence[EncoderUnderTest] = (),
) -> str:
    """Equal for equal weights, recordings, triplets and settings, whatever they are called."""
    assert config.data is not None, "resolved by the caller"
    about = Path(config.data) / "meta" / "dynaflip.json"  # how the recordings were made
    what = dataclasses.replace(
        config,
        encoder="weights",
        encoders=tuple(f"{entry.name}={entry.encoders[0].digest}" for entry in others),
        data=about.read_text() if about.is_file() else config.data,
        triplets=manifest["digest"],
    )
    settings = first_settings(what)
    if config.views.environment == DEFAULT_ENVIRONMENT:
        del settings["views"]["environment"]  # as before there were others
    preprocessing = json.loads((folder / CONFIG).read_text())["preprocessing"]
    digest = hashlib.sha256(config_digest(settings).encode())
    digest.update(json.dumps([preprocessing, RENDER_VERSION], sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _simulator(config: ProbeSuiteConfig) -> str:
    """Version of the simulator of rendered views; empty where it is not needed or not installed."""
    if not config.probes.enabled:
        return ""
    try:
        return environment(config.views.environment).version()
    except UserError:  # retrieval alone takes no simulator
        return ""


def log_score(
    config: ProbeSuiteConfig,
    info: dict[str, Any],
    digest: str,
    run_name: str,
    metrics: dict[str, float],
    table: str,
    path: Path,
    results: pl.DataFrame,
    verdict: list[str],
) -> str:
    """Log the score as an MLflow run, and name it on the encoder's version and in its card.

    Args:
        config: resolved settings.
        info: of the encoder.
        digest: of :func:`score_digest`.
        run_name: for people; files beside the report that begin with it are logged too.
        metrics: flat.
        table: plain text.
        path: of the HTML report.
        results: of :func:`dynaflip.platform.evaluation.results_table.probe_results`.
        verdict: sentences, none where there are no probes.

    Returns:
        MLflow's id of the run.
    """
    made_by = info.get("mlflow_run_id")
    versions = registry.versions_of_run(made_by) if made_by else []
    tags = {
        "kind": "evaluate",
        "encoder": config.encoder,
        "encoder_run_id": info.get("mlflow_run_id", ""),
        "encoder_run_name": info.get("run_name", ""),
        "encoder_version": ", ".join(f"{v.name}/{v.number}" for v in versions),
        "perturbation_split": TUNING_SPLIT,
        "score_digest": digest,
        _FLOW_TAG: "shown"
        if any(key.startswith("flow_probe/") for key in metrics)
        else "not shown",
    }
    if simulator := _simulator(config):
        tags[_SIMULATOR_TAG] = simulator
    run = tracking.open_run(config.experiment, run_name, tags)
    with tracking.ending(run):
        run.log_settings(config)
        run.log_metrics(metrics, step=0)
        run.log_text(table, "table.txt")
        run.log_text(json.dumps(metrics, indent=1, sort_keys=True), "metrics.json")
        for file in sorted(path.parent.glob(f"{run_name}*")):
            run.log_file(file)
        save_results(results, path, run)
    headlines = {key: f"{metrics[key]:.4g}" for key in _HEADLINES if key in metrics}
    marks = {"evaluation_run_id": run.run_id, **headlines}
    for version in versions:
        registry.set_version_tags(version.name, version.number, marks)
    if made_by:
        add_result(made_by, f"probes on {TUNING_SPLIT}", verdict, run.run_id)
    return run.run_id
