"""A sweep's folder, ``<home>/sweeps/NAME``: its settings, labelled frames and trials.

``sweep.json`` is written once, ``config.yaml`` again by each resumed session; the state of the
trials is in the Optuna study.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynaflip.errors import UserError
from dynaflip.files import is_locked, write_file
from dynaflip.platform.config_loader import to_yaml
from dynaflip.platform.passwords import has_password
from dynaflip.platform.paths import home

FILE, CONFIG, FRAMES, LOCK = "sweep.json", "config.yaml", "frames.npz", "running.lock"


@dataclass(frozen=True)
class Facts:
    """Facts of a sweep that no session changes."""

    name: str
    run_id: str  # MLflow's parent run
    space: list[str]  # as on the command line
    papers: dict[str, object]  # values of trial 0, the paper's weights
    data_digest: str
    score_digest: str  # of the labelled frames
    base_digest: str  # of the settings that are not searched
    total_steps: int  # of a trial
    steps_per_epoch: int
    storage: str  # Optuna's URL, or env:NAME
    warm_trials: int  # copied from another sweep, before trial 0


def sweeps() -> Path:
    """Folder of all sweeps."""
    return home() / "sweeps"


def default_storage() -> str:
    """This home's Optuna database, one file for all sweeps."""
    return f"sqlite:///{sweeps() / 'studies.db'}"


def folder_of(name: str) -> Path:
    """A sweep's folder, which may not exist yet."""
    return sweeps() / name


def trials_of(name: str) -> Path:
    """Folder of a sweep's trials, one folder each."""
    return folder_of(name) / "trials"


def is_running(name: str) -> bool:
    """True if a process runs the sweep now: it holds the lock, which dies with it."""
    return is_locked(folder_of(name) / LOCK)


def resume_command(name: str) -> str:
    """The command that continues a sweep."""
    return f"python jobs/sweep.py --resume {name}"


def write_facts(facts: Facts) -> None:
    """Write ``sweep.json``, whole or not at all."""
    write_file(folder_of(facts.name) / FILE, json.dumps(asdict(facts), indent=1))


def write_config(name: str, job: Any) -> None:
    """Write ``config.yaml``, the sweep's settings, whole or not at all."""
    text = to_yaml(job)
    # New sweeps hold no password; those of version 0.1 may.
    write_file(folder_of(name) / CONFIG, text, mode=0o600 if has_password(text) else None)


def read_facts(name: str, flag: str) -> Facts:
    """Read ``sweep.json``.

    Args:
        name: of the sweep.
        flag: of the command line that named it, for the error.

    Raises:
        UserError: there is no such sweep; the message names the newest.
    """
    path = folder_of(name) / FILE
    if not path.is_file():
        known = sorted(sweeps().glob(f"*/{FILE}"), key=lambda p: p.stat().st_mtime, reverse=True)
        names = ", ".join(p.parent.name for p in known[:3]) or "none"
        raise UserError(f"{flag} {name}: there is no such sweep in {sweeps()}; newest: {names}")
    text = path.read_text()
    if has_password(text):  # a sweep of version 0.1
        with contextlib.suppress(OSError):
            path.chmod(0o600)
    return Facts(**json.loads(text))
