"""State of a sweep's trials now, from the study and from what the trials say of themselves.

The terminal's tables, the live view and the page of the result all show these values.
"""

from __future__ import annotations

import functools
import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from dynaflip.platform.sweep import sweep_folder as folders
from dynaflip.platform.sweep.config import METRIC
from dynaflip.platform.sweep.opened_sweep import Sweep
from dynaflip.platform.sweep.study import CONFIRM, SEARCH, number_of, trial_name
from dynaflip.platform.training.heartbeat import Pulse, read_pulse

DONE, PRUNED, SKIPPED, FAILED = "done", "pruned", "skipped", "failed"
RUNNING, STOPPED, WAITING = "running", "stopped", "waiting"
STATES = (DONE, PRUNED, SKIPPED, FAILED, RUNNING, STOPPED, WAITING)
_ENDED = {TrialState.COMPLETE: DONE, TrialState.PRUNED: PRUNED, TrialState.FAIL: FAILED}


@dataclass(frozen=True)
class TrialStatus:
    """One trial as it is now."""

    name: str
    number: int  # within its stage
    state: str  # one of STATES
    values: dict[str, Any]  # dotted key → value; empty before they are drawn
    scores: tuple[float, ...]  # by objective; empty without
    final: bool  # whether these are its last scores
    pulse: Pulse
    elapsed_s: float | None
    eta_s: float | None
    best: bool
    reason: str  # of a failure
    run_id: str  # MLflow's; empty before it has one

    def doing(self) -> str:
        """Its present activity, or how it ended."""
        return self.pulse.doing or self.state if self.state == RUNNING else self.state


@dataclass(frozen=True)
class StageStatus:
    """The trials of a stage."""

    stage: str
    trials: tuple[TrialStatus, ...]
    total: int  # trials that the stage ends with
    running: bool  # whether the sweep's process is alive
    eta_s: float | None  # of the stage
    epochs: float  # trained

    def count(self, state: str) -> int:
        """Number of trials in a state."""
        return sum(t.state == state for t in self.trials)


def stages_of(sweep: Sweep, running: bool | None = None) -> list[StageStatus]:
    """The stages that have begun; ``running`` is looked up unless it is given."""
    alive = folders.is_running(sweep.facts.name) if running is None else running
    trials = {stage: sweep.trials(stage) for stage in (SEARCH, CONFIRM)}
    return [
        status_of(sweep, stage, found, running=alive)
        for stage, found in trials.items()
        if stage == SEARCH or found
    ]


def status_of(
    sweep: Sweep,
    stage: str,
    trials: Sequence[FrozenTrial],
    *,
    running: bool,
    total: int | None = None,
) -> StageStatus:
    """State of a stage's trials.

    Args:
        sweep: the sweep.
        stage: search or confirm.
        trials: of the stage, as the study has them.
        running: whether its process is alive; a trial that the study calls running is otherwise
            stopped.
        total: number of trials that the stage ends with; none = as the settings have it.
    """
    best = _best(trials) if stage == SEARCH else set()
    states = [_status(sweep, stage, t, running, t.number in best) for t in trials]
    if total is None:
        total = max(sweep.config.trials, len(trials)) if stage == SEARCH else len(trials)
    begun = sum(t.state != WAITING for t in states)
    eta_s = _remaining_s(states, total - begun, sweep.config.concurrent) if running else None
    steps = sum(t.pulse.step for t in states)
    return StageStatus(
        stage, tuple(states), total, running, eta_s, steps / sweep.facts.steps_per_epoch
    )


