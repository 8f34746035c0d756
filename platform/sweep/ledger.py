"""Ledger of a stage's trials: recorded in the Optuna study first, then in MLflow.

Only the driver writes here. A trial's values, intermediate scores and final state are in the
study's database; a session that finds trials in state RUNNING there continues them. No state of
Ray Tune has to survive a kill.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from dynaflip.platform import tracking
from dynaflip.platform.sweep import requests
from dynaflip.platform.sweep.config import METRIC, SCORE_NAME, SweepConfig
from dynaflip.platform.sweep.space import Dimension
from dynaflip.platform.sweep.study import (
    FINISHED,
    number_of,
    own_trials,
    pruner,
    sampler,
    trial_name,
)
from dynaflip.platform.sweep.sweep_folder import Facts, trials_of
from dynaflip.platform.training.heartbeat import note

# Final state of a trial → status of its MLflow run.
STATUS = {
    TrialState.COMPLETE: "FINISHED",
    TrialState.PRUNED: "FINISHED",
    TrialState.FAIL: "FAILED",
}


class Interrupted(RuntimeError):
    """The node died, or a disk, bucket or server is unreachable: the sweep stops and can resume."""


class StopRequested(KeyboardInterrupt):
    """Another terminal asks the sweep to stop; it ends as after Ctrl-C."""


@dataclass(frozen=True)
class Assignment:
    """A trial to run: plain data, which Ray sends to the trial's process."""

    stage: str
    number: int
    name: str  # trial-003
    values: dict[str, Any]  # dotted key → value
    run: tracking.Run


