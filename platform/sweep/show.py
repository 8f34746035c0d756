"""``sweep.py show NAME``: the state of a sweep, from its folder and its studies.

Imports neither torch nor Ray nor MLflow, so that it answers at once.
"""

from __future__ import annotations

import sys

from dynaflip.platform.sweep.opened_sweep import chosen_settings, open_to_read
from dynaflip.platform.sweep.report import Report, report_of
from dynaflip.platform.sweep.study import CONFIRM


def show(name: str) -> str:
    """State and tables of the search and, once it has started, of the confirmation."""
    return _report(name).text()


def print_sweep(name: str) -> None:
    """Print what :func:`show` says, on a terminal with colours."""
    report = _report(name)
    if not sys.stdout.isatty():
        print(report.text())
        return
    from rich.console import Console

    report.print_on(Console())


def _report(name: str) -> Report:
    sweep = open_to_read(name, "show")
    trials = sweep.trials(CONFIRM)
    if not trials:
        return report_of(sweep, [])
    from dynaflip.platform.sweep.confirmation import confirmed_of

    return report_of(sweep, confirmed_of(trials, chosen_settings(sweep)))