def confirmation_s(sweep: Sweep, search: StageStatus) -> float | None:
    """Seconds that the confirmation will take, judged by the search's trials; None without one."""
    config, typical_s = sweep.config, _typical_s(search.trials)
    if search.stage != SEARCH or config.confirm == 0 or typical_s is None:
        return None
    trainings = (1 + min(config.confirm, max(0, search.total - 1))) * config.confirm_seeds
    return -(-trainings // config.concurrent) * typical_s


def _status(sweep: Sweep, stage: str, trial: FrozenTrial, running: bool, best: bool) -> TrialStatus:
    number = number_of(trial, sweep.facts, stage)
    name = str(trial.user_attrs.get("name", trial_name(stage, number)))
    state = _state(trial, running)
    pulse = _pulse(sweep, name, trial)
    scores, final = _scores(trial, sweep.config.objectives)
    live = state == RUNNING
    return TrialStatus(
        name=name,
        number=number,
        state=state,
        # A queued trial has its values fixed and not yet drawn.
        values=trial.params or dict(trial.system_attrs.get("fixed_params", {})),
        scores=scores,
        final=final,
        pulse=pulse,
        elapsed_s=None if state == WAITING else pulse.elapsed_now_s(live),
        eta_s=pulse.eta_s() if live and pulse.step < pulse.total_steps else None,
        best=best,
        reason=str(trial.user_attrs.get("reason", "")),
        run_id=str(trial.user_attrs.get("run_id", "")),
    )


def _best(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the trials with the least score; of two objectives, those on the Pareto front."""
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    ordered = sorted(done, key=lambda t: t.values)
    front = ordered[:1]
    for trial in ordered[1:]:
        # By rising first score: only a lower last score, or the very same ones, joins the front.
        lower = len(trial.values) > 1 and trial.values[-1] < front[-1].values[-1]
        if lower or trial.values == front[-1].values:
            front.append(trial)
    return {t.number for t in front}


def _state(trial: FrozenTrial, running: bool) -> str:
    if trial.state == TrialState.RUNNING:
        return RUNNING if running else STOPPED
    if trial.state == TrialState.PRUNED and trial.user_attrs.get("skipped"):
        return SKIPPED
    return _ENDED.get(trial.state, WAITING)


def _pulse(sweep: Sweep, name: str, trial: FrozenTrial) -> Pulse:
    """What the trial says of itself; the study's record where it says nothing."""
    attributes = trial.user_attrs
    step, total = int(attributes.get("step", 0)), sweep.facts.total_steps
    folder = folders.trials_of(sweep.facts.name) / name
    pulse = _last_pulse(folder) if trial.state in _ENDED else read_pulse(folder)
    if pulse is not None:
        if step > pulse.step:  # known by its reports alone
            pulse = replace(pulse, step=step, doing="training")
        return replace(pulse, total_steps=pulse.total_steps or total)
    began_s = attributes.get("session_began_s")
    if began_s is None:
        return Pulse(total_steps=total)
    ended_s = attributes.get("ended_s", time.time())
    return Pulse("", step, total, elapsed_s=ended_s - began_s, written_s=ended_s)


@functools.lru_cache(maxsize=10_000)
def _last_pulse(folder: Path) -> Pulse | None:
    """The heartbeat of a trial that has ended, which is read once."""
    return read_pulse(folder)


def _scores(trial: FrozenTrial, objectives: Sequence[str]) -> tuple[tuple[float, ...], bool]:
    """Scores by objective so far, and whether they are final."""
    if trial.state == TrialState.COMPLETE:
        return tuple(trial.values), True
    if trial.intermediate_values:
        return (trial.intermediate_values[max(trial.intermediate_values)],), False
    known = [trial.user_attrs.get(METRIC[o]) for o in objectives]
    return tuple(value for value in known if value is not None), False


def _typical_s(trials: Sequence[TrialStatus]) -> float | None:
    """Seconds of a whole trial: the mean of those that are done, or what running ones expect."""
    done = [t.elapsed_s for t in trials if t.state == DONE and t.elapsed_s]
    expected = [t.elapsed_s + t.eta_s for t in trials if t.elapsed_s and t.eta_s is not None]
    seen = done or expected
    return sum(seen) / len(seen) if seen else None


def _remaining_s(trials: Sequence[TrialStatus], waiting: int, concurrent: int) -> float | None:
    """Seconds to the end of the last trial, each free place taking the next one."""
    typical_s = _typical_s(trials)
    if typical_s is None:
        return None
    running = [t for t in trials if t.state == RUNNING]
    places = [
        t.eta_s if t.eta_s is not None else max(0.0, typical_s - (t.elapsed_s or 0.0))
        for t in running
    ]
    places += [0.0] * max(0, concurrent - len(places))
    heapq.heapify(places)
    for _ in range(waiting):
        heapq.heappush(places, heapq.heappop(places) + typical_s)
    return max(places)
