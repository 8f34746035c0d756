"""Fitted policies as an evaluation's run has logged them."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from dynaflip.errors import UserError
from dynaflip.files import replace_folder, unfinished_path
from dynaflip.platform.paths import mlflow_folder
from dynaflip.platform.tracking.search import find_run
from dynaflip.platform.tracking.store import client, is_embedded, store_error

POLICIES = "policies"  # the runs' folder of them
_URI = re.compile(rf"runs:/+([^/]+)/{POLICIES}/([^/]+)/?")


def fetch_policy(uri: str, target: str | Path) -> Path:
    """Copy a policy and its encoder into a folder that needs nothing else.

    Args:
        uri: ``runs:/RUN/policies/NAME``, RUN the name or the id of the evaluation's run.
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


def _find(uri: str) -> tuple[str, str]:
    """Id of the run and name of the policy."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise UserError(f"policy {uri}: give a folder or runs:/RUN/{POLICIES}/NAME")
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
