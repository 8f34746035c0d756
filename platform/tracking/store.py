"""The MLflow store: where it is, and the only client of it.

The store is embedded: SQLite and an artifact folder below ``DYNAFLIP_HOME``, no server.
``MLFLOW_TRACKING_URI`` overrides it. Only modules of this folder import :func:`client`.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dynaflip.errors import StoreError, UserError
from dynaflip.files import takes_files
from dynaflip.platform.passwords import masked
from dynaflip.platform.paths import mlflow_folder
from dynaflip.platform.proxies import bypass_proxies_on_this_machine

if TYPE_CHECKING:
    from mlflow import MlflowClient

_URI = "MLFLOW_TRACKING_URI"
_CONNECT_S = 5.0
_ENVIRONMENT = {
    # MLflow's telemetry thread, its colour codes and its bars have no place in a job's output.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server that accepts and never answers costs twice this, and not eight times 120 s with
    # waits between. The client reads them at each request.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # it may ask for an hour
}

# What MLflow answers where there is no such run, model, version or alias.
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def tracking_uri() -> str:
    """The store's absolute URI: ``MLFLOW_TRACKING_URI``, or SQLite below the home."""
    return os.environ.get(_URI) or f"sqlite:///{mlflow_folder() / 'mlflow.db'}"


def is_embedded() -> bool:
    """True if runs go into the home's own store."""
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

    bypass_proxies_on_this_machine()
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


def first_line(error: BaseException) -> str:
    """First line of an error, without the passwords of an address.

    Of a failed request it is the cause, without the address and the layers around it.
    """
    text = str(error).partition("\n")[0]
    if cause := re.search(
        r"Caused by \w+\([\"'](?:HTTPS?Connection\w*\(.*?\): )?(.*?)[\"']\)", text
    ):
        text = cause[1]
    return masked(text)[:200] or type(error).__name__


def store_error() -> type[Exception]:
    """Exception of a store that refuses, or does not answer any more."""
    from mlflow.exceptions import MlflowException

    return MlflowException


def away_errors() -> tuple[type[Exception], ...]:
    """Exceptions of a store that is away, at any stage: no connection, no answer, a refusal."""
    return (store_error(), StoreError, OSError)  # those of its HTTP client are of OSError


def store_away(error: BaseException) -> StoreError:
    """One line for what a store that is away raised."""
    return StoreError(f"MLflow store {masked(tracking_uri())} does not answer: {first_line(error)}")


@contextlib.contextmanager
def request_timeout(seconds: float, retries: int) -> Iterator[None]:
    """Other time-outs of requests for a block: short ones at the end of a process, long ones for
    a large upload, whose answer comes when the server has stored it.

    Those of the user's environment stay.
    """
    names = ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    before = {name: os.environ.get(name) for name in names}
    for name, value in zip(names, (round(seconds), retries), strict=True):
        if before[name] in (None, _ENVIRONMENT[name]):
            os.environ[name] = str(value)
    try:
        yield
    finally:
        for name in names:
            os.environ[name] = before[name] or _ENVIRONMENT[name]


def is_store_error(error: BaseException) -> bool:
    """True if an error is a store's; imports nothing, which would take seconds."""
    # Where nobody has imported MLflow, it has raised nothing.
    return "mlflow.exceptions" in sys.modules and isinstance(error, store_error())


@lru_cache
def _check_answers(uri: str) -> None:
    """Refuse a server that nobody answers at, before MLflow tries for minutes."""
    place = urlsplit(uri)
    if place.scheme == "sqlite":
        _check_file(Path(uri.removeprefix("sqlite:///")))
    if place.scheme not in ("http", "https") or not place.hostname:
        return
    if place.scheme in getproxies() and not proxy_bypass(place.hostname):
        _check_proxy(uri, place.scheme, place.hostname)
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


def _check_file(database: Path) -> None:
    """Refuse a file that cannot be written, before SQLite's users try again for minutes."""
    folder = database.parent
    if folder.is_dir() and not (os.access(database, os.W_OK) or takes_files(folder)):
        raise StoreError(f"{_URI}: {database} cannot be written; name a file that can")


def _check_proxy(uri: str, scheme: str, host: str) -> None:
    """Refuse a proxy that nobody answers at; one without a port is not checked."""
    proxy = urlsplit(getproxies()[scheme])
    if not proxy.hostname or not proxy.port:
        return
    try:
        socket.create_connection((proxy.hostname, proxy.port), timeout=_CONNECT_S).close()
    except OSError as error:
        why = error.strerror or error
        raise StoreError(
            f"{_URI}={masked(uri)}: the proxy of {scheme}_proxy does not answer ({why}); add "
            f"{host} to no_proxy if it is reached directly"
        ) from None
