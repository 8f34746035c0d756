"""Requests to a running sweep from another terminal: stop it, or skip one of its trials.

A request is an empty file in the sweep's folder, which the sweep's process looks for about twice
a second; so it works from any machine that shares the home.
"""

from __future__ import annotations

from dynaflip.platform.sweep import sweep_folder as folders

_STOP, _SKIP = "stop.request", "skip.request"


def stop_asked(name: str) -> bool:
    """True if the sweep is asked to stop."""
    return (folders.folder_of(name) / _STOP).exists()


def forget_stop(name: str) -> None:
    """Remove the request to stop: it is met, or one that an earlier session has not seen."""
    (folders.folder_of(name) / _STOP).unlink(missing_ok=True)


def skip_asked(name: str, trial: str) -> bool:
    """True if a trial of the sweep is to be skipped."""
    return (folders.trials_of(name) / trial / _SKIP).exists()


def ask_stop(name: str) -> None:
    """Ask the sweep to stop."""
    (folders.folder_of(name) / _STOP).touch()


def ask_skip(name: str, trial: str) -> None:
    """Ask for one of the sweep's trials to be skipped."""
    request = folders.trials_of(name) / trial / _SKIP
    request.parent.mkdir(parents=True, exist_ok=True)
    request.touch()
