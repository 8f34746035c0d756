"""``sweep.py stop`` and ``sweep.py skip``: control a running sweep from another terminal."""

from __future__ import annotations

import time

from dynaflip.errors import UserError
from dynaflip.platform.sweep import requests
from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.opened_sweep import open_to_read
from dynaflip.platform.sweep.status import RUNNING, SKIPPED, STOPPED, stages_of

_POLL_S = 0.3


def stop(name: str, timeout_s: float = 60.0) -> str:
    """Ask a sweep to stop, and wait until it has; returns a line for the user.

    Raises:
        UserError: there is no such sweep.
    """
    folders.read_facts(name, "stop")
    go_on = f"continue with: {folders.resume_command(name)}"
    if not folders.is_running(name):
        return f"{name} is not running; {go_on}"
    requests.ask_stop(name)
    deadline = time.monotonic() + timeout_s
    while folders.is_running(name):
        if time.monotonic() > deadline:
            return f"{name} is asked to stop, which it does when it next looks; then {go_on}"
        time.sleep(_POLL_S)
    if requests.stop_asked(name):  # nobody has met the request
        requests.forget_stop(name)
        return f"{name} ended by itself; look with: python jobs/sweep.py show {name}"
    return f"stopped: {name}; {go_on}"


def skip(name: str, trial: str, timeout_s: float = 60.0) -> str:
    """Ask a sweep to end one trial now, and wait until it has; returns a line for the user.

    The trial of a stopped sweep is skipped when the sweep continues.

    Args:
        name: of the sweep.
        trial: its name, or its number in the search.
        timeout_s: how long to wait.

    Raises:
        UserError: there is no such sweep or trial, or the trial is over.
    """
    sweep = open_to_read(name, "skip")
    wanted = f"trial-{int(trial):03d}" if trial.isdigit() else trial
    deadline = time.monotonic() + timeout_s
    asked = False
    while True:
        trials = {t.name: t for stage in stages_of(sweep) for t in stage.trials}
        found = trials.get(wanted)
        if found is None:
            raise UserError(
                f"skip {name} {trial}: there is no such trial; it has "
                f"{', '.join(list(trials)[-5:]) or 'none yet'}"
            )
        if asked and found.state == SKIPPED:
            return f"skipped: {wanted} of {name}"
        if found.state not in (RUNNING, STOPPED):
            raise UserError(f"skip {name} {trial}: {wanted} is {found.state}, not running")
        if not asked:
            requests.ask_skip(name, wanted)
            asked = True
        if found.state == STOPPED:
            go_on = folders.resume_command(name)
            return f"{wanted} will be skipped when the sweep continues, with: {go_on}"
        if time.monotonic() > deadline:
            return f"{wanted} is asked to end, which it does when the sweep next looks"
        time.sleep(_POLL_S)
