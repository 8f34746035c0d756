"""Fitted policies as an evaluation's run has logged them, and as registered versions.

A version names a run's policy: its files lie once, in the run.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.files import replace_folder, unfinished_path
from dynaflip.platform.paths import mlflow_folder
from dynaflip.platform.tracking.registry import named_version, set_alias
from dynaflip.platform.tracking.search import find_run
from dynaflip.platform.tracking.store import client, is_embedded, store_error

POLICIES = "policies"  # the runs' folder of them
_POLICY_TAG = "policy"  # of a version: the policy's name in its run
_URI = re.compile(rf"runs:/+([^/]+)/{POLICIES}/([^/]+)/?")


def fetch_policy(uri: str, target: str | Path) -> Path:
    """Copy a policy and its encoder into a folder that needs nothing else.

    Args:
        uri: ``runs:/RUN/policies/NAME``, RUN the name or the id of the evaluation's run; or
            ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        target: new; its parent is made.

    Returns:
        The absolute folder, which :func:`dynaflip.load_policy` takes.

    Raises:
        UserError: there is no such run or policy; the message lists what there is.
    """
    from dynaflip.eval.policies.policy_folder import ENCODER, read_description, shared_encoder

    run_id, name = _find(uri)
    target = Path(target).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = unfinished_path(target)
    with tempfile.TemporaryDirectory() as scratch:
        policy = _download(uri, run_id, name, scratch)
        shared = shared_encoder(read_description(policy).encoder_digest)
        encoder = _download(uri, run_id, shared, scratch)
        try:
            shutil.copytree(policy, fresh)
            shutil.copytree(encoder, fresh / ENCODER)
            replace_folder(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target


def register_policy(uri: str, name: str, alias: str | None = None) -> int:
    """Register a run's policy as the next version of a model.

    Args:
        uri: of the policy.
        name: of the registered model, which has policies alone.
        alias: that is moved to the version, if any.

    Returns:
        The version's number.

    Raises:
        UserError: there is no such policy, or the model has encoders.
    """
    run_id, policy = _find(uri)
    store = client()
    known = store.search_model_versions(f"name='{name}'")
    if others := [one.version for one in known if _POLICY_TAG not in one.tags]:
        raise UserError(
            f"name: {name} is a model of encoders (version {others[0]}); choose another"
        )
    if not store.search_registered_models(f"name='{name}'"):
        store.create_registered_model(name)
    at = f"{store.get_run(run_id).info.artifact_uri}/{POLICIES}/{policy}"
    tags = {_POLICY_TAG: policy}
    made = store.create_model_version(name, at, run_id, tags=tags, description=_card(uri, name))
    number = int(made.version)
    if alias is not None:
        set_alias(name, alias, number)
    return number


def is_registered_policy(uri: str) -> bool:
    """Whether ``models:/…`` names a policy, and no encoder.

    Raises:
        UserError: there is no such version.
    """
    name, number = named_version(uri, f"policy {uri}")
    return _POLICY_TAG in client().get_model_version(name, number).tags


def _card(uri: str, name: str) -> str:
    return (
        f"A fitted policy with its encoder, {uri}. "
        f'`dynaflip.load_policy("models:/{name}/VERSION").act(image, proprioception)`'
    )


def _find_version(uri: str) -> tuple[str, str]:
    """Id of the run and name of the policy that a version names."""
    if is_embedded() and not (mlflow_folder() / "mlflow.db").exists():
        raise UserError(f"policy {uri}: nothing is registered here")
    name, number = named_version(uri, f"policy {uri}")
    version = client().get_model_version(name, number)
    if _POLICY_TAG not in version.tags:
        raise UserError(f"policy {uri}: it is an encoder; load it by dynaflip.load_encoder")
    return str(version.run_id), str(version.tags[_POLICY_TAG])


def _find(uri: str) -> tuple[str, str]:
    """Id of the run and name of the policy."""
    if uri.startswith("models:/"):
        return _find_version(uri)
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(
            f"policy {uri}: give a folder, runs:/RUN/{POLICIES}/NAME or models:/NAME/VERSION"
        )
    asked, name = match.groups()
    missing = is_embedded() and not (mlflow_folder() / "mlflow.db").exists()
    run = None if missing else find_run(asked)
    if run is None:
        raise UserError(f"policy {uri}: there is no run {asked}")
    names = [Path(a.path).name for a in client().list_artifacts(run.run_id, POLICIES)]
    names = [known for known in names if not known.startswith("encoder-")]
    if name not in names:
        raise UserError(
            f"policy {uri}: run {asked} has no policy {name}; it has: {', '.join(names) or 'none'}"
        )
    return run.run_id, name


def _download(uri: str, run_id: str, name: str, folder: str) -> Path:
    try:
        return Path(client().download_artifacts(run_id, f"{POLICIES}/{name}", folder))
    except (store_error(), OSError) as error:
        raise UserError(f"policy {uri}: cannot read {POLICIES}/{name} ({error})") from None
