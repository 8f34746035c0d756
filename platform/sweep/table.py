"""Tables of a sweep's trials, from the study alone, also while the sweep runs."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState

from dynaflip.platform.sweep.config import UNITS
from dynaflip.platform.sweep.probe_score import METRIC
from dynaflip.platform.sweep.space import Dimension, short_names
from dynaflip.platform.sweep.study import own_trials
from dynaflip.platform.sweep.sweep_folder import Facts
from dynaflip.platform.training.progress import clock

_STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def trial_table(
    study: optuna.Study,
    facts: Facts,
    space: Sequence[Dimension],
    objectives: Sequence[str],
    *,
    mark_best: bool = True,
) -> str:
    """One line per trial: values, scores, epochs, state, ETA; the best ones may be marked."""
    trials = own_trials(study)
    best = {t.number for t in study.best_trials} if mark_best else set()
    head = ["", "trial", *short_names(space), *titles(objectives)]
    rows = [[*head, "epochs", "state", "ETA"]]
    for trial in trials:
        values = [_shown(trial.params.get(d.key)) for d in space]
        rows.append(
            [
                "*" if trial.number in best else "",
                str(trial.user_attrs.get("name", trial.number)),
                *values,
                *_scores(trial, objectives),
                f"{trial.user_attrs.get('step', 0) / facts.steps_per_epoch:.1f}",
                _STATES[trial.state],
                _eta(trial, facts),
            ]
        )
    lines = aligned(rows)
    reasons = [
        f"{t.user_attrs.get('name')} failed: {t.user_attrs['reason']}"
        for t in trials
        if "reason" in t.user_attrs
    ]
    return "\n".join([*lines, *reasons])


def summary(study: optuna.Study, facts: Facts, total: int) -> str:
    """Progress of a stage in one line."""
    trials = own_trials(study)
    number = {state: sum(t.state == state for t in trials) for state in _STATES}
    parts = [f"{number[state]} {_STATES[state]}" for state in _STATES if number[state]]
    epochs = sum(t.user_attrs.get("step", 0) for t in trials) / facts.steps_per_epoch
    return f"{', '.join(parts) or 'nothing started'} of {total}; {epochs:.1f} epochs trained"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as lines with aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def fitted(lines: Sequence[str], columns: int, rows: int) -> list[str]:
    """Lines that fit the terminal; if there are too many, the header and the last ones."""
    room = max(rows - 1, 4)  # the cursor's own row stays free
    if len(lines) > room:
        lines = [*lines[:2], f"… {len(lines) - room + 1} more", *lines[3 - room :]]
    return [line if len(line) < columns else f"{line[: columns - 2]}…" for line in lines]


@dataclass
class LiveView:
    """Live view: on a terminal the table is redrawn in place, elsewhere each change is a line."""

    draw: Callable[[], str]
    changes: Callable[[], dict[str, str]]  # trial → line that is printed when it changes
    every_s: float = 2.0
    _last_s: float = 0.0
    _lines: int = 0
    _printed: dict[str, str] = field(default_factory=dict)

    def tick(self) -> None:
        """Draw, if the last drawing is old enough."""
        if time.monotonic() - self._last_s < self.every_s:
            return
        self.update()

    def update(self) -> None:
        """Draw now."""
        self._last_s = time.monotonic()
        if sys.stdout.isatty():
            # Lines that wrapped or scrolled away cannot be redrawn.
            size = shutil.get_terminal_size()
            lines = fitted(self.draw().splitlines(), size.columns, size.lines)
            back = f"\x1b[{self._lines}F\x1b[J" if self._lines else ""
            sys.stdout.write(back + "\n".join(lines) + "\n")
            sys.stdout.flush()
            self._lines = len(lines)
            return
        for name, line in self.changes().items():
            if self._printed.get(name) != line:
                self._printed[name] = line
                print(line)


def state_lines(
    study: optuna.Study, facts: Facts, space: Sequence[Dimension], objectives: Sequence[str]
) -> dict[str, str]:
    """One line per trial, for output that cannot be redrawn."""
    lines = {}
    for trial in own_trials(study):
        name = trial.user_attrs.get("name")
        if name is None:
            continue
        values = " ".join(
            f"{title}={_shown(trial.params.get(d.key))}"
            for title, d in zip(short_names(space), space, strict=True)
        )
        end = {
            TrialState.COMPLETE: f"  {' / '.join(_with_units(trial, objectives))}",
            TrialState.FAIL: f"  {trial.user_attrs.get('reason', '')}",
        }.get(trial.state, "")
        lines[name] = f"{name}  {values}  {_STATES[trial.state]}{end}"
    return lines


def titles(objectives: Sequence[str]) -> list[str]:
    """Objectives with their units, for table headers and axes."""
    return [f"{objective} {UNITS[objective]}" for objective in objectives]


def _with_units(trial: FrozenTrial, objectives: Sequence[str]) -> list[str]:
    scores = zip(_scores(trial, objectives), objectives, strict=True)
    return [f"{score} {UNITS[objective]}" for score, objective in scores]


def _scores(trial: FrozenTrial, objectives: Sequence[str]) -> list[str]:
    if trial.state == TrialState.COMPLETE:
        return [f"{value:.2f}" for value in trial.values]
    if trial.intermediate_values:
        latest = trial.intermediate_values[max(trial.intermediate_values)]
        return [f"({latest:.2f})"] + [""] * (len(objectives) - 1)
    known = [trial.user_attrs.get(METRIC[o]) for o in objectives]
    return ["" if value is None else f"({value:.2f})" for value in known]


def _eta(trial: FrozenTrial, facts: Facts) -> str:
    step = trial.user_attrs.get("step", 0)
    # Since this session started it; a continued trial starts at a later step.
    done = step - trial.user_attrs.get("session_began_step", 0)
    if trial.state != TrialState.RUNNING or done <= 0:
        return ""
    elapsed_s = time.time() - trial.user_attrs.get("session_began_s", time.time())
    return clock(elapsed_s / done * max(0, facts.total_steps - step))


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
