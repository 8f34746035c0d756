"""A sweep of computed trials as a process of its own: to be killed, and gone on with."""

from __future__ import annotations

import sys
import time

from tiny_sweep import STEPS, bowl, opened, report, send_by_value

from dynaflip.platform import tracking
from dynaflip.platform.cluster import start_ray
from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.ledger import Assignment, Interrupted
from dynaflip.platform.sweep.opened_sweep import open_to_read
from dynaflip.platform.sweep.run import saying_how_to_continue, sweep_lock
from dynaflip.platform.sweep.stages import run_with
from dynaflip.platform.sweep.study import SEARCH


def slowly(assignment: Assignment) -> None:
    """Seconds from the first report to the last."""
    for step in range(1, STEPS + 1):
        time.sleep(2.0)  # on a busy machine a report is seen a second or more after it was made
        report(step, bowl(assignment.values) + STEPS - step, final=step == STEPS)


def main(name: str, trials: int) -> None:
    """Begin the sweep, or go on with it."""
    there = (folders.folder_of(name) / folders.FILE).exists()
    sweep = open_to_read(name, "test") if there else opened(name, trials=trials, concurrent=1)
    start_ray()
    send_by_value()
    with sweep_lock(name), saying_how_to_continue(name), tracking.ending(sweep.parent):
        run_with(sweep, SEARCH, trials, slowly)


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except Interrupted as error:
        sys.exit(f"stopped: {error}")
