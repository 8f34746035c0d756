"""MLflow runs: open, log, end.

The driver opens a run; Ray's controller logs into it by its id (a :class:`Run` is plain data and
pickles).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.platform.config_loader import flatten, to_dict, to_yaml
from dynaflip.platform.passwords import masked
from dynaflip.platform.paths import mlflow_folder
from dynaflip.platform.provenance import provenance
from dynaflip.platform.tracking.store import (
    GONE,
    away_errors,
    client,
    first_line,
    is_embedded,
    request_timeout,
    store_away,
    tracking_uri,
)
from dynaflip.platform.tracking.views import view_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_BATCH = 1000  # metrics in one log_batch; the server refuses more
_HURRY_S = 3.0  # for each request of a process that was told to end
_MAX_PARAM_CHARS = 6000
UPLOAD_S = 120.0  # for a large file: the server answers when it has stored it
# The tag by which MLflow shows runs below others.
PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Run:
    """One MLflow run, by its id; the same object works in the driver and in Ray's controller."""

    run_id: str
    run_name: str
    uri: str  # of the store it is in

    def _client(self) -> MlflowClient:
        """A client of the run's store, in whatever process this is."""
        return client(self.uri)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Append one point to each named curve, in as few calls as possible."""
        self.log_curves([(step, metrics)])

    def log_curves(self, points: list[tuple[int, dict[str, float]]]) -> None:
        """Append several (step, {name: value}) points in as few calls as possible."""
        now_ms = int(time.time() * 1000)
        self.log_points([(step, now_ms, metrics) for step, metrics in points])

    def log_points(self, points: list[tuple[int, int, dict[str, float]]]) -> None:
        """Append several (step, time in ms, {name: value}) points in as few calls as possible.

        A point with the name, step, time and value of one that the store has is the same point.
        """
        from mlflow.entities import Metric

        batch = [
            Metric(name, float(value), time_ms, step)
            for step, time_ms, metrics in points
            for name, value in metrics.items()
        ]
        store = self._client()
        for start in range(0, len(batch), _MAX_BATCH):
            # Whatever the environment says: after the call the server has them.
            store.log_batch(
                self.run_id, metrics=batch[start : start + _MAX_BATCH], synchronous=True
            )

    def log_settings(self, config: Any) -> None:
        """Log a settings dataclass: ``config.yaml`` as an artifact, each dotted key as a param."""
        from mlflow.entities import Param

        store = self._client()
        store.log_text(self.run_id, masked(to_yaml(config)), "config.yaml")
        flat = flatten(to_dict(config))
        params = [Param(key, masked(str(value))[:_MAX_PARAM_CHARS]) for key, value in flat.items()]
        for start in range(0, len(params), 100):
            store.log_batch(self.run_id, params=params[start : start + 100])

    def set_tags(self, tags: dict[str, Any]) -> None:
        """Set tags; values are written as text."""
        from mlflow.entities import RunTag

        self._client().log_batch(
            self.run_id, tags=[RunTag(k, masked(str(v))) for k, v in tags.items()]
        )

    def tags(self) -> dict[str, str]:
        """The run's tags."""
        return dict(self._client().get_run(self.run_id).data.tags)

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        """Log a file (an image, a table) as an artifact."""
        self._client().log_artifact(self.run_id, str(path), folder)

    def log_folder(self, path: str | Path, folder: str) -> None:
        """Log all files of a folder as artifacts, below a folder of the run's."""
        with request_timeout(UPLOAD_S, retries=2):
            self._client().log_artifacts(self.run_id, str(path), folder)

    def log_dataset(self, name: str, digest: str, source: str, profile: str = "{}") -> None:
        """Name the data set that the run is about or was trained on.

        Args:
            name: short, of the folder.
            digest: of its content.
            source: where it lies.
            profile: counts, JSON.
        """
        from mlflow.entities import Dataset, DatasetInput

        found = Dataset(
            name=name,
            digest=digest[:32],
            source_type="local" if "://" not in source else source.split("://")[0],
            source=json.dumps({"uri": masked(source)}),
            profile=profile,
        )
        self._client().log_inputs(self.run_id, datasets=[DatasetInput(dataset=found, tags=[])])

    def log_figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure as an artifact, e.g. ``images/loss.png``."""
        self._client().log_figure(self.run_id, figure, name)

    def log_text(self, text: str, name: str) -> None:
        """Log text as an artifact, e.g. ``report.md``."""
        self._client().log_text(self.run_id, text, name)

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Every logged curve as (step, value) in order; the last value at a step counts."""
        store = self._client()
        found = {}
        for name in store.get_run(self.run_id).data.metrics:
            history = store.get_metric_history(self.run_id, name)
            found[name] = sorted({point.step: point.value for point in history}.items())
        return found

    def end(self, status: str) -> None:
        """Mark the run ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._client().set_terminated(self.run_id, status)


def open_run(
    experiment: str,
    run_name: str,
    tags: dict[str, Any] | None = None,
    parent: Run | None = None,
) -> Run:
    """Start a run in an experiment (made if it is missing), stamped with where it runs.

    Runs that a killed process of this machine left RUNNING are marked KILLED first.

    Args:
        experiment: its name.
        run_name: for people.
        tags: values are written as text.
        parent: a run of the same experiment, below which the UI shows this one.
    """
    store = client()
    experiment_id = _experiment_id(store, experiment)
    _bury_the_dead(store, experiment_id)
    stamped = {**provenance(), **_process_tags(), **(tags or {})}
    if parent is not None:
        stamped[PARENT] = parent.run_id
    run = store.create_run(
        experiment_id,
        run_name=run_name,
        tags={name: masked(str(value)) for name, value in stamped.items()},
    )
    return Run(run.info.run_id, run_name, tracking_uri())


def reopen_run(run_id: str) -> Run:
    """Go on with a run that ended or was killed: its curves continue.

    Raises:
        UserError: this store has no such run.
        StoreError: the store does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        store = client()
        run = store.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":  # in the UI, alone or with its experiment
            _restore(store, run)
        store.update_run(run_id, status="RUNNING")
        if "error" in run.data.tags:
            store.delete_tag(run_id, "error")  # of the session that failed
        reopened = Run(run_id, run.info.run_name, tracking_uri())
        reopened.set_tags(_process_tags())
    except MlflowException as error:
        if error.error_code not in GONE:
            raise store_away(error) from None
        raise UserError(
            f"MLflow store {masked(tracking_uri())} has no run {run_id}; is DYNAFLIP_HOME or "
            f"MLFLOW_TRACKING_URI another one than when the run was started?"
        ) from None
    return reopened


