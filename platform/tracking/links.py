"""Links to MLflow's pages, and the descriptions that it shows on them."""

from __future__ import annotations

from urllib.parse import quote, urlsplit, urlunsplit

from dynaflip.platform.tracking.runs import Run
from dynaflip.platform.tracking.store import client

# Where `make ui` serves the runs of a home.
LOCAL_UI = "http://127.0.0.1:5000"
_NOTE = "mlflow.note.content"


def ui_address(uri: str) -> str:
    """Address of MLflow's pages for a store, without a trailing slash or a password.

    Args:
        uri: of the store; a database has its pages where ``make ui`` serves them.
    """
    place = urlsplit(uri)
    if place.scheme not in ("http", "https"):
        return LOCAL_UI
    host = place.netloc.rpartition("@")[2]
    return urlunsplit((place.scheme, host, place.path.rstrip("/"), "", ""))


def experiment_address(run: Run) -> str:
    """Address of the page of a run's experiment; a run's own is below it."""
    experiment = client(run.uri).get_run(run.run_id).info.experiment_id
    return f"{ui_address(run.uri)}/#/experiments/{experiment}"


def run_address(experiment: str, run_id: str) -> str:
    """Address of a run's page, below that of its experiment."""
    return f"{experiment}/runs/{run_id}"


def version_address(uri: str, name: str, version: int) -> str:
    """Address of a registered version's page."""
    return f"{ui_address(uri)}/#/models/{quote(name, safe='')}/versions/{version}"


def describe_run(run: Run, text: str) -> None:
    """Set the description that a run's page shows, Markdown."""
    run.set_tags({_NOTE: text})
