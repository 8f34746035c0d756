"""Registered encoders: add a version, move an alias, load by URI.

A version holds the encoder's folder (safetensors and config) and this package's code,
logged as an MLflow pyfunc "from code". Loading reads the folder alone; nothing is
unpickled and no code of the version is run.

Rules of aliases (who moves which, and when) are in :mod:`dynaflip.platform.promotion`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import sys
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynaflip.errors import UserError
from dynaflip.platform.passwords import masked
from dynaflip.platform.paths import mlflow_folder
from dynaflip.platform.tracking.runs import UPLOAD_S, Run
from dynaflip.platform.tracking.store import (
    GONE,
    client,
    is_embedded,
    request_timeout,
    tracking_uri,
)
from dynaflip.platform.tracking.version_card import card_of
from dynaflip.plugins import CLASS_PREFIX

if TYPE_CHECKING:
    from dynaflip.encoders.image import ImageEncoder

DEFAULT_NAME = "dynaflip-encoder"
LATEST = "latest"
_ARTIFACT = "encoder"
# What an environment needs to run a version; pinned to what trained it.
_REQUIREMENTS = ("torch", "numpy", "safetensors", "pyarrow", "pydantic", "pyyaml", "transformers")


def register(
    folder: str | Path,
    run: Run,
    *,
    name: str = DEFAULT_NAME,
    tags: dict[str, Any] | None = None,
) -> int:
    """Log an encoder's folder to a run and register it as the next version.

    A run that was killed after it had registered one keeps that version.

    Args:
        folder: of :func:`dynaflip.encoders.checkpoint.save_folder`.
        run: the open MLflow run that made it.
        name: of the registered model.
        tags: of the version.

    Returns:
        The version's number.
    """
    store = client()
    import mlflow
    import numpy as np
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    image = TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))
    vector = TensorSpec(np.dtype("float32"), (-1, -1))
    known = store.search_model_versions(f"run_id='{run.run_id}'")
    version = max((int(v.version) for v in known if v.name == name), default=0)
    if not version:
        upload = request_timeout(UPLOAD_S, retries=2)
        with upload, _quiet(), mlflow.start_run(run_id=run.run_id, log_system_metrics=False):
            logged = mlflow.pyfunc.log_model(
                name=_ARTIFACT,
                python_model=str(Path(__file__).with_name("pyfunc_encoder.py")),
                artifacts={_ARTIFACT: str(folder)},
                code_paths=_code_paths(),
                signature=ModelSignature(Schema([image]), Schema([vector])),
                pip_requirements=_pinned(),
                registered_model_name=name,
            )
        version = int(logged.registered_model_version)
        experiment = store.get_run(run.run_id).info.experiment_id
        settings_digest = str((tags or {}).get("config_digest", ""))
        card = card_of(Path(folder), run, name, version, experiment, settings_digest)
        store.update_model_version(name, str(version), description=card)
        # start_run's end marks the run FINISHED, but it is the caller who ends it.
        store.update_run(run.run_id, status="RUNNING")
    for key, value in (tags or {}).items():
        store.set_model_version_tag(name, str(version), key, str(value))
    return version


def load_encoder(
    uri: str | int, *, device: str | None = None, backbone: str | None = None
) -> ImageEncoder:
    """Load an image encoder for use: eval mode, on a device.

    Args:
        uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``models:/NAME/latest``, a
            version number of ``dynaflip-encoder``, or an encoder's folder.
        device: ``cpu``, ``cuda``, …; the CPU by default.
        backbone: name of the backbone instead of the one that the version's folder names.

    Raises:
        UserError: the URI names no encoder; the message lists what there is.
    """
    folder = resolve(uri)
    from dynaflip.encoders.checkpoint import load_for_use

    return load_for_use(folder, str(uri), device=device, backbone=backbone)


def resolve(uri: str | int) -> Path:
    """The local folder (config and safetensors) that an encoder URI names.

    Raises:
        UserError: as :func:`load_encoder`.
    """
    text = str(uri).strip()
    if text.isdigit():
        return _version_folder(DEFAULT_NAME, text, asked=text)
    if text.startswith("models:/"):
        return _resolve_model(text)
    folder = Path(text).expanduser().absolute()
    if (folder / "config.json").is_file():
        return folder
    if "://" in text:
        raise UserError(f"encoder {text}: give models:/NAME@ALIAS, a version or a local folder")
    if text.startswith(CLASS_PREFIX):
        raise UserError(
            f"encoder {text}: a class of your own is no trained encoder of this package; compare "
            f"it with one: --encoders '[\"own={text}\"]'"
        )
    what = "is not an encoder's folder (no config.json)" if folder.is_dir() else "does not exist"
    raise UserError(f"encoder {text}: folder {folder} {what}; registered: {describe_versions()}")


def named_version(uri: str, asker: str) -> tuple[str, str]:
    """Name and number of the registered version that a URI names.

    Args:
        uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or a version number.
        asker: first word of a refusal.

    Raises:
        UserError: it names none.
    """
    text = uri.strip()
    if text.isdigit():
        text = f"models:/{DEFAULT_NAME}/{text}"
    name, at, alias = text.removeprefix("models:/").partition("@")
    if at and text.startswith("models:/"):
        return name, _version_of_alias(name, alias, text)
    name, _, number = name.partition("/")
    if not text.startswith("models:/") or not (number.isdigit() or number == LATEST):
        raise UserError(f"{asker}: {uri} is no registered version; give models:/NAME/VERSION")
    if number == LATEST:
        number = _version_of_alias(name, LATEST, text)
    check_version(name, number)
    return name, number


def describe_versions(name: str = DEFAULT_NAME) -> str:
    """The registered versions, in one line: ``dynaflip-encoder versions 1, 2 (candidate = 2)``."""
    if is_embedded() and not (mlflow_folder() / "mlflow.db").exists():
        return f"nothing yet in {mlflow_folder()}; jobs/pretrain.py registers a version"
    store = client()
    versions = sorted(int(v.version) for v in store.search_model_versions(f"name='{name}'"))
    if not versions:
        names = [model.name for model in store.search_registered_models()]
        return f"no version of {name}; models: {', '.join(names) or 'none'}"
    aliases = store.get_registered_model(name).aliases
    shown = ", ".join(f"{alias} = {number}" for alias, number in sorted(aliases.items()))
    numbers = ", ".join(map(str, versions[-20:]))
    return f"{name} versions {numbers}" + (f" ({shown})" if shown else "")


def find_version(name: str, tags: dict[str, str]) -> int | None:
    """The newest version of a registered model that has all of these tags, or None."""
    if is_embedded() and not (mlflow_folder() / "mlflow.db").exists():
        return None
    versions = client().search_model_versions(f"name='{name}'")
    matching = [int(v.version) for v in versions if tags.items() <= dict(v.tags).items()]
    return max(matching, default=None)


def set_alias(name: str, alias: str, version: int) -> None:
    """Move an alias to a version (:mod:`dynaflip.platform.promotion` decides whether)."""
    client().set_registered_model_alias(name, alias, str(version))


def version_of_alias(name: str, alias: str) -> str | None:
    """The version that an alias names, or None where nothing has it.

    Raises:
        UserError: the store does not answer; an alias may then be there all the same.
    """
    from mlflow.exceptions import MlflowException

    try:
        return str(client().get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in GONE:
            return None
        raise UserError(
            f"alias {alias} of {name}: cannot read it from {masked(tracking_uri())}: {error}"
        ) from None


@dataclass(frozen=True)
class Version:
    """A registered version."""

    name: str  # of the registered model
    number: str
    tags: dict[str, str]


def versions_of_run(run_id: str) -> list[Version]:
    """Registered versions that a run made, in this store."""
    versions = client().search_model_versions(f"run_id='{run_id}'")
    return [Version(v.name, str(v.version), dict(v.tags)) for v in versions]


def set_version_tags(
    name: str, version: str, tags: dict[str, str], remove: Collection[str] = ()
) -> None:
    """Set tags of a version, and remove others."""
    store = client()
    for key in remove:
        store.delete_model_version_tag(name, version, key)
    for key, value in tags.items():
        store.set_model_version_tag(name, version, key, value)


def version_tags(name: str, version: str) -> dict[str, str]:
    """Tags of a version that exists (see :func:`check_version`)."""
    return dict(client().get_model_version(name, version).tags)


def check_version(name: str, version: str) -> None:
    """Refuse a version that does not exist.

    Raises:
        UserError: with those that do.
    """
    from mlflow.exceptions import MlflowException

    uri = f"models:/{name}/{version}"
    try:
        _store(uri).get_model_version(name, version)
    except MlflowException as error:
        raise _missing(uri, name, error) from None


def _resolve_model(uri: str) -> Path:
    rest = uri.removeprefix("models:/").strip("/")
    name, at, alias = rest.partition("@")
    if at:
        return _version_folder(name, _version_of_alias(name, alias, uri), asked=uri)
    name, slash, version = rest.partition("/")
    if not slash or not (version.isdigit() or version == LATEST):
        raise UserError(
            f"encoder {uri}: give models:/NAME@ALIAS or models:/NAME/VERSION; "
            f"registered: {describe_versions()}"
        )
    if version == LATEST:
        version = _version_of_alias(name, LATEST, uri)
    return _version_folder(name, version, asked=uri)


def _version_of_alias(name: str, alias: str, uri: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(_store(uri).get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        raise _missing(uri, name, error) from None


def _version_folder(name: str, version: str, asked: str) -> Path:
    store = _store(asked)
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        source = store.get_model_version_download_uri(name, version)
        with _quiet():
            folder = mlflow.artifacts.download_artifacts(artifact_uri=source)
    except (MlflowException, OSError) as error:
        raise _missing(asked, name, error) from None
    artifacts = Path(folder) / "artifacts"
    inside = [path.parent for path in sorted(artifacts.glob("*/config.json"))]
    if not inside:
        if (Path(folder) / "policy.json").is_file():
            raise UserError(f"encoder {asked}: it is a policy; load it by dynaflip.load_policy")
        raise UserError(f"encoder {asked}: version {version} of {name} holds no encoder folder")
    return inside[0]


def _store(asked: str) -> Any:
    """A client, unless that would make an empty store just to find nothing in it."""
    if is_embedded() and not (mlflow_folder() / "mlflow.db").exists():
        raise UserError(f"encoder {asked}: registered: {describe_versions()}")
    return client()


def _missing(asked: str, name: str, error: Exception) -> UserError:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException) and error.error_code in GONE:
        return UserError(f"encoder {asked} does not exist; registered: {describe_versions(name)}")
    return UserError(f"encoder {asked}: cannot read it from {masked(tracking_uri())}: {error}")


def _code_paths() -> list[str]:
    """This package's folders, so that a version can be served where it is not installed."""
    package = Path(__file__).resolve().parents[2]
    # Installed from a wheel, everything is inside. A checkout has no __init__.py at its root,
    # and may itself be called dynaflip, so its name does not tell.
    if (package / "__init__.py").is_file():
        return [str(package)]
    return [str(package / name) for name in ("dynaflip", "encoders", "losses", "platform")]


def _pinned() -> list[str]:
    pins = []
    for name in _REQUIREMENTS:
        # A local build tag (2.13.0+cpu) is on no index.
        pins.append(f"{name}=={importlib.metadata.version(name).partition('+')[0]}")
    return pins


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep MLflow's remarks and progress bars (not its errors) out of a job's output."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "mlflow.store.model_registry")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as output:
            warnings.simplefilter("ignore")
            yield
    except BaseException:
        sys.stderr.write(output.getvalue())
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
