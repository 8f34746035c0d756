"""The only place that talks to MLflow's tracking (the registry beside it knows the rest).

The store is embedded: SQLite and an artifact folder below ``DYNAFLIP_HOME``, no
server. ``MLFLOW_TRACKING_URI`` overrides it. The driver opens the run; Ray's
controller logs into it by its id (a :class:`Run` is plain data and pickles).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dynaflip.errors import StoreError, UserError
from dynaflip.platform.config_loader import flatten, to_dict, to_yaml
from dynaflip.platform.passwords import masked
from dynaflip.platform.paths import mlflow_folder
from dynaflip.platform.provenance import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient

_URI = "MLFLOW_TRACKING_URI"
_CONNECT_S = 5.0
_MAX_BATCH = 1000  # metrics in one log_batch; the server refuses more
_MAX_PARAM_CHARS = 6000
# The tag by which MLflow shows runs below others.
PARENT = "mlflow.parentRunId"
# MLflow's telemetry thread and its colour codes have no place in a job's output.
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}


def tracking_uri() -> str:
    """The store's absolute URI: ``MLFLOW_TRACKING_URI``, or SQLite below the home."""
    return os.environ.get(_URI) or f"sqlite:///{mlflow_folder() / 'mlflow.db'}"


def is_embedded() -> bool:
    """Whether runs go into the home's own store."""
    return not os.environ.get(_URI)


def client(uri: str | None = None) -> MlflowClient:
    """A client of the store; makes the embedded one if it does not exist yet.

    Only a driver may be the first to call this: two processes that create one
    SQLite file at the same time crash in its migration.

    Args:
        uri: of the store; by default :func:`tracking_uri`.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import logging

    # One line a migration step, on every fresh store, says nothing to a user.
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if is_embedded():
        (mlflow_folder() / "artifacts").mkdir(parents=True, exist_ok=True)
    import mlflow

    chosen = os.environ.get(_URI)
    uri = uri or tracking_uri()
    _check_answers(uri)
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
        # It also sets the variable, which would then read as the user's own choice.
        if chosen is None:
            os.environ.pop(_URI, None)
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.MlflowClient(tracking_uri=uri)
    except MlflowException:
        raise UserError(
            f"{_URI}={masked(uri)}: MLflow knows no such store; give http(s)://HOST, "
            "sqlite:///FILE or postgresql://…"
        ) from None


def store_error() -> type[Exception]:
    """What a store raises that refuses, or does not answer any more."""
    from mlflow.exceptions import MlflowException

    return MlflowException


@lru_cache
def _check_answers(uri: str) -> None:
    """Refuse a server that nobody answers at, before MLflow tries for minutes."""
    place = urlsplit(uri)
    if place.scheme not in ("http", "https") or not place.hostname:
        return
    if place.scheme in getproxies() and not proxy_bypass(place.hostname):
        return  # the proxy answers for it
    port = place.port or (443 if place.scheme == "https" else 80)
    try:
        socket.create_connection((place.hostname, port), timeout=_CONNECT_S).close()
    except OSError as error:
        why = error.strerror or error
        raise StoreError(
            f"{_URI}={masked(uri)}: no server answers there ({why}); start it, or unset the "
            "variable to keep runs in DYNAFLIP_HOME"
        ) from None


@dataclass(frozen=True)
class Run:
    """One MLflow run, by its id; the same object works in the driver and in Ray's controller."""

    run_id: str
    run_name: str
    uri: str  # of the store it is in

    def client(self) -> MlflowClient:
        """A client of the run's store, in whatever process this is."""
        return client(self.uri)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Append one point to each named curve, in as few calls as possible."""
        self.log_curves([(step, metrics)])

    def log_curves(self, points: list[tuple[int, dict[str, float]]]) -> None:
        """Append several (step, {name: value}) points in as few calls as possible."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        batch = [
            Metric(name, float(value), now_ms, step)
            for step, metrics in points
            for name, value in metrics.items()
        ]
        store = self.client()
        for start in range(0, len(batch), _MAX_BATCH):
            store.log_batch(self.run_id, metrics=batch[start : start + _MAX_BATCH])

    def log_settings(self, config: Any) -> None:
        """Log a settings dataclass: ``config.yaml`` as an artifact, each dotted key as a param."""
        from mlflow.entities import Param

        store = self.client()
        store.log_text(self.run_id, masked(to_yaml(config)), "config.yaml")
        flat = flatten(to_dict(config))
        params = [Param(key, masked(str(value))[:_MAX_PARAM_CHARS]) for key, value in flat.items()]
        for start in range(0, len(params), 100):
            store.log_batch(self.run_id, params=params[start : start + 100])

    def set_tags(self, tags: dict[str, Any]) -> None:
        """Set tags; values are written as text."""
        from mlflow.entities import RunTag

        self.client().log_batch(
            self.run_id, tags=[RunTag(k, masked(str(v))) for k, v in tags.items()]
        )

    def tags(self) -> dict[str, str]:
        """The run's tags."""
        return dict(self.client().get_run(self.run_id).data.tags)

    def log_file(self, path: str | Path, folder: str | None = None) -> None:
        """Log a file (an image, a table) as an artifact."""
        self.client().log_artifact(self.run_id, str(path), folder)

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
        self.client().log_inputs(self.run_id, datasets=[DatasetInput(dataset=found, tags=[])])

    def log_figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure as an artifact, e.g. ``images/loss.png``."""
        self.client().log_figure(self.run_id, figure, name)

    def log_text(self, text: str, name: str) -> None:
        """Log text as an artifact, e.g. ``report.md``."""
        self.client().log_text(self.run_id, text, name)

    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Every logged curve as (step, value) in order; the last value at a step counts."""
        store = self.client()
        found = {}
        for name in store.get_run(self.run_id).data.metrics:
            history = store.get_metric_history(self.run_id, name)
            found[name] = sorted({point.step: point.value for point in history}.items())
        return found

    def end(self, status: str) -> None:
        """Mark the run ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self.client().set_terminated(self.run_id, status)


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
    """
    from mlflow.exceptions import MlflowException

    store = client()
    try:
        run = store.get_run(run_id)
    except MlflowException:
        raise UserError(
            f"MLflow store {masked(tracking_uri())} has no run {run_id}; is DYNAFLIP_HOME or "
            f"MLFLOW_TRACKING_URI another one than when the run was started?"
        ) from None
    store.update_run(run_id, status="RUNNING")
    if "error" in run.data.tags:
        store.delete_tag(run_id, "error")  # of the session that failed
    reopened = Run(run_id, run.info.run_name, tracking_uri())
    reopened.set_tags(_process_tags())
    return reopened