@contextlib.contextmanager
def ending(run: Run) -> Iterator[Run]:
    """End the run with the block: FINISHED, FAILED by an exception, KILLED by a signal."""
    previous = None
    if hasattr(signal, "SIGTERM") and _in_main_thread():
        previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield run
    except (KeyboardInterrupt, SystemExit):
        with request_timeout(_HURRY_S, 0):  # whoever sent the signal may send another soon
            _end(run, "KILLED")
        raise
    except BaseException as error:
        _end(run, "FAILED", error)
        raise
    else:
        _end(run, "FINISHED")
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _end(run: Run, status: str, error: BaseException | None = None) -> None:
    """End a run; a store that is away is one line, and no error of what has run."""
    try:
        if error is not None:
            run.set_tags({"error": str(error)[:500]})
        run.end(status)
    except away_errors() as away:
        print(
            f"warning: MLflow does not take that run {run.run_name} is {status} "
            f"({first_line(away)})",
            file=sys.stderr,
        )


def _experiment_id(store: MlflowClient, name: str) -> str:
    found = store.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":  # in the UI; its name stays taken
            store.restore_experiment(found.experiment_id)
            print(f"the experiment {name} had been deleted in MLflow: it is restored")
        return found.experiment_id
    if not is_embedded():
        return store.create_experiment(name, tags=view_tags(name))
    # Absolute: workers have another working directory.
    location = (mlflow_folder() / "artifacts" / name).as_uri()
    return store.create_experiment(name, artifact_location=location, tags=view_tags(name))


def _restore(store: MlflowClient, run: Any) -> None:
    """Bring back a run that was deleted in MLflow, and its experiment."""
    experiment_id = run.info.experiment_id
    if store.get_experiment(experiment_id).lifecycle_stage == "deleted":
        store.restore_experiment(experiment_id)
    if store.get_run(run.info.run_id).info.lifecycle_stage == "deleted":
        store.restore_run(run.info.run_id)
    print(f"the run {run.info.run_name} had been deleted in MLflow: it is restored")


def _process_tags() -> dict[str, str]:
    return {
        "dynaflip.host": socket.gethostname(),
        "dynaflip.pid": str(os.getpid()),
        "dynaflip.process": _process_start(os.getpid()) or "",
    }


def _process_start(pid: int) -> str | None:
    """When a process started (clock ticks since boot), or None where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _bury_the_dead(store: MlflowClient, experiment_id: str) -> None:
    """Mark runs KILLED whose process on this machine is gone (SIGKILL leaves them RUNNING)."""
    running = store.search_runs([experiment_id], "attributes.status = 'RUNNING'")
    for run in running:
        tags = run.data.tags
        if tags.get("dynaflip.host") != socket.gethostname():
            continue  # another machine's process cannot be looked at from here
        pid = int(tags.get("dynaflip.pid", "0"))
        if not Path("/proc").is_dir() or pid <= 0:
            continue
        if _process_start(pid) != tags.get("dynaflip.process"):
            store.set_terminated(run.info.run_id, "KILLED")


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def _terminate(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)
