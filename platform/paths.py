"""Where state lives: one absolute home for data, runs and the MLflow store.

The home is ``DYNAFLIP_HOME``, by default ``~/.dynaflip``; it is the same for a
shell, for a submitted Ray job and for its workers.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from dynaflip.errors import UserError

# Homes that this process has found where they were made.
_in_place: set[Path] = set()


def home() -> Path:
    """The absolute home of all state; made if it is missing.

    Raises:
        UserError: it cannot be made, or it was copied or moved here from where it was made: the
            absolute paths stored in it would read and write the old place.
    """
    folder = home_folder()
    if folder in _in_place:
        return folder
    from dynaflip.platform.home_move import MARKER, is_same_place, record_home, recorded_home

    recorded = recorded_home(folder)
    if recorded is not None and not is_same_place(recorded, folder):
        raise UserError(
            f"DYNAFLIP_HOME: {folder} was made at {recorded}, and its runs and encoders are stored "
            f"with that path; if you moved or copied it, type `dynaflip home move` (`python "
            f"jobs/home.py move`); if it is one folder mounted in two places, mount it at "
            f"{recorded}"
        )
    if not (folder / MARKER).is_file():
        record_home(folder)
    _in_place.add(folder)
    return folder


def home_folder() -> Path:
    """The home's absolute path, without a look at what is in it; made if it is missing."""
    try:
        folder = Path(os.environ.get("DYNAFLIP_HOME") or "~/.dynaflip").expanduser()
    except RuntimeError:  # no HOME, and no entry of this user, as in a container of any uid
        raise UserError(
            "DYNAFLIP_HOME: this user has no home folder; set DYNAFLIP_HOME to an absolute path"
        ) from None
    if not folder.is_absolute():
        folder = Path.cwd() / folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"DYNAFLIP_HOME: cannot make {folder}: {error.strerror}") from None
    return folder


def default_data() -> Path:
    """The data set that ``jobs/collect.py`` writes by default."""
    return home() / "data" / "demo"


def default_triplets() -> Path:
    """The triplet folder that ``jobs/preprocess.py`` writes by default."""
    return home() / "triplets" / "demo"


def runs() -> Path:
    """Ray Train's storage: a folder a run."""
    return home() / "runs"


def captions_folder() -> Path:
    """Folder of the captions that models gave to clips."""
    return home() / "captions"


def cache_folder() -> Path:
    """Folder of what can be computed again: caption features, digests. It may be deleted."""
    return home() / "cache"


def made_encoders() -> Path:
    """Encoders that an evaluation makes to compare with: initialisations, models of others."""
    return home() / "evaluation" / "encoders"


def mlflow_folder() -> Path:
    """The embedded MLflow store: ``mlflow.db`` and ``artifacts/``."""
    return home() / "mlflow"


def new_run_name(kind: str) -> str:
    """A fresh, sortable run name: ``pretrain-20261122-193000-4f1a``."""
    return f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"


def check_working_directory() -> None:
    """Refuse to run in a folder that is gone: relative paths have no meaning there.

    Raises:
        UserError: it was deleted, or may not be entered.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(
            f"the working directory cannot be used ({error.strerror}): cd to another folder"
        ) from None


def in_submitted_job() -> bool:
    """True if this process is the driver of a submitted Ray job.

    Its working directory is then a temporary copy that Ray deletes.
    """
    return "runtime_resources/working_dir_files" in os.getcwd().replace(os.sep, "/")


def is_uri(path: str) -> bool:
    """True if a path has a scheme, as ``s3://bucket/key`` has."""
    return "://" in path


def output_path(path: str | None, default: Path, *, setting: str) -> str:
    """Resolve where results go, relative to where the path was typed.

    Raises:
        UserError: a relative path in a submitted job, whose working directory is
            a temporary copy that would take the results with it.
    """
    if path is None:
        return str(default)
    if is_uri(path):
        return path
    given = Path(path).expanduser()
    if not given.is_absolute() and in_submitted_job():
        raise UserError(
            f"{setting}: {path!r} is relative, and a submitted job's working directory is a "
            f"temporary copy that is deleted with the job; give an absolute path or a URI, or "
            f"leave it out for {default}"
        )
    return str(given.absolute())


def output_folder(path: str | None, default: Path, *, setting: str) -> str:
    """:func:`output_path` of what can be written to a local folder alone.

    Raises:
        UserError: also for a URI.
    """
    if path is not None and is_uri(path):
        raise UserError(f"{setting}: {path}: this is written to a local folder")
    return output_path(path, default, setting=setting)


def input_path(path: str | None, default: Path) -> str:
    """Resolve where to read from, relative to where the path was typed.

    Raises:
        UserError: a relative path that a submitted job's copy of the checkout does not have.
    """
    if path is None:
        return str(default)
    if is_uri(path):
        return path
    given = Path(path).expanduser()
    if not given.is_absolute() and in_submitted_job() and not given.exists():
        raise UserError(
            f"{path!r} is relative, and a submitted job has only the code of the checkout, without "
            "what .gitignore and .rayignore name; give an absolute path on a disk that all nodes "
            "share, or a URI"
        )
    return str(given.absolute())