class Ledger:
    """The trials of one stage."""

    def __init__(
        self,
        study: optuna.Study,
        stage: str,
        space: tuple[Dimension, ...],
        facts: Facts,
        config: SweepConfig,
        parent: tracking.Run,
        *,
        total: int,
        describe: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        """Read the state of the study.

        Args:
            study: of the stage.
            stage: search or confirm.
            space: the settings that a trial has values for.
            facts: of the sweep.
            config: its settings.
            parent: MLflow's parent run.
            total: number of trials that the stage ends with.
            describe: a trial's values → tags of its MLflow run.
        """
        self.study, self.stage, self.space, self.facts = study, stage, space, facts
        self.config, self.parent, self.total, self.describe = config, parent, total, describe
        self.study.pruner = pruner(config, facts.total_steps)
        self._running: dict[int, optuna.Trial] = {}
        self._pruned: set[int] = set()
        self._skipped: set[int] = set()
        self._orphans = [t for t in own_trials(study) if t.state == TrialState.RUNNING]

    def remaining(self) -> int:
        """Number of trials that are not finished, including those that have not started."""
        done = [t for t in own_trials(self.study) if t.state in FINISHED]
        # Started trials are finished, even if fewer trials are asked for by now.
        return max(self.total - len(done), len(self._orphans))

    def next(self) -> Assignment | None:
        """A trial that a killed session left running, or a new one; None when there are no more."""
        orphan = bool(self._orphans)
        if orphan:
            frozen = self._orphans.pop(0)
            # A session that was killed between asking and suggesting has left no values.
            self.study.sampler = sampler(self.config, number_of(frozen, self.facts, self.stage))
            trial = optuna.Trial(self.study, frozen._trial_id)
        else:
            begun = [t for t in own_trials(self.study) if t.state != TrialState.WAITING]
            if len(begun) >= self.total:
                return None
            self.study.sampler = sampler(self.config, len(begun))
            trial = self.study.ask()
        values = {d.key: d.suggest(trial) for d in self.space}
        number = number_of(trial, self.facts, self.stage)
        self._running[number] = trial
        name = trial_name(self.stage, number)
        trial.set_user_attr("name", name)
        trial.set_user_attr("session_began_s", time.time())
        trial.set_user_attr("session_began_step", trial.user_attrs.get("step", 0))
        note(trials_of(self.facts.name) / name, "starting its process", first=True)
        run = self._open_run(trial, name, values, orphan)
        return Assignment(self.stage, number, name, values, run)

    def progress(self, number: int, metrics: dict[str, Any]) -> bool:
        """Record a trial's report; False to stop the trial early."""
        trial = self._running[number]
        if "step" in metrics:
            trial.set_user_attr("step", int(metrics["step"]))
        scores = self._scores(metrics)
        if scores is None or metrics.get("final") or len(self.config.objectives) > 1:
            return True
        step = int(metrics["step"])
        trial.report(scores[0], step)
        # The last step is the final score and no rung. Trial 0 is never stopped, because all
        # others are compared with it, but asking records its scores on the rungs.
        at_rung = step < self.facts.total_steps and self.stage == "search"
        if at_rung and trial.should_prune() and number > 0:
            self._pruned.add(number)
            return False
        return True

    def complete(self, number: int, metrics: dict[str, Any]) -> None:
        """Record the end of a trial from its last report: scored, pruned, skipped or failed."""
        scores = self._scores(metrics)
        if metrics.get("failed"):
            self.fail(number, str(metrics["failed"]))
        elif number in self._pruned or (number in self._skipped and not metrics.get("final")):
            self._end(number, TrialState.PRUNED, None, metrics)
        elif scores is None:
            self.fail(number, "the trial ended without a score")
        elif not all(map(math.isfinite, scores)):
            self.fail(number, "the score is not finite")
        else:
            self._end(number, TrialState.COMPLETE, scores, metrics)

    def fail(self, number: int, reason: str) -> None:
        """Record a trial as failed, with the reason."""
        self._running[number].set_user_attr("reason", " ".join(reason.split())[:500])
        self._end(number, TrialState.FAIL, None, {})

    def running(self) -> dict[int, str]:
        """Number → name of the trials that run now."""
        return {number: trial.user_attrs["name"] for number, trial in self._running.items()}

    def skip(self, number: int) -> None:
        """Note that the user skips a trial: its end, which follows, is recorded as pruned."""
        self._skipped.add(number)

    def stopped(self) -> None:
        """Mark the MLflow runs of the running trials, because the sweep stops.

        In the study they stay as they are, and the next session continues them.
        """
        for trial in self._running.values():
            note(trials_of(self.facts.name) / trial.user_attrs["name"], "stopped")
            with contextlib.suppress(tracking.store_error(), KeyError):
                run = self._run_of(trial)
                run.set_tags({"sweep.state": "stopped"})
                run.end("KILLED")

    def repair(self) -> None:
        """Bring the records up to date with what happened while no session ran.

        Runs of trials whose session died after it wrote to the study are closed in MLflow, and
        trials that the user has skipped meanwhile are ended.
        """
        for frozen in list(self._orphans):
            name = str(frozen.user_attrs.get("name", ""))
            if "run_id" in frozen.user_attrs and requests.skip_asked(self.facts.name, name):
                self._orphans.remove(frozen)
                number = number_of(frozen, self.facts, self.stage)
                self._running[number] = optuna.Trial(self.study, frozen._trial_id)
                self.skip(number)
                self.complete(number, {})
        runs = {record.run_id: record for record in self.children()}
        for trial in own_trials(self.study):
            record = runs.get(trial.user_attrs.get("run_id", ""))
            if trial.state in FINISHED and record and record.status != STATUS[trial.state]:
                self._close_run(record.run, trial)

    def children(self) -> list[tracking.RunRecord]:
        """The MLflow runs of this stage."""
        return [
            child
            for child in tracking.child_runs(self.parent)
            if child.tags.get("sweep.stage") == self.stage
        ]

    def _scores(self, metrics: dict[str, Any]) -> list[float] | None:
        names = [METRIC[objective] for objective in self.config.objectives]
        if any(name not in metrics for name in names):
            return None
        return [float(metrics[name]) for name in names]

    def _end(
        self, number: int, state: TrialState, scores: list[float] | None, metrics: dict[str, Any]
    ) -> None:
        trial = self._running.pop(number)
        for name in METRIC.values():
            if name in metrics:
                trial.set_user_attr(name, float(metrics[name]))
        trial.set_user_attr("ended_s", time.time())
        note(trials_of(self.facts.name) / trial.user_attrs["name"], "ended")
        if state == TrialState.PRUNED and number in self._skipped:
            trial.set_user_attr("skipped", True)
        frozen = self.study.tell(trial, scores, state=state)
        self._close_run(self._run_of(trial), frozen)

    def _run_of(self, trial: optuna.Trial) -> tracking.Run:
        return tracking.Run(trial.user_attrs["run_id"], trial.user_attrs["name"], self.parent.uri)

    def _close_run(self, run: tracking.Run, trial: FrozenTrial) -> None:
        state = trial.state.name.lower()
        tags: dict[str, Any] = {"sweep.state": state}
        if "reason" in trial.user_attrs:
            tags["error"] = trial.user_attrs["reason"]
        if "skipped" in trial.user_attrs:
            tags["sweep.skipped"] = "by the user"
        run.set_tags(tags)
        if trial.state == TrialState.COMPLETE:
            name = SCORE_NAME[self.config.objectives[0]]
            run.log_metrics({name: trial.values[0]}, self.facts.total_steps)
            # The parent's curve over trials.
            number = number_of(trial, self.facts, self.stage)
            self.parent.log_metrics({f"{self.stage}/{name}": trial.values[0]}, number)
        run.end(STATUS[trial.state])

    def _open_run(
        self, trial: optuna.Trial, name: str, values: dict[str, Any], orphan: bool
    ) -> tracking.Run:
        """The trial's MLflow run: the one that a killed session opened, or a new one."""
        run_id = trial.user_attrs.get("run_id")
        if run_id is None and orphan:
            named = [c for c in self.children() if c.tags.get("sweep.trial") == name]
            run_id = named[0].run_id if named else None
        if run_id is not None:
            run = tracking.reopen_run(run_id)
        else:
            tags = {
                "kind": "trial",
                "sweep": self.facts.name,
                "sweep.stage": self.stage,
                "sweep.trial": name,
                "data_digest": self.facts.data_digest,
                "score_digest": self.facts.score_digest,
                **self.describe(values),
            }
            title = f"{self.facts.name}/{name}"
            run = tracking.open_run(self.config.experiment, title, tags, parent=self.parent)
        trial.set_user_attr("run_id", run.run_id)
        return run
