"""Run the trials of a stage with Ray Tune; the ledger decides what to run and records results.

Every session is a new Tune experiment, because the study already has all that a session would
restore. Import this only after
:func:`dynaflip.platform.cluster.start_ray`.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dynaflip.errors import StoreError
from dynaflip.platform import tracking
from dynaflip.platform.sweep import requests
from dynaflip.platform.sweep.ledger import Assignment, Interrupted, Ledger, StopRequested
from dynaflip.platform.sweep.resources import DRIVER_CPUS
from dynaflip.platform.sweep.sweep_folder import resume_command

Trainable = Callable[[Assignment], None]
_ASSIGNMENT = "assignment"
_OUTAGE = "outage"
_OUTAGE_S = 600.0  # the driver ends the session long before
_NODE_CHECK_S = 3.0
_REQUESTS_S = 0.5
_ENVIRONMENT = {
    # Ctrl-C ends a sweep like any other job; Tune would go on until its trials are saved.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Its newer output prints a banner at any verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
}


class ProcessLost(RuntimeError):
    """A process of a trial was killed, through no fault of its settings: the trial is retried."""


class StudySearch(Searcher):
    """Tune's search algorithm: suggestions come from the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial, or ``FINISHED``."""
        assignment = self.ledger.next()
        if assignment is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = assignment.number
        return {_ASSIGNMENT: assignment}

    def on_trial_complete(
        self, trial_id: str, result: dict | None = None, error: bool = False
    ) -> None:
        """Record a trial's result; :class:`Watch` records processes that died."""
        number = self._numbers.pop(trial_id)
        if not error:
            self.ledger.complete(number, result or {})

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the state is in the study."""
        Path(checkpoint_path).write_text(self.ledger.study.study_name)


class StudyScheduler(FIFOScheduler):
    """Tune's scheduler: trials are stopped early by the study's pruner."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.controller: Any = None  # Tune's, known from the first trial on

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Keep Tune's controller, which alone can end a trial between its reports."""
        self.controller = tune_controller

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        """Record the result, and stop the trial if the pruner says so."""
        goes_on = self.ledger.progress(trial.config[_ASSIGNMENT].number, result)
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class Watch(tune.Callback):
    """Reports dead trials to the ledger, answers the user's requests, updates the live view."""

    def __init__(self, ledger: Ledger, scheduler: StudyScheduler, tick: Callable[[], None]) -> None:
        self.ledger, self.scheduler, self.tick = ledger, scheduler, tick
        self._checked_s = self._asked_s = time.monotonic()
        self._outage = ""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes it into the session's folder, from which nobody restores."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict, **info: Any
    ) -> None:
        """Remember an outage: every trial would fail on it in turn."""
        self._outage = self._outage or result.get(_OUTAGE, "")

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Update the view, and stop the sweep at an outage or on request."""
        self.tick()
        if self._outage:
            raise Interrupted(
                f"{self._outage}; when that is fixed, continue with: "
                f"{resume_command(self.ledger.facts.name)}"
            )
        self._check_node()
        self._answer_requests(trials)

    def _answer_requests(self, trials: list[Trial]) -> None:
        if time.monotonic() - self._asked_s < _REQUESTS_S:
            return
        self._asked_s = time.monotonic()
        name = self.ledger.facts.name
        if requests.stop_asked(name):
            raise StopRequested
        for number, trial_name in self.ledger.running().items():
            if requests.skip_asked(name, trial_name):
                (trial,) = (
                    t
                    for t in trials
                    if t.config[_ASSIGNMENT].number == number and not t.is_finished()
                )
                self.ledger.skip(number)
                actor = trial.temporary_state.ray_actor
                self.scheduler.controller.stop_trial(trial)
                if actor is not None:
                    # Tune's own stop waits in the actor's queue for the trial's next report. The
                    # training's processes end with the one that started them.
                    ray.kill(actor)

    def _check_node(self) -> None:
        """Stop when this node is dead: Tune would wait for its processes for ever."""
        if time.monotonic() - self._checked_s < _NODE_CHECK_S:
            return
        self._checked_s = time.monotonic()
        here = ray.get_runtime_context().get_node_id()
        if not any(node["NodeID"] == here and node["Alive"] for node in ray.nodes()):
            raise Interrupted(
                f"the Ray node died; continue with: {resume_command(self.ledger.facts.name)}"
            )

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Record a trial whose process died more often than allowed."""
        lost = (trial.last_result or {}).get("lost", "its process died")
        reason = f"{lost} ({trial.num_failures} times)"
        self.ledger.fail(trial.config[_ASSIGNMENT].number, reason)


def run_stage(
    ledger: Ledger,
    trainable: Trainable,
    *,
    concurrent: int,
    session: Path,
    tick: Callable[[], None],
    reuse: bool = False,
) -> None:
    """Run the remaining trials of a stage.

    Args:
        ledger: of the stage.
        trainable: runs one :class:`Assignment` in an actor and reports to Tune; its last
            report has ``final`` and the score, or ``failed`` and the reason.
        concurrent: trials at once.
        session: folder of this session's Tune experiment, which is created.
        tick: called often while trials run.
        reuse: run several trials in one process, one after the other.
    """
    remaining = ledger.remaining()
    if remaining <= 0:
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train"):  # the table lists failures with their reasons
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def named(trial: Trial) -> str:
        return trial.config[_ASSIGNMENT].name

    scheduler = StudyScheduler(ledger)

    tuner = tune.Tuner(
        tune.with_resources(_recording(trainable), {"CPU": DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=StudySearch(ledger),
            scheduler=scheduler,
            num_samples=remaining,
            max_concurrent_trials=concurrent,
            trial_name_creator=named,
            trial_dirname_creator=named,
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(
            name=session.name,
            storage_path=str(session.parent),
            failure_config=tune.FailureConfig(max_failures=ledger.config.max_failures),
            callbacks=[Watch(ledger, scheduler, tick)],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except (KeyboardInterrupt, SystemExit):
        ledger.stopped()
        raise


def _recording(trainable: Trainable) -> Callable[[dict[str, Any]], None]:
    """A function for Tune that reports a trial's exception as its result.

    A lost process is raised again, so that Tune retries the trial; an outage ends the sweep with
    the trial still in state RUNNING, so that ``--resume`` continues it.
    """

    def run_one(config: dict[str, Any]) -> None:  # Tune wants a plain function
        try:
            trainable(config[_ASSIGNMENT])
        except ProcessLost as error:
            tune.report({"lost": str(error)})
            raise
        except Exception as error:  # it would be raised again: recorded, not retried
            if _is_outage(error):  # at whatever step of the trial
                tune.report({_OUTAGE: str(error).partition("\n")[0] or type(error).__name__})
                time.sleep(_OUTAGE_S)
                return
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}"
            tune.report({"final": True, "failed": reason})

    return run_one


def _is_outage(error: Exception) -> bool:
    """True if a disk, bucket or server that every trial needs is unreachable."""
    return isinstance(error, StoreError) or tracking.is_store_error(error)
