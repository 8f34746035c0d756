"""Sweeps in the middle or at the end, recorded as the real ones are, without Ray or a training."""

from __future__ import annotations

import math
import time

from tiny_sweep import STEPS, bowl, opened

from dynaflip.platform.sweep.ledger import Assignment, Ledger
from dynaflip.platform.sweep.opened_sweep import Sweep
from dynaflip.platform.sweep.stages import ledger_of, queue_confirmation
from dynaflip.platform.sweep.study import CONFIRM, SEARCH
from dynaflip.platform.sweep.sweep_folder import trials_of
from dynaflip.platform.training.heartbeat import Pulse, write_pulse


def beat(sweep: Sweep, assignment: Assignment, step: int) -> None:
    """A heartbeat as a training leaves it: a falling loss, two steps a second."""
    curve = [(s, math.exp(-s / 4)) for s in range(1, step + 1)]
    pulse = Pulse("training", step, STEPS, curve[-1][1], step / 2, 2.0, curve, time.time())
    write_pulse(trials_of(sweep.facts.name) / assignment.name, pulse)


def complete(sweep: Sweep, ledger: Ledger, assignment: Assignment) -> None:
    """Record a trial as scored."""
    beat(sweep, assignment, STEPS)
    error = 4 + bowl(assignment.values) + 0.01 * assignment.values.get("train.seed", 0)
    scores = {"score/perturbed_cm": error, "score/unperturbed_cm": error - 1}
    ledger.complete(assignment.number, {"step": STEPS, "final": True, **scores})


def started(ledger: Ledger) -> Assignment:
    """The next trial."""
    assignment = ledger.next()
    assert assignment is not None
    return assignment


def finished(name: str) -> Sweep:
    """Six trials, one of them failed and one skipped, and a confirmation of two settings."""
    sweep = opened(name, trials=6, confirm=1, confirm_seeds=2)
    ledger = ledger_of(sweep, SEARCH, 6)
    for _ in range(6):
        trial = started(ledger)
        if trial.number == 3:
            ledger.fail(3, "diverged: step 1: loss not finite")
        elif trial.number == 4:
            ledger.skip(4)
            ledger.complete(4, {})
        else:
            complete(sweep, ledger, trial)
    queue_confirmation(sweep)
    ledger = ledger_of(sweep, CONFIRM, 4)
    for _ in range(4):
        complete(sweep, ledger, started(ledger))
    return sweep