def find_run(name_or_id: str) -> Any | None:
    """MLflow's entity of the newest run of this name, or of this id; None: there is none."""
    from mlflow.exceptions import MlflowException

    store = client()
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    if "'" not in name_or_id:
        query = f"attributes.run_name = '{name_or_id}'"
        found = store.search_runs(experiments, query, max_results=1)
        if found:
            return found[0]
    try:
        return store.get_run(name_or_id)
    except MlflowException:
        return None


def find_finished(tags: dict[str, str]) -> Any | None:
    """MLflow's entity of the newest finished run with these tags, or None."""
    store = client()
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    query += " and attributes.status = 'FINISHED'"
    found = store.search_runs(experiments, query, max_results=1)
    return found[0] if found else None


def runs_with_tags(tags: dict[str, str], most: int = 5000) -> list[Any]:
    """MLflow's entities of the newest runs with these tags, of all experiments."""
    store = client()
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    return list(store.search_runs(experiments, query, max_results=most))


def newest_run_names(kind: str, number: int = 3) -> list[str]:
    """Names of the newest runs with a tag ``kind``."""
    store = client()
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    found = store.search_runs(experiments, f"tags.kind = '{kind}'", max_results=number)
    return [run.info.run_name for run in found]


def read_artifact(run_id: str, name: str) -> bytes | None:
    """A file that a run logged, or None where it has no such file."""
    import tempfile

    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client().download_artifacts(run_id, name, folder)).read_bytes()
        except (MlflowException, OSError):
            return None


@contextlib.contextmanager
def ending(run: Run) -> Iterator[Run]:
    """End the run with the block: FINISHED, FAILED by an exception, KILLED by a signal."""
    previous = None
    if hasattr(signal, "SIGTERM") and _in_main_thread():
        previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield run
    except (KeyboardInterrupt, SystemExit):
        run.end("KILLED")
        raise
    except BaseException as error:
        with contextlib.suppress(store_error()):  # what is away is no news beside the error
            run.set_tags({"error": str(error)[:500]})
            run.end("FAILED")
        raise
    else:
        run.end("FINISHED")
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _experiment_id(store: MlflowClient, name: str) -> str:
    found = store.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    if not is_embedded():
        return store.create_experiment(name)
    # Absolute: workers have another working directory.
    location = (mlflow_folder() / "artifacts" / name).as_uri()
    return store.create_experiment(name, artifact_location=location)


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
