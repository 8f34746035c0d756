"""Runs as the store has them, found by name, id, tags or parent."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynaflip.platform.tracking.runs import Run
from dynaflip.platform.tracking.store import client, store_error, tracking_uri


@dataclass(frozen=True)
class RunRecord:
    """A run and what it has logged so far."""

    run: Run
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]  # the last value of every curve

    @property
    def run_id(self) -> str:
        """MLflow's id."""
        return self.run.run_id

    @property
    def run_name(self) -> str:
        """The name that people read."""
        return self.run.run_name


def find_run(name_or_id: str) -> RunRecord | None:
    """The newest run of this name, or the run of this id; None if there is neither."""
    if "'" not in name_or_id:
        named = _search(f"attributes.run_name = '{name_or_id}'", most=1)
        if named:
            return named[0]
    try:
        return record_of(client().get_run(name_or_id), tracking_uri())
    except store_error():
        return None


def find_finished(tags: dict[str, str]) -> RunRecord | None:
    """The newest finished run with these tags, or None."""
    finished = _search(f"{_with(tags)} and attributes.status = 'FINISHED'", most=1)
    return finished[0] if finished else None


def runs_with_tags(tags: dict[str, str], most: int = 5000) -> list[RunRecord]:
    """The newest runs with these tags, of all experiments."""
    return _search(_with(tags), most)


def newest_run_names(kind: str, number: int = 3) -> list[str]:
    """Names of the newest runs with a tag ``kind``."""
    return [record.run_name for record in _search(_with({"kind": kind}), number)]


def read_artifact(run_id: str, name: str) -> bytes | None:
    """A file that a run logged, or None if it has no such file."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client().download_artifacts(run_id, name, folder)).read_bytes()
        except (store_error(), OSError):
            return None


def record_of(run: Any, uri: str) -> RunRecord:
    """MLflow's entity of a run as a record.

    Args:
        run: ``mlflow.entities.Run``.
        uri: of its store.
    """
    return RunRecord(
        Run(run.info.run_id, run.info.run_name, uri),
        run.info.status,
        dict(run.data.tags),
        dict(run.data.params),
        dict(run.data.metrics),
    )


def _with(tags: dict[str, str]) -> str:
    return " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())


def _search(query: str, most: int) -> list[RunRecord]:
    """Runs of all experiments, the newest first."""
    store, uri = client(), tracking_uri()
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    return [record_of(run, uri) for run in store.search_runs(experiments, query, max_results=most)]
